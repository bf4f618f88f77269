"""Tagging: what a row is, said beside it and never instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from infra.point_in_time import labels_before, labels_differ
from schemas.features import Label
from schemas.lookback import Lookback
from streams.declared import InvalidPipeline, Place, here

LATE = "late"
"""Set by Tidemill on a row whose window had closed when it came."""


@dataclass(frozen=True)
class Tag:
    """Rows for which `when` is true carry `name`; null counts as false."""

    name: str
    when: pl.Expr
    place: Place = field(default_factory=here, compare=False)

    def columns(self) -> list[str]:
        """Columns that the tag reads."""
        return self.when.meta.root_names()


@dataclass(frozen=True)
class Slice:
    """A column whose values part the rows into groups that are judged one by one."""

    column: str
    place: Place = field(default_factory=here, compare=False)


@dataclass(frozen=True)
class Behind:
    """A tag that judges a row by the rows before it; `streams.unusual` declares them."""

    lookback: Lookback
    place: Place = field(default_factory=here, compare=False)


@dataclass(frozen=True)
class ByModel:
    """Rows that the newest version of a published model gives a chance of at least `above` carry `name`."""

    name: str
    model: str
    above: float
    place: Place = field(default_factory=here, compare=False)


def by_model(name: str, model: str, *, above: float = 0.5) -> ByModel:
    """Tag rows by a published model: those that it gives a chance of at least `above`.

    It sees the row's own columns and those that its source derives. Its version stands in the commit; a row
    that came before any version of it was there is not tagged.

    Args:
        model: its name, as services follow it.
        above: a chance, 0 to 1.

    Raises:
        InvalidPipeline: `above` is no chance.
    """
    if not 0 <= above <= 1:
        raise InvalidPipeline(
            here(), f"by_model({name!r}): above={above} is no chance; write one from 0 to 1"
        )
    return ByModel(name, model, above)


@dataclass(frozen=True)
class OfLabels:
    """A tag that only labels tell: events carry `name` where windows are counted and shown, rows never do."""

    name: str
    place: Place = field(default_factory=here, compare=False)

    def of(self, events: pl.DataFrame, labels: pl.DataFrame, label: Label) -> pl.Series:
        """Which events carry it: (N,), in their order."""
        raise NotImplementedError


@dataclass(frozen=True)
class Contradicted(OfLabels):
    """Events for whose key two labels came that differ."""

    def of(self, events: pl.DataFrame, labels: pl.DataFrame, label: Label) -> pl.Series:
        return labels_differ(events, labels, label)


@dataclass(frozen=True)
class Foretold(OfLabels):
    """Events whose label is older than they are."""

    def of(self, events: pl.DataFrame, labels: pl.DataFrame, label: Label) -> pl.Series:
        return labels_before(events, labels, label)


def contradicted(name: str = "contradicted") -> Contradicted:
    """Tag events whose labels contradict each other: two came within the label's `within`, and they differ.

    It is known only once labels have come: it is counted in a window's profile, of the labels that were there
    when the window closed. No row and no feature row carries it, so no model sees it. The first label by
    event time counts for trainings, as ever. `edge_cases("contradicted", rows=…)` asks for a training by it.
    """
    return Contradicted(name)


def foretold(name: str = "foretold") -> Foretold:
    """Tag events whose label came before them: suspected leakage, since a feature may have seen the answer.

    Counted as `contradicted` is, of the labels that features may look back to. The gate refuses a training on
    many such rows as well. `edge_cases("foretold", rows=…)` tells of them window by window.
    """
    return Foretold(name)


Tagging = Tag | Slice | Behind | ByModel | OfLabels


def tag_names(tagging: Sequence[Tagging]) -> list[str]:
    """Names of all tags that the dataset's rows may carry by them."""
    return [t.name for t in tagging if isinstance(t, Tag | ByModel)]


def named_tags(tagging: Sequence[Tagging]) -> list[Tag]:
    """Those that an expression of the row gives."""
    return [t for t in tagging if isinstance(t, Tag)]


_AT_ONCE = 8


def tags(tagging: Sequence[Tagging]) -> pl.Expr:
    """List of the names of a row's tags, in their declared order."""
    named = named_tags(tagging)
    groups = [_tags_of(named[at : at + _AT_ONCE]) for at in range(0, len(named), _AT_ONCE)]
    if not groups:
        return pl.lit([], dtype=pl.List(pl.String))
    return groups[0] if len(groups) == 1 else pl.concat_list(groups)


def _tags_of(named: Sequence[Tag]) -> pl.Expr:
    """Which of a few tags a row has is a number, and the number's list lies ready.

    Making a list for each row took 400 ns a tag, more than all other cleaning; this takes 5 to 8.
    """
    lists = [[t.name for i, t in enumerate(named) if code >> i & 1] for code in range(1 << len(named))]
    bits = [t.when.fill_null(value=False).cast(pl.UInt32) * (1 << i) for i, t in enumerate(named)]
    # Beside a column of the frame a condition that is one constant holds for each of its rows.
    code = pl.sum_horizontal(pl.repeat(0, pl.len(), dtype=pl.UInt32), *bits)
    return pl.lit(pl.Series(lists, dtype=pl.List(pl.String))).gather(code)
