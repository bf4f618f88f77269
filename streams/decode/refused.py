"""What cannot be an event: a record, or one row of an Arrow record, with its reason and its own bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from schemas.dead_letter import Reason
from schemas.envelope import ARROW_STREAM, JSON
from schemas.topics import CONTENT_TYPE_HEADER
from streams.transport.frame import Frame


@dataclass(frozen=True, slots=True)
class Refused:
    """A record, or a row of an Arrow record, that cannot be an event; `value` is a row's own bytes."""

    frame: Frame
    index: int
    reason: Reason
    rule: str
    detail: str
    row: int = 0
    value: bytes | None = None


def refuse_rows(
    frames: Sequence[Frame], rows: pl.DataFrame, reason: Reason, rule: str, detail: str
) -> list[Refused]:
    """One refusal a row; a row of an Arrow record carries its own bytes, as they came."""
    refused = []
    for number, index, row in rows.select("_frame", "_index", "_row").iter_rows():
        frame = frames[number]
        value = None
        if content_type_of(dict(frame.headers.get(index, ()))) == ARROW_STREAM.encode():
            sink = io.BytesIO()
            frame.table(index, pl.read_ipc_stream)[row].write_ipc_stream(sink)
            value = sink.getvalue()
        refused.append(Refused(frame, index, reason, rule, detail, row, value))
    return refused


def content_type_of(headers: Mapping[str, bytes | None], otherwise: str = JSON) -> bytes:
    """A record's content type without its parameters; `otherwise` where none is said."""
    said = headers.get(CONTENT_TYPE_HEADER)
    return otherwise.encode() if said is None else said.split(b";")[0].strip()
