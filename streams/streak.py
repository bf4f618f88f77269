"""Telling a wrong expression from wrong rows: how many rows on end it has failed on, over batches.

A lone producer that sends a hundred rows which make a rule raise is no reason to stop for all: its rows are
refused. An expression that fails on every row of many, out of several fetches, is wrong itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from streams.declared import InvalidPipeline, Place

_SEASONED = 10
"""So many times more rows are asked for where the expression has worked before: it is likelier right."""


class FailsOnAll(InvalidPipeline):
    """An expression fails on every row that comes: it is wrong itself, and no row would be left."""


@dataclass(slots=True)
class _Streak:
    rows: int = 0
    frames: int = 0
    up_to: dict[int, int] = field(default_factory=dict)
    """By partition, the last offset that counts: a batch that is read again counts once."""


@dataclass(slots=True)
class Streaks:
    """The streaks of one source's expressions, by their names. A row that one works on ends its streak.

    Attributes:
        rows: that it must have failed on in a row, ten times as many if it has worked since the worker began.
        frames: fetches of a partition that these must come from.
    """

    rows: int = 1_000
    frames: int = 3
    _failing: dict[str, _Streak] = field(default_factory=dict)
    _worked: set[str] = field(default_factory=set)

    def worked(self, names: Iterable[str]) -> None:
        """These expressions gave a value for some row at least."""
        for name in names:
            self._worked.add(name)
            self._failing.pop(name, None)

    def note(
        self, name: str, rows: pl.DataFrame, broken: Mapping[int, str], expression: pl.Expr, place: Place
    ) -> None:
        """An expression was evaluated on these rows, and raised on those at the positions of `broken`.

        Args:
            rows: with `_partition`, `_offset` and `_frame`.

        Raises:
            FailsOnAll: with the line and the columns. The batch is not to be committed: it is read again.
        """
        if rows.height == 0:
            return
        if len(broken) < rows.height:
            self.worked([name])
            return
        streak = self._failing.setdefault(name, _Streak())
        for (number,), own in rows.group_by("_partition"):
            fresh = own.filter(pl.col("_offset") > streak.up_to.get(number, -1))
            if fresh.height:
                streak.rows += fresh.height
                streak.frames += fresh.get_column("_frame").n_unique()
                streak.up_to[number] = fresh.get_column("_offset").max()  # type: ignore[assignment]
        least = self.rows * (_SEASONED if name in self._worked else 1)
        if streak.rows >= least and streak.frames >= self.frames:
            read = ", ".join(repr(column) for column in expression.meta.root_names()) or "no column"
            before = streak.rows - rows.height
            dead = f"; {before:,} before them are dead letters" if before > 0 else ""
            raise FailsOnAll(
                place,
                f"{name}, which reads {read}, fails on all {streak.rows:,} rows that came last: "
                f"{broken[0]}. Mend it and start again: the {rows.height:,} of this batch are not committed, "
                f"and are read then{dead}",
            )
