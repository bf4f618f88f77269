"""Cleaning: which rows a pipeline will not have, and why.

A rule is a Polars expression that is true for a good row. A row that fails one is a dead letter with
the rule's name, except a duplicate: that is dropped and counted, since the row itself is in already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from schemas.dead_letter import Reason
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A named condition that every row must meet; null counts as not met."""

    name: str
    keep: pl.Expr
    reason: Reason = "rule"
    detail: str
    place: Place = field(default_factory=here, compare=False)

    def columns(self) -> list[str]:
        """Columns that the rule reads."""
        return self.keep.meta.root_names()


@dataclass(frozen=True, kw_only=True)
class Dedupe:
    """Drop a row whose key was seen within `within_ms` of event time before or after it."""

    within_ms: int
    name: str = "dedupe"
    place: Place = field(default_factory=here, compare=False)


def require(*columns: str) -> Rule:
    """These columns must hold a value: no null, no empty text."""
    if not columns:
        raise InvalidPipeline(here(), "require() names no column; name at least one")
    # Comparing the text of a value works for every type and is only empty for empty text.
    present = [pl.col(c).is_not_null() & (pl.col(c).cast(pl.String).fill_null("x") != "") for c in columns]
    return Rule(
        name=f"require({', '.join(columns)})",
        keep=pl.all_horizontal(present),
        reason="missing",
        detail=f"{', '.join(columns)} must hold a value",
    )


def between(column: str, low: float, high: float) -> Rule:
    """A number must lie in [low, high]; NaN and infinities do not. A null passes: see `require`."""
    if low > high:
        raise InvalidPipeline(
            here(), f"between({column!r}, {low}, {high}): the low end is above the high end"
        )
    value = pl.col(column)
    return Rule(
        name=f"between({column})",
        keep=value.is_null() | value.is_between(low, high),
        reason="out_of_range",
        detail=f"{column} must lie in [{low}, {high}]",
    )


def one_of(column: str, values: Iterable[Any]) -> Rule:
    """A value must be one of these. A null passes: see `require`."""
    allowed = list(values)
    return Rule(
        name=f"one_of({column})",
        keep=pl.col(column).is_null() | pl.col(column).is_in(allowed),
        reason="out_of_range",
        detail=f"{column} must be one of {allowed}",
    )


def rule(name: str, keep: pl.Expr, *, detail: str = "") -> Rule:
    """Any condition of one's own, true for a good row."""
    return Rule(name=name, keep=keep, detail=detail or f"the rule {name} must hold")


def dedupe(*, within: str) -> Dedupe:
    """Drop repeats of a key within this much event time."""
    return Dedupe(within_ms=to_ms(within))


Cleaning = Rule | Dedupe


def failures(rows: pl.DataFrame, rules: Sequence[Rule]) -> pl.Series:
    """For each row the index of the first rule that it fails, null where it passes all.

    Returns:
        UInt32 series of the frame's height.
    """
    if not rules or rows.height == 0:
        return pl.Series("failed", [None] * rows.height, dtype=pl.UInt32)
    first = pl.coalesce(
        *(
            pl.when(~r.keep.fill_null(value=False)).then(pl.lit(i, dtype=pl.UInt32))
            for i, r in enumerate(rules)
        )
    )
    return rows.select(first.alias("failed")).to_series()


class Seen:
    """The keys of a dedupe's horizon, for one source. Rebuilt from the dataset after a restart."""

    def __init__(self, key: str, within_ms: int) -> None:
        self.key, self.within_ms = key, within_ms
        self._seen: pl.DataFrame | None = None

    def forget_all(self) -> None:
        """As new: what is remembered is read from the dataset next."""
        self._seen = None

    def remember(self, rows: pl.DataFrame, *, forget_before_ms: int | None = None) -> None:
        """Add rows that are in the dataset; forget what no row can repeat any more."""
        fresh = rows.select(self.key, pl.col("_time").alias("_seen"))
        seen = fresh if self._seen is None else pl.concat([self._seen, fresh])
        if forget_before_ms is not None:
            seen = seen.filter(pl.col("_seen") >= forget_before_ms - self.within_ms)
        self._seen = seen

    def repeats(self, rows: pl.DataFrame) -> pl.Series:
        """True for a row that repeats a remembered one, or an earlier one of the same frame."""
        near = (pl.col("_time") - pl.col("_seen")).abs() <= self.within_ms
        first = pl.col("_time").first().over(self.key)
        later = pl.int_range(pl.len()).over(self.key) > 0
        here_ = (later & ((pl.col("_time") - first).abs() <= self.within_ms)).alias("_here")
        marked = rows.select(self.key, "_time", here_).with_row_index("_index")
        if self._seen is None or self._seen.height == 0:
            return marked.get_column("_here")
        met = marked.join(self._seen, on=self.key, how="inner").filter(near).get_column("_index").unique()
        return marked.select(pl.col("_here") | pl.col("_index").is_in(met.implode())).to_series()
