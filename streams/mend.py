"""Mending: values that are changed instead of refused, and the row says so by a tag.

Each is a Polars expression over the row's own columns, in the order of the pipeline's `clean`: a rule behind
it sees the mended value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from streams.declared import InvalidPipeline, Place, here


@dataclass(frozen=True, kw_only=True)
class Mend:
    """Where `where` is true (null counts as false) the columns of `sets` take their new values.

    Attributes:
        name: as it stands in the check's and the dead letters' words.
        tag: what a changed row carries; empty: nothing, since no information is lost.
        known: rows for which this is not true cannot be mended, and are refused.
    """

    name: str
    sets: Mapping[str, pl.Expr]
    where: pl.Expr
    tag: str = ""
    known: pl.Expr | None = None
    detail: str = ""
    place: Place = field(default_factory=here, compare=False)

    def expressions(self) -> list[pl.Expr]:
        """All that it evaluates."""
        return [self.where, *self.sets.values(), *([] if self.known is None else [self.known])]


def impute(column: str, value: Any, *, tag: str = "") -> Mend:
    """Give rows without a value (null or NaN) one: a constant, or an expression of the row's own columns.

    The row is tagged `imputed(column)`: a model may want to know, and an engineer how many there are.
    """
    fill = value if isinstance(value, pl.Expr) else pl.lit(value)
    # Only numbers have NaN, and only of numbers may one ask.
    number = pl.col(column).cast(pl.Float64, strict=False)
    nan = pl.lit(value=False) if isinstance(value, str) else number.is_nan().fill_null(value=False)
    return Mend(
        name=f"impute({column})",
        sets={column: fill},
        where=pl.col(column).is_null() | nan,
        tag=tag or f"imputed({column})",
    )


def cap(column: str, low: float | None = None, high: float | None = None, *, tag: str = "") -> Mend:
    """Bring a number beyond an end to that end; the row is tagged `capped(column)`. NaN and null stay.

    Raises:
        InvalidPipeline: no end is given, or the low one is above the high one.
    """
    if low is None and high is None:
        raise InvalidPipeline(here(), f"cap({column!r}) caps nothing; give low=, high= or both")
    if low is not None and high is not None and low > high:
        raise InvalidPipeline(here(), f"cap({column!r}, {low}, {high}): the low end is above the high end")
    value = pl.col(column)
    beyond = pl.lit(value=False)
    if low is not None:
        beyond |= value < low
    if high is not None:
        # In Polars NaN is above every number.
        beyond |= (value > high) & ~value.is_nan()
    ends = [low if low is None else pl.lit(low), high if high is None else pl.lit(high)]
    return Mend(
        name=f"cap({column})",
        sets={column: value.clip(*ends)},
        where=beyond,
        tag=tag or f"capped({column})",
    )


def normalise_units(
    column: str, *, unit_in: str, to: str, factors: Mapping[str, float | tuple[float, float]]
) -> Mend:
    """Bring numbers to one unit; rows in a unit that is not listed are refused.

        normalise_units("temp", unit_in="unit", to="C", factors={"F": (5 / 9, -160 / 9), "K": (1, -273.15)})

    Args:
        unit_in: the column that names a row's unit; it says `to` afterwards.
        factors: by unit the factor, or (factor, summand), that leads to `to`.

    Raises:
        InvalidPipeline: no other unit is listed, or `to` has another factor than 1.
    """
    linear = {u: f if isinstance(f, tuple) else (float(f), 0.0) for u, f in factors.items()}
    if linear.setdefault(to, (1.0, 0.0)) != (1.0, 0.0):
        raise InvalidPipeline(here(), f"normalise_units({column!r}): {to!r} is the unit itself, its factor 1")
    if len(linear) < 2:
        raise InvalidPipeline(here(), f"normalise_units({column!r}): name the other units by factors=")
    unit = pl.col(unit_in)

    def of_unit(part: int) -> pl.Expr:
        return unit.replace_strict(
            {u: f[part] for u, f in linear.items()}, default=None, return_dtype=pl.Float64
        )

    return Mend(
        name=f"normalise_units({column})",
        sets={column: pl.col(column) * of_unit(0) + of_unit(1), unit_in: pl.lit(to)},
        where=unit != to,
        known=pl.col(column).is_null() | unit.is_in(list(linear)),
        detail=f"{unit_in} must be one of {', '.join(sorted(linear))}",
    )
