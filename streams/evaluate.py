"""Evaluating an engineer's expression on rows it has never seen: one row it fails on costs no other."""

from __future__ import annotations

import polars as pl
from polars.exceptions import PanicException, PolarsError


def evaluate(rows: pl.DataFrame, expression: pl.Expr) -> tuple[pl.Series, dict[int, str]]:
    """The expression's value for each row, and what it raised, by the positions of rows it fails on.

    An expression that raises does so for a whole frame: the rows at fault are found by halving it.

    Returns:
        Series of the frame's height, null where the expression raised; messages by position.
    """
    try:
        return _value(rows, expression), {}
    except (PolarsError, PanicException) as error:
        if rows.height <= 1:
            return pl.Series("value", [None] * rows.height), dict.fromkeys(range(rows.height), _said(error))
    half = rows.height // 2
    first, broken = evaluate(rows[:half], expression)
    second, more = evaluate(rows[half:], expression)
    broken |= {half + position: said for position, said in more.items()}
    return pl.concat([first.to_frame(), second.to_frame()], how="vertical_relaxed").to_series(), broken


def _value(rows: pl.DataFrame, expression: pl.Expr) -> pl.Series:
    # A literal or an aggregate has one value; beside a column of the frame it is spread over its rows.
    return rows.with_columns(expression.alias("value")).get_column("value")


def _said(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
