"""Where a row came from and when it happened: the meta columns that make up its identity."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from streams.transport.frame import Frame


def locate(frames: Sequence[Frame], rows: pl.DataFrame, *, source: str, event_time: str) -> pl.DataFrame:
    """Decoded rows with `_source`, `_partition`, `_offset` and `_time`, in their order."""
    origin = pl.DataFrame(
        {
            "_frame": range(len(frames)),
            "_partition": [f.partition for f in frames],
            "_dense_from": [f.offsets[0] if _is_dense(f) else None for f in frames],
        },
        schema={"_frame": pl.Int32, "_partition": pl.Int32, "_dense_from": pl.Int64},
    )
    rows = rows.join(origin, on="_frame", how="left", maintain_order="left")
    offset = pl.col("_dense_from") + pl.col("_index")
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
    return rows.with_columns(_source=pl.lit(source), _time=pl.col(event_time).cast(pl.Int64)).drop(
        "_dense_from"
    )


def _is_dense(frame: Frame) -> bool:
    return isinstance(frame.offsets, range) and len(frame.offsets) > 0
