"""What the stream tests share: a small contract of their own, and frames made by hand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated

import polars as pl
from msgspec import Meta, Struct

from schemas.envelope import ARROW_STREAM
from schemas.topics import CONTENT_TYPE_HEADER, WATERMARK_HEADER
from streams.transport.frame import Frame, Headers, column

ARROW_HEADERS: Headers = ((CONTENT_TYPE_HEADER, ARROW_STREAM.encode()),)


class Reading(Struct, frozen=True, forbid_unknown_fields=True):
    """A contract with every kind of column that there is."""

    id: Annotated[str, Meta(min_length=1, max_length=8)]
    at: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    level: Annotated[float, Meta(ge=-50, le=50)]
    count: int
    good: bool
    note: str | None
    extra: float | None = None


def frame_of(
    values: Sequence[bytes | None],
    *,
    topic: str = "readings",
    partition: int = 0,
    first: int = 0,
    headers: dict[int, Headers] | None = None,
    offsets: Sequence[int] | None = None,
    keys: Sequence[bytes | None] | None = None,
) -> Frame:
    """A frame as the transport would hand it over."""
    offsets = range(first, first + len(values)) if offsets is None else offsets
    return Frame(
        topic,
        partition,
        first,
        (offsets[-1] + 1) if len(offsets) else first,
        column(values),
        column(keys if keys is not None else [None] * len(values)),
        offsets,
        headers=headers or {},
        stamps=[(0, 1_700_000_000_000)] if values else [],
        size_bytes=sum(len(v) for v in values if v),
    )


def arrow_of(rows: pl.DataFrame) -> bytes:
    """The rows as an Arrow IPC stream."""
    sink = io.BytesIO()
    rows.write_ipc_stream(sink)
    return sink.getvalue()


def heartbeat_headers(watermark: object) -> Headers:
    """Headers of a heartbeat record."""
    return ((WATERMARK_HEADER, str(watermark).encode()),)
