"""A column's values side by side, as a compiled walk reads them; by Polars' own lists it costs twice that."""

from __future__ import annotations

from types import ModuleType

import nanoarrow
import numpy as np
import polars as pl


def side_by_side(values: pl.Series, walk: ModuleType, *, room: int) -> tuple[np.ndarray, np.ndarray]:
    """All values one behind the other, uint8, with `room` more bytes; and their offsets there, (N + 1,).

    Args:
        values: Binary (N,), none of them null.
        walk: `compiled.cut_walk`.
    """
    offsets = np.zeros(len(values) + 1, np.int64)
    # Handed over as Arrow's views: each names a buffer, and a place in it. They stay while we hold the parts.
    parts = list(nanoarrow.c_array_stream(values))
    laid: list[tuple[int, np.ndarray, np.ndarray]] = []
    row = 0
    for part in parts:
        _, views, *buffers, _ = part.buffers
        views += walk.VIEW * part.offset
        own = offsets[row : row + part.length + 1]
        walk.measure(views, own)
        laid.append((views, np.array(buffers, np.int64), own))
        row += part.length
    content = np.empty(int(offsets[-1]) + room, np.uint8)
    for views, buffers, own in laid:
        walk.lay(views, buffers, content, own)
    return content, offsets
