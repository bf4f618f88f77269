"""Two datasets of the same raw events, made by two sets of rules: what the one has and the other has not.

A row is the same row if it is of the same record. Both datasets are read span by span of event time, so
neither need fit into memory.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct, field

from infra.dataset import IDENTITY, Dataset
from schemas.profile import ColumnProfile, Profile
from schemas.window import Window, WindowClosed
from streams.announce.fold import EVER_MS
from streams.ingest import source_schema
from streams.lab.cost import Cost
from streams.lab.rehearse import counts_of, offsets_of, refused
from streams.ledger.commit import Partition
from streams.pipeline import Pipeline
from streams.summary.account import Account, announced
from streams.summary.profile import merge_profiles, profile_of
from streams.summary.sketch import unpack
from streams.trigger import History, Look, Reference, drift
from streams.trigger.drift import Drift
from streams.trigger.statistic import holm

_SPAN_ROWS = 200_000
_EXAMPLES = 3
_POINTS = 41
_CATEGORIES = 12
MOVED_ALPHA = 0.005
MOVED_LEAST = 0.02


class TagChange(Struct, frozen=True, kw_only=True):
    """Rows with a tag on either side; gained and lost among the rows that both sides keep."""

    tag: str
    live: int
    edited: int
    gained: int
    lost: int


class Moved(Struct, frozen=True, kw_only=True):
    """How far a column's distribution is from the live one, and what both look like.

    Attributes:
        moved: beyond what chance does (p below .005 over all columns) and by at least .02.
        distance: Kolmogorov-Smirnov of numbers, Hellinger of all else, beside the share without a value; None
            where it cannot be judged, and `reason` says why.
        live, edited: of numbers [value, share of rows up to it]; else [value, share of rows].
        changed: rows kept by both whose value differs.
    """

    column: str
    moved: bool
    distance: float | None
    p: float | None
    reason: str
    numeric: bool
    changed: int
    live: list[tuple[Any, float]]
    edited: list[tuple[Any, float]]


class Example(Struct, frozen=True, kw_only=True):
    """Rows of one difference: its name, how many there are, a few of them."""

    difference: str
    rows: int
    some: list[dict[str, Any]]


class SourceDifference(Struct, frozen=True, kw_only=True):
    """One source's rows, live against edited. Of rules: events by rule, [live, edited]."""

    source: str
    events: int
    live: int
    edited: int
    both: int
    lost: int
    gained: int
    rules: dict[str, tuple[int, int]]
    tags: list[TagChange]
    columns: list[Moved]
    examples: list[Example]


class WindowDifference(Struct, frozen=True, kw_only=True):
    """A window that the trigger decided otherwise; `reason` is that of either side which decided on it."""

    window: Window
    name: str
    live: str
    edited: str
    reason: str


class Unsaid(Struct, frozen=True, kw_only=True):
    """A part of the trigger that could not say: of how many windows on either side, and why the last time."""

    condition: str
    live: int
    edited: int
    reason: str


class Decisions(Struct, frozen=True, kw_only=True):
    """How the trigger answered on either side, each field [live, edited].

    Attributes:
        answers, labelled: of the live model, as either side's trigger has counted them; labels are its own
            rows. 0 where it does not look at them.
    """

    windows: tuple[int, int] = (0, 0)
    yes: tuple[int, int] = (0, 0)
    differing: list[WindowDifference] = field(default_factory=list)
    unsaid: list[Unsaid] = field(default_factory=list)
    answers: tuple[int, int] = (0, 0)
    labelled: tuple[int, int] = (0, 0)


class Report(Struct, frozen=True, kw_only=True):
    """All differences. `seconds` is how long it took; costs are absent where nothing was measured."""

    pipeline: str
    live: str
    edited: str
    read: str
    events: int
    sources: list[SourceDifference]
    decisions: Decisions = field(default_factory=Decisions)
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def differs(self) -> bool:
        """Whether anything but the cost is otherwise."""
        return bool(self.decisions.differing) or any(
            each.lost
            or each.gained
            or any(n != m for n, m in each.rules.values())
            or any(t.gained or t.lost for t in each.tags)
            or any(c.changed or c.moved for c in each.columns)
            for each in self.sources
        )


Sides = tuple[tuple[Pipeline, Path], tuple[Pipeline, Path]]
"""Live and edited: pipeline and dataset."""


def differences(sides: Sides) -> list[SourceDifference]:
    """What differs, source by source, over the records that both datasets have read.

    Raises:
        DatasetUnreadable: one is not there.
    """
    (live, live_uri), (edited, edited_uri) = sides
    counts = counts_of(live_uri), counts_of(edited_uri)
    refusals = refused(live_uri), refused(edited_uri)
    spans = _common(offsets_of(live_uri), offsets_of(edited_uri))
    found = []
    for topic in live.sources():
        if topic not in edited.sources():
            continue
        made = _Differences(topic, (live, edited), refusals)
        for rows in _spans(sides, topic, spans):
            made.add(*rows)
        found.append(made.done(*(side.get(topic) for side in counts)))
    return found


