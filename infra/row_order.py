"""The one order of a dataset's rows: by event time, those of equal time by their place in Kafka."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

PLACE = ("_partition", "_offset", "_row")
ORDER = ("_time", *PLACE)


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` (N, …), with meta columns, sorted by `ORDER`."""
    order = order_of(rows)
    return rows if order is None else rows[order]


def order_of(rows: pl.DataFrame) -> NDArray[np.int64] | None:
    """The numbers (N,) of `rows` in the order of `ORDER`; None if they stand in it.

    Each partition's rows mostly stand in the order of their offsets: then two stable sorts by one number do,
    of which the one by time finds long runs that only need merging. Sorting by four columns takes ten times
    as long.
    """
    if rows.height < 2:
        return None
    partition, offset, row = (rows.get_column(name).to_numpy() for name in PLACE)
    by_partition = None
    if (partition[1:] < partition[:-1]).any():
        if partition.max() > np.iinfo(np.uint16).max:
            return _sorted(rows)
        by_partition = partition.astype(np.uint16).argsort(kind="stable")
        partition, offset, row = partition[by_partition], offset[by_partition], row[by_partition]
    follows = (
        (partition[1:] > partition[:-1])
        | (offset[1:] > offset[:-1])
        | ((offset[1:] == offset[:-1]) & (row[1:] >= row[:-1]))
    )
    if not follows.all():
        return _sorted(rows)
    times_ms = rows.get_column("_time").to_numpy()
    if by_partition is not None:
        times_ms = times_ms[by_partition]
    elif (times_ms[1:] >= times_ms[:-1]).all():
        return None
    by_time = times_ms.argsort(kind="stable")
    return by_time if by_partition is None else by_partition[by_time]


def _sorted(rows: pl.DataFrame) -> NDArray[np.int64]:
    return rows.select(pl.arg_sort_by(ORDER)).to_series().to_numpy().astype(np.int64)
