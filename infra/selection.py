"""Which rows of a range a training sees: `schemas.selection`, applied.

Each row draws a number between 0 and 1 from its own identity and the seed. Weighted sampling without
replacement takes the smallest of -ln(number) / weight (Efraimidis and Spirakis, 2006), so that a sample of
all rows is also the sample of the samples of any parts: neither order nor batching can change it.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from infra.row_order import PLACE
from schemas.selection import Balanced, Decay, Hard, Reservoir, Selection, Whole

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def select(
    rows: pl.DataFrame,
    selection: Selection,
    *,
    seed: int,
    end_ms: int,
    losses: np.ndarray | None = None,
) -> pl.DataFrame:
    """The rows that the policy takes, in the order in which they came.

    Args:
        rows: of one source, with `_partition`, `_offset`, `_row` and `_time`, and what the policy groups by.
        seed: any integer.
        end_ms: end of the range, from which `Decay` counts back, in epoch ms.
        losses: (N,) of the live model, for `Hard`; None where there is none.
    """
    if isinstance(selection, Whole) or rows.height <= selection.rows:
        return rows
    drawn = _draws(rows, seed)
    match selection:
        case Reservoir():
            clock = drawn
        case Decay(half_life_ms=half_life_ms):
            # In logarithms: 2^-age of a row far back is too small for a float.
            age = (end_ms - rows.get_column("_time").to_numpy()) / half_life_ms
            clock = np.log(-np.log(drawn)) + age * np.log(2.0)
        case Hard(floor=floor):
            clock = drawn if losses is None else -np.log(drawn) / (np.maximum(losses, 0.0) + floor)
        case Balanced(by=by):
            clock = _turns(rows, by, drawn)
    return rows[np.sort(_first(rows, clock, selection.rows))]


def _first(rows: pl.DataFrame, clock: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest; rows that draw alike in the order of their identity."""
    places = [rows.get_column(name).to_numpy() for name in reversed(PLACE)]
    return np.lexsort((*places, clock))[:count]


def _turns(rows: pl.DataFrame, by: str, drawn: np.ndarray) -> np.ndarray:
    """In which turn a row is taken when every group gives one row a turn, in the order of what they drew."""
    group = rows.get_column(by)
    if isinstance(group.dtype, pl.List):
        group = group.fill_null([]).list.unique().list.sort().list.join("\x1f")
    told = pl.DataFrame({"group": group.cast(pl.String), "drawn": drawn}).with_row_index("place")
    told = told.with_columns(rows.select(PLACE)).sort("drawn", *PLACE)
    told = told.with_columns(turn=pl.int_range(pl.len()).over("group"))
    # Within a turn, by the group's name: any order will do that is the same for everybody.
    order = told.sort("turn", "group", nulls_last=True).get_column("place").to_numpy()
    clock = np.empty(len(order))
    clock[order] = np.arange(len(order))
    return clock


def _draws(rows: pl.DataFrame, seed: int) -> np.ndarray:
    """A number in (0, 1) for each row by its identity: splitmix64 (Steele, Lea and Flood, 2014), chained."""
    state = np.full(rows.height, seed % 2**64, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for name in PLACE:
            state = _mixed(state ^ rows.get_column(name).cast(pl.Int64).to_numpy().view(np.uint64))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(state: np.ndarray) -> np.ndarray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
