"""Where a row came from and when it happened: the meta columns that make up its identity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from streams.transport.frame import Frame


def locate(frames: Sequence[Frame], rows: pl.DataFrame, *, source: str, event_time: str) -> pl.DataFrame:
    """Decoded rows with `_source`, `_partition`, `_offset` and `_time`, in their order."""
    partitions = pl.Series([f.partition for f in frames], dtype=pl.Int32)
    dense_from = pl.Series([f.offsets[0] if _is_dense(f) else None for f in frames], dtype=pl.Int64)
    rows = rows.with_columns(_partition=pl.lit(partitions).gather(pl.col("_frame")))
    offset = pl.lit(dense_from).gather(pl.col("_frame")) + pl.col("_index")
    sparse = [number for number, frame in enumerate(frames) if frame.offsets and not _is_dense(frame)]
    if sparse:
        looked_up = pl.DataFrame(
            {
                "_frame": [i for i in sparse for _ in frames[i].offsets],
                "_index": [k for i in sparse for k in range(len(frames[i].offsets))],
                "_sparse": [o for i in sparse for o in frames[i].offsets],
            },
            schema={"_frame": pl.Int32, "_index": pl.Int32, "_sparse": pl.Int64},
        )
        rows = rows.join(looked_up, on=["_frame", "_index"], how="left", maintain_order="left")
        offset = pl.coalesce(offset, pl.col("_sparse"))
        rows = rows.with_columns(_offset=offset).drop("_sparse")
    else:
        rows = rows.with_columns(_offset=offset)
    return rows.with_columns(_source=pl.lit(source), _time=pl.col(event_time).cast(pl.Int64))


def _is_dense(frame: Frame) -> bool:
    return isinstance(frame.offsets, range) and len(frame.offsets) > 0


@dataclass(frozen=True, slots=True)
class Now:
    """How late it is for located rows, epoch ms: for each of them, and for the one of them that is first."""

    each_ms: pl.Expr
    earliest_ms: int

    @classmethod
    def at(cls, now_ms: int) -> Now:
        """The same for all."""
        return cls(pl.lit(now_ms), now_ms)


def appended(frames: Sequence[Frame]) -> Now:
    """When each located row's record was appended, by the broker's clock or the producer's.

    No record was appended later than now: where producers set the time, theirs may be wrong.
    """
    now_ms = int(time.time() * 1000)
    stamps = [(number, index, ms) for number, frame in enumerate(frames) for index, ms in frame.stamps]
    if not stamps:
        return Now.at(now_ms)
    said_ms = [now_ms if ms < 0 else min(ms, now_ms) for _, _, ms in stamps]
    # Frames and batches follow each other: a record's batch is the last that begins at it or before it.
    begins = pl.Series([number * 2**32 + index for number, index, _ in stamps], dtype=pl.Int64)
    at = pl.col("_frame").cast(pl.Int64) * 2**32 + pl.col("_index").cast(pl.Int64)
    batch = pl.lit(begins).search_sorted(at, side="right").cast(pl.Int64) - 1
    said = pl.lit(pl.Series(said_ms, dtype=pl.Int64))
    return Now(said.gather(batch.clip(lower_bound=0)), min(said_ms))


def newest_ms(frames: Sequence[Frame], partition: int) -> int:
    """When the last record of a partition in these frames was appended, epoch ms; never later than now."""
    now_ms = int(time.time() * 1000)
    stamps = [ms for frame in frames if frame.partition == partition for _, ms in frame.stamps if ms >= 0]
    return min(max(stamps, default=now_ms), now_ms)
