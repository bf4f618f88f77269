"""Tagging: what a row is, said beside it and never instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from streams.declared import Place, here

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


Tagging = Tag | Slice


def named_tags(tagging: Sequence[Tagging]) -> list[Tag]:
    """Those that rows carry by name."""
    return [t for t in tagging if isinstance(t, Tag)]


def tags(tagging: Sequence[Tagging]) -> pl.Expr:
    """List of the names of a row's tags, in their declared order."""
    named = named_tags(tagging)
    if not named:
        return pl.lit([], dtype=pl.List(pl.String))
    each = [pl.when(t.when.fill_null(value=False)).then(pl.lit(t.name)) for t in named]
    return pl.concat_list(each).list.drop_nulls()
