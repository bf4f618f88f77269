"""Where a row came from and when it happened: the meta columns that make up its identity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from streams.transport.frame import Frame


def locate(frames: Sequence[Frame], rows: pl.DataFrame, *, event_time: str) -> pl.DataFrame:
    """Decoded rows with `_partition`, `_offset` and `_time`, in their order: frame by frame."""
    # No query: each has its price of some 200 us, and the frame of a row tells all but its offset.
    of_frame, index = rows.get_column("_frame").to_numpy(), rows.get_column("_index").to_numpy()
    ends = np.searchsorted(of_frame, np.arange(len(frames) + 1))
    partition = np.repeat(np.array([f.partition for f in frames], np.int32), np.diff(ends))
    offset = np.empty(rows.height, np.int64)
    for number, frame in enumerate(frames):
        own = slice(ends[number], ends[number + 1])
        if isinstance(frame.offsets, range):
            # As int64: beside an index of 32 bits, a number of Python's would have to be one, too.
            np.add(index[own], np.int64(frame.offsets.start), out=offset[own])
        else:
            offset[own] = np.array(frame.offsets, np.int64)[index[own]]
    return rows.with_columns_seq(
        pl.Series("_partition", partition),
        pl.Series("_offset", offset),
        _time=pl.col(event_time).cast(pl.Int64),
    )


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