def _common(
    live: Mapping[Partition, tuple[int, int]], edited: Mapping[Partition, tuple[int, int]]
) -> dict[Partition, tuple[int, int]]:
    return {
        p: (max(live[p][0], edited[p][0]), min(live[p][1], edited[p][1])) for p in live.keys() & edited.keys()
    }


def _spans(
    sides: Sides, topic: str, offsets: Mapping[Partition, tuple[int, int]]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Both sides' rows of one source, span by span of event time."""
    reads = [Dataset(uri) for _, uri in sides]
    versions = [read.newest_version() for read in reads]
    columns = [[*source_schema(pipeline.sources()[topic])] for pipeline, _ in sides]
    both = pl.lit(value=False)
    for (name, number), (start, end) in offsets.items():
        if name == topic:
            inside = pl.col("_offset").is_between(start, end, closed="left")
            both |= (pl.col("_partition") == number) & inside
    times = pl.concat(
        read.rows(topic, version=version, start_ms=EVER_MS, end_ms=-EVER_MS, columns=["_time"])
        .filter(both)
        .get_column("_time")
        for read, version in zip(reads, versions, strict=True)
    ).sort()
    edges = [EVER_MS, *times.gather_every(2 * _SPAN_ROWS)[1:].unique(maintain_order=True), -EVER_MS]
    for start_ms, end_ms in itertools.pairwise(edges):
        one, other = (
            read.rows(topic, version=version, start_ms=start_ms, end_ms=end_ms, columns=own).filter(both)
            for read, version, own in zip(reads, versions, columns, strict=True)
        )
        yield one, other


class _Differences:
    """Adds up one source's differences."""

    def __init__(
        self, topic: str, pipelines: tuple[Pipeline, Pipeline], refusals: tuple[pl.DataFrame, pl.DataFrame]
    ) -> None:
        self.topic = topic
        schemas = [source_schema(pipeline.sources()[topic]) for pipeline in pipelines]
        key, time = (getattr(pipelines[1].sources()[topic], name) for name in ("key", "event_time"))
        self.columns = [
            name
            for name, dtype in schemas[0].items()
            if schemas[1].get(name) == dtype and name not in (key, time)
        ]
        self.refusals = [
            each.filter(pl.col("_source") == topic).select(*IDENTITY, "rule", "detail") for each in refusals
        ]
        self.rows = [0, 0]
        self.both = 0
        self.tags: list[Counter[str]] = [Counter(), Counter()]
        self.moves: list[Counter[str]] = [Counter(), Counter()]  # gained, lost
        self.changed: Counter[str] = Counter()
        self.profiles: list[list[Profile]] = [[], []]
        self.examples: dict[str, tuple[int, list[dict[str, Any]]]] = {}

    def add(self, live: pl.DataFrame, edited: pl.DataFrame) -> None:
        """One span's rows of both."""
        for i, rows in enumerate((live, edited)):
            self.rows[i] += rows.height
            self.tags[i].update(_tags_in(rows.get_column("_tags")))
            self.profiles[i].append(profile_of(rows, self.columns))
        identity = list(IDENTITY)
        lost = live.join(edited, on=identity, how="anti", maintain_order="left")
        gained = edited.join(live, on=identity, how="anti", maintain_order="left")
        both = live.join(edited, on=identity, how="inner", suffix="_edited", maintain_order="left")
        self.both += both.height
        self._by_rule("lost", lost, self.refusals[1])
        self._by_rule("gained", gained, self.refusals[0])
        for i, (which, having, lacking) in enumerate(
            (("gained", "_tags_edited", "_tags"), ("lost", "_tags", "_tags_edited"))
        ):
            new = pl.col(having).list.set_difference(pl.col(lacking))
            some = both.with_columns(new.alias("_new")).filter(pl.col("_new").list.len() > 0)
            counted = _tags_in(some.get_column("_new"))
            self.moves[i].update(counted)
            for tag, count in counted.items():
                self._example(f"tag {tag} {which}", count, some.filter(pl.col("_new").list.contains(tag)))
        for column in self.columns:
            other = f"{column}_edited"
            if other in both.columns:
                changed = both.filter(pl.col(column).ne_missing(pl.col(other)))
                self.changed[column] += changed.height
                self._example(f"{column} has another value", changed.height, changed, extra=(other,))

    def _by_rule(self, which: str, rows: pl.DataFrame, refusals: pl.DataFrame) -> None:
        if rows.height == 0:
            return
        told = rows.join(refusals, on=list(IDENTITY), how="left", maintain_order="left")
        # What was dropped without a letter was a repeat, or the dataset does not say.
        for (rule,), mine in told.with_columns(pl.col("rule").fill_null("")).group_by(
            "rule", maintain_order=True
        ):
            by = f"by {rule}" if rule else "as a repeat" if which == "lost" else "that the live rules had not"
            self._example(f"{which} {by}", mine.height, mine, extra=("detail",))

    def _example(self, difference: str, count: int, rows: pl.DataFrame, *, extra: Sequence[str] = ()) -> None:
        if count == 0:
            return
        so_far, some = self.examples.get(difference, (0, []))
        if len(some) < _EXAMPLES:
            names = [
                c
                for c in rows.columns
                if not c.startswith("_") and not c.endswith("_edited") and c != "detail"
            ]
            shown = [*names, *(c for c in extra if c in rows.columns), "_partition", "_offset", "_tags"]
            some = some + rows.select(c for c in shown if c != "rule").head(_EXAMPLES - len(some)).to_dicts()
        self.examples[difference] = (so_far + count, some)

    def done(self, live: Any, edited: Any) -> SourceDifference:
        """The sum of it, with what each side's commits counted."""
        profiles = [merge_profiles(each) if each else Profile() for each in self.profiles]
        rules: dict[str, tuple[int, int]] = {}
        for counts, at in ((live, 0), (edited, 1)):
            for rule, count in {
                **(counts.rejected if counts else {}),
                **(counts.dropped if counts else {}),
            }.items():
                both = list(rules.get(rule, (0, 0)))
                both[at] = count
                rules[rule] = (both[0], both[1])
        return SourceDifference(
            source=self.topic,
            events=edited.events if edited else 0,
            live=self.rows[0],
            edited=self.rows[1],
            both=self.both,
            lost=self.rows[0] - self.both,
            gained=self.rows[1] - self.both,
            rules=dict(sorted(rules.items())),
            tags=[
                TagChange(
                    tag=tag,
                    live=self.tags[0][tag],
                    edited=self.tags[1][tag],
                    gained=self.moves[0][tag],
                    lost=self.moves[1][tag],
                )
                for tag in sorted({*self.tags[0], *self.tags[1]})
            ],
            columns=_moved(self.columns, profiles[0], profiles[1], self.changed),
            examples=[
                Example(difference=name, rows=count, some=some)
                for name, (count, some) in sorted(self.examples.items(), key=lambda each: -each[1][0])
            ],
        )


def _tags_in(tags: pl.Series) -> Counter[str]:
    return Counter(tags.explode(empty_as_null=True).drop_nulls().to_list())


def _moved(columns: Sequence[str], live: Profile, edited: Profile, changed: Mapping[str, int]) -> list[Moved]:
    """By the statistics and the correction of the trigger `drift`."""
    if not columns:
        return []
    condition = drift(*columns, alpha=MOVED_ALPHA, least=MOVED_LEAST)
    assert isinstance(condition, Drift)
    nothing = WindowClosed(
        pipeline="",
        window=Window(start_ms=0, end_ms=0),
        summary=announced(Account()),
        labelled=0,
        watermark_ms=0,
        dataset_uri="",
        dataset_version=0,
    )
    tested = condition.compare(Look(nothing, History(), edited), Reference(name="live", profile=live))
    sure = [name for name in columns if not isinstance(tested[name], str)]
    chances = dict(zip(sure, holm([tested[name][1] for name in sure]), strict=True))  # type: ignore[misc]
    found = []
    for name in columns:
        one, other = live.columns.get(name), edited.columns.get(name)
        if one is None or other is None:
            continue
        said = tested[name]
        distance = None if isinstance(said, str) else abs(said[0])
        p = chances.get(name)
        found.append(
            Moved(
                column=name,
                moved=distance is not None and p is not None and p <= MOVED_ALPHA and distance >= MOVED_LEAST,
                distance=distance,
                p=p,
                reason=said if isinstance(said, str) else "",
                numeric=bool(one.kll or other.kll),
                changed=changed.get(name, 0),
                live=_shape(one, other),
                edited=_shape(other, one),
            )
        )
    return sorted(found, key=lambda m: (not m.moved, -(m.distance or 0.0), m.column))


def _shape(column: ColumnProfile, beside: ColumnProfile) -> list[tuple[Any, float]]:
    """What is drawn of a column: its distribution function, or the shares of the commonest values."""
    if column.kll:
        shares = [i / (_POINTS - 1) for i in range(_POINTS)]
        values = unpack(column.kll, column.rank_error).quantiles(shares)
        return [(float(v), s) for v, s in zip(np.asarray(values), shares, strict=True)]
    total = max(column.rows, 1)
    both = Counter(column.categories) + Counter(beside.categories)
    shown = [(name, column.categories.get(name, 0) / total) for name, _ in both.most_common(_CATEGORIES)]
    return [*shown, ("(none)", column.missing / total)] if column.missing or beside.missing else shown
