"""Cleaning: which rows a pipeline will not have, and why.

A rule is a Polars expression that is true for a good row. A row that fails one is a dead letter with
the rule's name, except a duplicate (`streams.dedupe`): that is dropped and counted, since the row itself
is in already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from polars.exceptions import PanicException, PolarsError

from schemas.dead_letter import Reason
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms
from streams.evaluate import evaluate
from streams.mend import Mend, cap, impute, normalise_units
from streams.streak import Streaks

__all__ = [
    "DEDUPE",
    "Cleaning",
    "Dedupe",
    "Failed",
    "Mend",
    "Rule",
    "between",
    "cap",
    "dedupe",
    "failing",
    "impute",
    "matches",
    "normalise_units",
    "one_of",
    "require",
    "rule",
]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A named condition that every row must meet; null counts as not met."""

    name: str
    keep: pl.Expr
    reason: Reason = "rule"
    detail: str
    unit: str = ""
    holds: tuple[str, ...] = ()
    """Where `keep` asks for nothing but a value in these columns."""
    place: Place = field(default_factory=here, compare=False)

    def columns(self) -> list[str]:
        """Columns that the rule reads."""
        return self.keep.meta.root_names()

    def keep_of(self, schema: pl.Schema) -> pl.Expr:
        """`keep`, written for columns of these types: as text a number costs ten times its own comparison."""
        if not self.holds or any(name not in schema for name in self.holds):
            return self.keep
        return pl.all_horizontal(
            pl.col(name).str.len_bytes() > 0 if schema[name] == pl.String else pl.col(name).is_not_null()
            for name in self.holds
        )


DEDUPE = "dedupe"


@dataclass(frozen=True, kw_only=True)
class Dedupe:
    """Drop a row whose key is in the dataset within `within_ms` of event time before or after it."""

    within_ms: int
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
        holds=columns,
    )


def between(column: str, low: float, high: float, *, unit: str = "") -> Rule:
    """A number must lie in [low, high]; NaN and infinities do not. A null passes: see `require`.

    Args:
        unit: of the column and both ends, for the people who read a dead letter.
    """
    if low > high:
        raise InvalidPipeline(
            here(), f"between({column!r}, {low}, {high}): the low end is above the high end"
        )
    value = pl.col(column)
    return Rule(
        name=f"between({column})",
        keep=value.is_null() | value.is_between(low, high),
        reason="out_of_range",
        detail=f"{column} must lie in [{low}, {high}]{f' {unit}' if unit else ''}",
        unit=unit,
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


def matches(column: str, pattern: str) -> Rule:
    """Text must match a regular expression of Rust's dialect from end to end. A null passes: see `require`.

    Raises:
        InvalidPipeline: it is no regular expression.
    """
    whole = f"^(?:{pattern})$"
    try:
        pl.Series([""]).str.contains(whole)
    except PolarsError as error:
        said = str(error).strip().splitlines()[-1]
        raise InvalidPipeline(here(), f"matches({column!r}): {pattern!r} is no pattern: {said}") from error
    return Rule(
        name=f"matches({column})",
        keep=pl.col(column).is_null() | pl.col(column).str.contains(whole),
        detail=f"{column} must match {pattern}",
    )


def rule(name: str, keep: pl.Expr, *, detail: str = "") -> Rule:
    """Any condition of one's own, true for a good row."""
    return Rule(name=name, keep=keep, detail=detail or f"the rule {name} must hold")


def dedupe(*, within: str) -> Dedupe:
    """Drop repeats of a key within this much event time.

    A worker remembers the keys of that span, at some 40 bytes each and the key: of an hour at 1,000 events a
    second 200 MB, of a day 5 GB.
    """
    return Dedupe(within_ms=to_ms(within))


Cleaning = Rule | Mend | Dedupe


@dataclass(frozen=True, slots=True)
class Failed:
    """A row's position, the index of the first rule that it fails, and what that rule raised on it."""

    position: int
    rule: int
    error: str = ""


def _kept(rows: pl.DataFrame, rules: Sequence[Rule]) -> list[pl.Series]:
    """By rule, whether it keeps each row.

    Raises:
        PolarsError, PanicException: a rule fails on a row.
    """
    if not rules or rows.height == 0:
        return []
    # Beside a column of the frame a rule that is one constant holds for each of its rows.
    asked = (r.keep_of(rows.schema).fill_null(value=False).alias(f"_keep{i}") for i, r in enumerate(rules))
    return rows.select(rows.columns[0], *asked).get_columns()[1:]


def failing(rows: pl.DataFrame, rules: Sequence[Rule], streaks: Streaks | None = None) -> list[Failed]:
    """The rows that fail a rule, or on which a rule itself fails; in their order.

    Args:
        streaks: counts the rows on end that a rule fails on by itself; `rows` have their place then.

    Raises:
        FailsOnAll: a rule itself fails on every row that comes.
    """
    try:
        kept = _kept(rows, rules)
    except (PolarsError, PanicException):
        return _failing_one_by_one(rows, rules, streaks)
    if streaks is not None and rows.height:
        streaks.worked(_said(each) for each in rules)
    first: dict[int, int] = {}
    for number, own in enumerate(kept):
        if not own.all():
            for position in (~own).arg_true():
                first.setdefault(position, number)
    return [Failed(position, rule) for position, rule in sorted(first.items())]


def _failing_one_by_one(rows: pl.DataFrame, rules: Sequence[Rule], streaks: Streaks | None) -> list[Failed]:
    found: dict[int, Failed] = {}
    for number, each in enumerate(rules):
        kept, broken = evaluate(rows, each.keep)
        if streaks is not None:
            streaks.note(_said(each), rows, broken, each.keep, each.place)
        for position in kept.fill_null(value=False).not_().arg_true():
            found.setdefault(position, Failed(position, number, broken.get(position, "")))
    return [found[position] for position in sorted(found)]


def _said(each: Rule) -> str:
    return f"rule {each.name}"
