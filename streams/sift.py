"""Which of a source's decoded rows stay, and what is said of the others: cleaning, deriving, tagging.

An engineer's expression that fails on a row refuses that row alone, under the expression's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from schemas.dead_letter import Reason
from streams.clean import Cleaning, Dedupe, Mend, Rule, failing
from streams.declared import Place
from streams.decode.refused import Refused, refuse_rows
from streams.evaluate import evaluate
from streams.keep import keep
from streams.locate import Now
from streams.pipeline import Source
from streams.streak import Streaks
from streams.summary.account import Account, merge
from streams.tag import Tagging, named_tags, tags
from streams.transport.frame import Frame
from streams.window import Pane


@dataclass(slots=True)
class Tally:
    """What is said of a source's rows that do not come into the dataset, by rule and by pane."""

    frames: list[Frame]
    pane_start: pl.Expr | None
    streaks: Streaks = field(default_factory=Streaks)
    refused: list[Refused] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    accounts: dict[Pane, Account] = field(default_factory=dict)

    def refuse(self, bad: pl.DataFrame, rule: Rule, *, error: str = "") -> None:
        """Rows that become dead letters."""
        detail = f"the rule failed on it: {error}" if error else rule.detail
        reason: Reason = "rule" if error else rule.reason
        self.refused += refuse_rows(self.frames, bad, reason, rule.name, detail)
        for pane, count in self._by_pane(bad):
            self.add(pane, Account(rejected={rule.name: count}))

    def drop(self, repeats: pl.DataFrame, rule: str) -> None:
        """Rows that are in the dataset already."""
        self.dropped[rule] = repeats.height
        for pane, count in self._by_pane(repeats):
            self.add(pane, Account(dropped={rule: count}))

    def add(self, pane: Pane, account: Account) -> None:
        """More about one pane."""
        known = self.accounts.get(pane)
        self.accounts[pane] = account if known is None else merge(known, account)

    def _by_pane(self, rows: pl.DataFrame) -> list[tuple[Pane, int]]:
        if self.pane_start is None:
            return []
        starts = Counter(rows.select(self.pane_start.alias("start")).to_series().to_list())
        return [(Pane(start_ms), count) for start_ms, count in sorted(starts.items())]


# 140,000 years either way: so that a window's bounds, too, are numbers that JSON can say exactly.
_FARTHEST_MS = 2**52


def timed(source: Source, rows: pl.DataFrame, now: Now, tally: Tally) -> pl.DataFrame:
    """Rows with a key and an event time that can be: what no window could hold is counted in none.

    Args:
        now: how late it is for each row.
    """
    if _surely_timed(source, rows, now):
        return rows
    limit_ms = now.each_ms + source.future_ms
    by_nothing = replace(tally, pane_start=None, refused=[])
    rules = [
        Rule(
            name=f"has({source.event_time}, {source.key})",
            keep=pl.col("_time").is_not_null() & pl.col(source.key).is_not_null(),
            reason="missing",
            detail=f"{source.event_time} and {source.key} must hold a value",
            place=source.place,
        ),
        Rule(
            name=f"is_a_time({source.event_time})",
            keep=pl.col("_time").is_between(-_FARTHEST_MS, _FARTHEST_MS),
            reason="out_of_range",
            detail=f"{source.event_time} must be epoch milliseconds",
            place=source.place,
        ),
        Rule(
            name=f"not_in_the_future({source.event_time})",
            keep=pl.col("_time") <= limit_ms,
            reason="future_event_time",
            detail=f"{source.event_time} lies more than {source.future} ahead of the clock",
            place=source.place,
        ),
    ]
    rows = cleaned(rules, rows, by_nothing)
    tally.refused += by_nothing.refused
    return rows


def _surely_timed(source: Source, rows: pl.DataFrame, now: Now) -> bool:
    """Whether the ends of all times tell it, as they nearly always do."""
    times_ms = rows.get_column("_time")
    if times_ms.null_count() or rows.get_column(source.key).null_count():
        return False
    if rows.is_empty():
        return True
    earliest_ms: Any = times_ms.min()
    latest_ms: Any = times_ms.max()
    return earliest_ms >= -_FARTHEST_MS and latest_ms <= min(_FARTHEST_MS, now.earliest_ms + source.future_ms)


