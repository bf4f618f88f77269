"""Accounts of a commit's rows, by pane.

They are told by walks that numba compiles; of sessions by key, and while there is no compiled walk, by numpy:
the same to the last bit, since every sum is exact.
"""

from __future__ import annotations

import polars as pl

from streams.compiled import walks
from streams.summary import by_numpy, by_walk
from streams.summary.account import Account
from streams.window import Pane

FEWEST = 8_192
"""Rows that are worth loading the walks for. What is loaded takes half of numpy's time, of ten rows, too."""


def summarise(rows: pl.DataFrame, *, start: pl.Expr, key: pl.Expr | None = None) -> dict[Pane, Account]:
    """Accounts of cleaned and tagged rows by pane: by its start and, for sessions by key, the key.

    Sums are of the numeric columns that are no meta column; nulls, NaN and numbers beyond 2^500 do not count.
    """
    if rows.height == 0:
        return {}
    if key is None and (compiled := walks(ask=rows.height >= FEWEST)) is not None:
        found = by_walk.accounts(rows, start, compiled.accounts)
        if found is not None:
            return found
    return by_numpy.accounts(rows, start, key)
