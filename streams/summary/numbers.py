"""Which of a row's numbers an account sums up, and how they are handed to what does."""

from __future__ import annotations

import polars as pl

from streams.summary.exact import Floats

HALF_BITS = 21
"""Of whole numbers within 2^(2 * HALF_BITS), so many can be squared in halves and added up within 64 bits."""
_MOST_WHOLE = 1 << 20


def counted(rows: pl.DataFrame) -> list[pl.Series]:
    """The numeric columns that are no meta column, by name."""
    names = sorted(n for n, dtype in rows.schema.items() if dtype.is_numeric() and not n.startswith("_"))
    return [rows.get_column(name) for name in names]


def are_whole(column: pl.Series) -> bool:
    """Whether its sums can be had by whole numbers: a time or a count needs no floats to be exact."""
    if not column.dtype.is_integer() or column.null_count() or not 0 < column.len() < _MOST_WHOLE:
        return False
    low, high = int(column.min()), int(column.max())  # type: ignore[arg-type]
    return low > -(1 << 2 * HALF_BITS) and high < 1 << 2 * HALF_BITS


def reals_of(column: pl.Series) -> Floats:
    """Its values (N,), NaN where there is none."""
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