def cleaned(rules: Sequence[Rule], rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Rows that every rule keeps."""
    failed = failing(rows, rules, tally.streaks)
    if not failed:
        return rows
    groups: dict[tuple[int, str], list[int]] = {}
    for each in failed:
        groups.setdefault((each.rule, each.error), []).append(each.position)
    for (number, error), positions in sorted(groups.items()):
        tally.refuse(rows[positions], rules[number], error=error)
    return _but(rows, [each.position for each in failed])


def sifted(steps: Sequence[Cleaning], rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Rows that the rules keep, mended on the way; each step sees what those before it left.

    What was mended stands in `_marks`, for `tagged`.
    """
    waiting: list[Rule] = []
    for step in steps:
        if isinstance(step, Rule):
            waiting.append(step)
        elif not isinstance(step, Dedupe):
            rows = _mended(step, cleaned(waiting, rows, tally), tally)
            waiting = []
    return cleaned(waiting, rows, tally)


def _mended(mend: Mend, rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    if mend.known is not None:
        keep = Rule(
            name=mend.name, keep=mend.known, reason="out_of_range", detail=mend.detail, place=mend.place
        )
        rows = cleaned([keep], rows, tally)
    types = rows.schema
    new = {c: pl.when(_WHERE).then(e.cast(types[c])).otherwise(pl.col(c)) for c, e in mend.sets.items()}
    where = mend.where.fill_null(value=False).alias(_WHERE.meta.output_name())
    try:
        marked = rows.with_columns(where)
        if not marked.select(_WHERE.any()).item():
            return rows
        marked = marked.with_columns(**new)
        tally.streaks.worked([mend.name])
    except (PolarsError, PanicException):
        # A value is computed for all rows, also for those that keep theirs.
        values = {f"{mend.name}": (pl.when(where).then(e.cast(types[c]))) for c, e in mend.sets.items()}
        rows = _without_broken(values, rows, tally, mend.place)
        marked = rows.with_columns(where).with_columns(**new)
    if mend.tag:
        before = pl.col("_marks") if "_marks" in rows.columns else pl.lit([], dtype=pl.List(pl.String))
        with_it = pl.concat_list(before, pl.lit(mend.tag))
        marked = marked.with_columns(pl.when(_WHERE).then(with_it).otherwise(before).alias("_marks"))
    return marked.drop(_WHERE.meta.output_name())


_WHERE = pl.col("_where")


def derived(derive: Mapping[str, pl.Expr], rows: pl.DataFrame, tally: Tally, place: Place) -> pl.DataFrame:
    """Rows with their derived columns, each computed from the record's own."""
    try:
        derived = rows.with_columns(**derive)
        if rows.height:
            tally.streaks.worked(f"derive({name})" for name in derive)
        return derived
    except (PolarsError, PanicException):
        named = {f"derive({name})": e for name, e in derive.items()}
        return _without_broken(named, rows, tally, place).with_columns(**derive)


def tagged(tagging: Sequence[Tagging], rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Rows with their tags, behind what was mended on them."""
    try:
        rows = rows.with_columns(tags(tagging).alias("_tags"))
        if rows.height:
            tally.streaks.worked(f"tag({tag.name})" for tag in named_tags(tagging))
    except (PolarsError, PanicException):
        for tag in named_tags(tagging):
            rows = _without_broken({f"tag({tag.name})": tag.when}, rows, tally, tag.place)
        rows = rows.with_columns(tags(tagging).alias("_tags"))
    if "_marks" in rows.columns:
        rows = rows.with_columns(_tags=pl.concat_list("_marks", "_tags")).drop("_marks")
    return rows


def _without_broken(
    expressions: Mapping[str, pl.Expr], rows: pl.DataFrame, tally: Tally, place: Place
) -> pl.DataFrame:
    """Rows on which none of these raises; the others are refused by the expression's name.

    Raises:
        FailsOnAll: one raises on every row that comes.
    """
    for name, expression in expressions.items():
        _, broken = evaluate(rows, expression)
        tally.streaks.note(name, rows, broken, expression, place)
        for position, error in broken.items():
            tally.refuse(rows[position], Rule(name=name, keep=expression, detail=""), error=error)
        rows = _but(rows, list(broken))
    return rows


def _but(rows: pl.DataFrame, positions: Sequence[int]) -> pl.DataFrame:
    stay = np.ones(rows.height, dtype=np.bool_)
    stay[list(positions)] = False
    return keep(rows, pl.Series(stay))
