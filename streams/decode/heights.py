"""How many rows each record of a frame says that it holds, before anything of it is decoded."""

from __future__ import annotations

import numpy as np

from schemas.envelope import ARROW_STREAM
from streams.decode.arrow_walk import Damaged, check_lengths
from streams.decode.refused import content_type_of
from streams.transport.frame import Frame


def heights(frame: Frame) -> np.ndarray:
    """Rows of each record, at least 1: what holds none, or none that can be read, is work all the same."""
    rows = np.ones(len(frame), dtype=np.int64)
    for index, headers in frame.headers.items():
        value = frame.values[index]
        if value and content_type_of(dict(headers)) == ARROW_STREAM.encode():
            try:
                rows[index] = max(1, check_lengths(value))
            except Damaged:
                continue  # its dead letter says why
    return rows
