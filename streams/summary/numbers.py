"""Which of a row's numbers an account sums up, and how they are handed to what does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streams.summary.account import Sums
from streams.summary.exact import Floats

SumsOf = Iterable[tuple[int, Sums]]
"""Of one column: the numbers of panes that have a value, and its sums."""

HALF_BITS = 21
"""Of whole numbers within 2^(2 * HALF_BITS), so many can be squared in halves and added up within 64 bits."""
_MOST_WHOLE = 1 << 20


def sums_by_pane(
    rows: pl.DataFrame,
    panes: int,
    *,
    wholes: Callable[[NDArray[np.int64]], SumsOf],
    reals: Callable[[Floats], SumsOf],
) -> list[dict[str, Sums]]:
    """By the number of the pane, the sums of the numeric columns that are no meta column.

    Args:
        wholes: adds up a column of whole numbers (N,).
        reals: adds up any other column (N,), NaN where there is no value.
    """
    found: list[dict[str, Sums]] = [{} for _ in range(panes)]
    for name, dtype in sorted(rows.schema.items()):
        if dtype.is_numeric() and not name.startswith("_"):
            column = rows.get_column(name)
            for pane, sums in (
                wholes(column.cast(pl.Int64).to_numpy()) if _are_whole(column) else reals(_reals_of(column))
            ):
                found[pane][name] = sums
    return found


def _are_whole(column: pl.Series) -> bool:
    """Whether its sums can be had by whole numbers: a time or a count needs no floats to be exact."""
    if not column.dtype.is_integer() or column.null_count() or not 0 < column.len() < _MOST_WHOLE:
        return False
    low, high = int(column.min()), int(column.max())  # type: ignore[arg-type]
    return low > -(1 << 2 * HALF_BITS) and high < 1 << 2 * HALF_BITS


def _reals_of(column: pl.Series) -> Floats:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
