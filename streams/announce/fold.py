"""What the log of the dataset says to the world: a pure fold over its commits.

Commit after commit it gives the announcements: feature rows that are ready, windows that closed or were
amended, the trigger's decision on each, the job of a yes. Whoever folds the same commits announces the
same ids, so after a crash the fold is simply taken up again where the topics end.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import polars as pl

from infra.dataset import META
from infra.exclusion import Exclusion, decision_of
from infra.point_in_time import compute, with_labels
from infra.switched import Switched, switch_of
from schemas import topics
from schemas.contract import Announcement
from schemas.decision import Decision
from schemas.envelope import ARROW_STREAM, Envelope, wrap
from schemas.features import AsOf, FeatureSpec
from schemas.job import JobRequested
from schemas.profile import Profile, WindowProfiled
from schemas.window import (
    DatasetSwitched,
    Window,
    WindowAmended,
    WindowClosed,
    WindowExcluded,
    WindowIncluded,
)
from streams.announce.recent import Recent
from streams.closing import Closing, Turn
from streams.ingest import source_schema
from streams.live.track import Live
from streams.pipeline import Pipeline
from streams.summary.account import Account, announced
from streams.summary.profiling import profiling
from streams.summary.summarise import summarise
from streams.training import job_for
from streams.trigger import History, decide
from streams.window import Pane

FEATURES_TYPE = "tidemill.features.ready.v1"
ROWS_PER_RECORD = 20_000


@dataclass(frozen=True, slots=True)
class Announced:
    """One record to publish: where, and what; `said` is the announcement itself, where it is one."""

    topic: str
    envelope: Envelope
    said: Announcement | None = None


@dataclass(slots=True)
class Commit:
    """A version of the dataset as the fold reads it: its rows by source, and its own account."""

    version: int
    metadata: Mapping[str, Any]
    by_source: Mapping[str, pl.DataFrame]

    @property
    def time_ms(self) -> int:
        """When it was made, by the clock of the worker that made it."""
        return self.metadata.get("committed_ms", 0)


EVER_MS = -(2**62)


@dataclass(slots=True)
class Progress:
    """All that the fold carries from commit to commit.

    `tail` holds the rows of each source from event time `tail_from_ms` on; `pending` those of the main
    source that wait for their features.
    """

    windows: Closing
    watermark_ms: int | None = None
    tail: dict[str, Recent] = field(default_factory=dict)
    tail_from_ms: int = EVER_MS
    pending: Recent | None = None
    history: History = field(default_factory=History)
    version: int = -1
    excluded: tuple[Exclusion, ...] = ()
    live: Live = field(default_factory=Live)


class ReadRows(Protocol):
    """Rows of a source with event time in [start_ms, end_ms) at a dataset version."""

    def __call__(
        self, source: str, *, version: int, start_ms: int, end_ms: int, columns: list[str]
    ) -> pl.DataFrame: ...


class Announcer:
    """Folds commits of one pipeline into announcements.

    `read_rows` reads the dataset for what is older than the tail: rows and windows that come very late.
    `columns` are those that it looks at of a commit's rows, None: all.
    `since` is the switch that made the dataset the live one: what was ready in the one before, and the
    windows `closed_before`, are announced already.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        dataset_uri: str,
        progress: Progress,
        *,
        read_rows: ReadRows,
        configuration_sha256: str = "",
        since: Switched | None = None,
        closed_before: Set[Window] = frozenset(),
    ) -> None:
        self._since = since
        self._closed_before = closed_before
        self.pipeline = pipeline
        self.dataset_uri = dataset_uri
        self.progress = progress
        self.spec = pipeline.spec()
        self._read_rows = read_rows
        self._configuration = configuration_sha256
        self._source = f"/tidemill/{pipeline.name}"
        self._remembered = columns_to_remember(pipeline)
        wanted = dict.fromkeys(name for columns in self._remembered.values() for name in columns)
        # Sessions by key are accounted for by the rows themselves, whatever columns they have.
        self.columns = list(wanted) if pipeline.window.by is None else None
        for topic, columns in self._remembered.items():
            progress.tail.setdefault(topic, Recent(columns))
        if progress.pending is None and self.spec.names():
            progress.pending = Recent(self._remembered[pipeline.source.topic])
        self._profiling = profiling(pipeline, list(source_schema(pipeline.source)))

    def apply(self, commit: Commit) -> list[Announced]:
        """Take one commit in; give what it has to announce, in the order to publish it."""
        return [each for portion in self.portions(commit) for each in portion]

    def portions(self, commit: Commit) -> Iterator[list[Announced]]:
        """As `apply`, in two portions: the first may go out while the second is still computed.

        Windows come first. A training waits for the decision on them, and the feature rows that are ready in
        the same commit cost many times what the decision costs.
        """
        progress = self.progress
        had_ms = progress.watermark_ms
        progress.version = commit.version
        self._take_in(commit)
        yield self._exclusions(commit) + self._windows(commit, had_ms) + self._switches(commit)
        features = self._features(commit)
        self._forget()
        yield features

    def _take_in(self, commit: Commit) -> None:
        progress = self.progress
        mark_ms = commit.metadata.get("watermark_ms")
        if mark_ms is not None:
            progress.watermark_ms = mark_ms
        progress.live = progress.live.after(commit.metadata)
        for topic, rows in commit.by_source.items():
            fresh = rows.select(*self._remembered[topic])
            progress.tail[topic].add(fresh)
            if topic == self.pipeline.source.topic and progress.pending is not None:
                progress.pending.add(fresh)

    def _exclusions(self, commit: Commit) -> list[Announced]:
        """A person's decision about a span; whoever trains from now on is told of it by the job."""
        decided = decision_of(commit.metadata)
        if decided is None:
            return []
        self.progress.excluded = decided.standing
        contract = WindowExcluded if decided.excludes else WindowIncluded
        said = contract(
            pipeline=self.pipeline.name,
            window=decided.span,
            reason=decided.reason,
            decided_by=decided.by,
            decided_ms=commit.time_ms,
            dataset_version=commit.version,
        )
        return [self._say(topics.WINDOWS.name, said, commit)]

    def _switches(self, commit: Commit) -> list[Announced]:
        """The dataset's last word, where another is live from then on."""
        switch = switch_of(commit.metadata)
        if switch is None or not self.ends_by(switch):
            return []
        said = DatasetSwitched(
            pipeline=self.pipeline.name,
            epoch=switch.epoch,
            before=switch.before,
            dataset=switch.to,
            rules_sha256=switch.rules_sha256,
            reason=switch.reason,
            decided_by=switch.by,
            decided_ms=switch.at_ms,
            dataset_version=commit.version,
        )
        return [self._say(topics.WINDOWS.name, said, commit)]

    def ends_by(self, switch: Switched) -> bool:
        """Whether that switch is from this dataset, and later than the one to it."""
        epoch = self._since.epoch if self._since else 0
        return switch.epoch > epoch and switch.before == Path(self.dataset_uri).name

    def _features(self, commit: Commit) -> list[Announced]:
        """Rows whose event time all sources have passed: nothing that they look at can still come."""
        progress = self.progress
        if progress.pending is None or progress.watermark_ms is None:
            return []
        ready = progress.pending.take_before(progress.watermark_ms)
        if self._since is not None and self._since.watermark_ms is not None:
            ready = ready.filter(~_announced_before(self._since.read, self._since.watermark_ms))
        if ready.height == 0:
            return []
        records = []
        for number, chunk in enumerate(self._computed(commit, ready).iter_slices(ROWS_PER_RECORD)):
            sink = io.BytesIO()
            chunk.write_ipc_stream(sink, compression="lz4")
            envelope = Envelope(
                id=f"{self.pipeline.name}/features/{self._epoch()}{commit.version}/{number}",
                type=FEATURES_TYPE,
                source=self._source,
                subject=self.pipeline.name,
                time_ms=commit.time_ms,
                data=sink.getvalue(),
                key=self.pipeline.name,
                content_type=ARROW_STREAM,
                extensions={**self._extensions(commit), "key": self.spec.key},
            )
            records.append(Announced(topics.FEATURES.name, envelope))
        return records

    def _computed(self, commit: Commit, ready: pl.DataFrame) -> pl.DataFrame:
        """Feature rows. Those that look further back than the tail goes are computed from the dataset."""
        progress, horizon_ms = self.progress, self.pipeline.horizon_ms()
        reaches = pl.col("_time") - horizon_ms >= progress.tail_from_ms
        recent = ready.filter(reaches)
        parts = [compute(recent, self._behind(recent), self.spec)]
        old = ready.filter(~reaches).with_columns(self.pipeline.window.start(pl.col("_time")).alias("_start"))
        for (start_ms,), rows in sorted(old.partition_by("_start", as_dict=True).items()):
            from_ms, until_ms = start_ms - horizon_ms, start_ms + self.pipeline.window.pane_ms
            sources = {topic: self._rows(commit, topic, from_ms, until_ms) for topic in self._remembered}
            parts.append(compute(rows.drop("_start"), sources, self.spec))
        return pl.concat(parts)

    def _behind(self, rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """What features of `rows` may look at, by source, and no more.

        The last digit of a sum hangs on what else was summed: it must be the same in each announcer.
        """
        times_ms = rows.get_column("_time")
        first_ms, last_ms = cast("int", times_ms.min() or 0), cast("int", times_ms.max() or 0)
        from_ms = first_ms - self.pipeline.horizon_ms()
        return {topic: tail.between(from_ms, last_ms + 1) for topic, tail in self.progress.tail.items()}

    def _rows(self, commit: Commit, topic: str, start_ms: int, end_ms: int) -> pl.DataFrame:
        columns = self._remembered[topic]
        return self._read_rows(
            topic, version=commit.version, start_ms=start_ms, end_ms=end_ms, columns=list(columns)
        ).select(*columns)

    def _windows(self, commit: Commit, had_ms: int | None) -> list[Announced]:
        progress = self.progress
        turns = progress.windows.take(
            accounts(self.pipeline, commit), had_ms=had_ms, mark_ms=progress.watermark_ms
        )
        turns = [t for t in turns if t.late_rows is not None or t.window not in self._closed_before]
        labelled = self._labelled(commit, turns)
        profiles = self._profiles(commit, [turn for turn in turns if turn.late_rows is None])
        said: list[Announced] = []
        for turn in turns:
            statement: dict[str, Any] = {
                "pipeline": self.pipeline.name,
                "window": turn.window,
                "summary": announced(turn.account),
                "labelled": sum(labelled.get(pane, 0) for pane in turn.panes),
                "watermark_ms": progress.watermark_ms,
                "dataset_uri": self.dataset_uri,
                "dataset_version": commit.version,
            }
            if turn.late_rows is None:
                closed = WindowClosed(**statement)
                said.append(self._say(topics.WINDOWS.name, closed, commit))
                profile = profiles[turn.window]
                if self._profiling:
                    profiled = WindowProfiled(
                        pipeline=closed.pipeline,
                        window=closed.window,
                        profile=profile,
                        dataset_version=commit.version,
                    )
                    said.append(self._say(topics.PROFILES.name, profiled, commit))
                said += self._decide(commit, closed, profile)
            else:
                amended = WindowAmended(**statement, late_rows=turn.late_rows)
                said.append(self._say(topics.WINDOWS.name, amended, commit))
        return said

    def _profiles(self, commit: Commit, turns: list[Turn]) -> dict[Window, Profile]:
        """Of windows that close now.

        The tail has all rows of most, and those that their features look at; for sessions that late rows
        made, the dataset is read.
        """
        if not (turns and self._profiling):
            return {turn.window: Profile() for turn in turns}
        progress, horizon_ms = self.progress, self.pipeline.horizon_ms()
        recent = [t.window for t in turns if t.panes[0].start_ms - horizon_ms >= progress.tail_from_ms]
        found = self._profiled(recent, {topic: tail.rows() for topic, tail in progress.tail.items()})
        within_ms = self.spec.label.within_ms if self.spec.label else 0
        for turn in turns:
            if turn.window not in found:
                start_ms, end_ms = turn.panes[0].start_ms - horizon_ms, turn.window.end_ms + within_ms
                rows = {t: self._rows(commit, t, start_ms, end_ms) for t in self._remembered}
                found |= self._profiled([turn.window], rows)
        return found

    def _profiled(
        self, windows: Sequence[Window], sources: Mapping[str, pl.DataFrame]
    ) -> dict[Window, Profile]:
        rows = sources[self.pipeline.source.topic]
        profiles = self._profiling.profiles(windows, rows, sources, key=key_of(self.pipeline))
        return dict(zip(windows, profiles, strict=True))

    def _labelled(self, commit: Commit, turns: list[Turn]) -> dict[Pane, int]:
        """How many rows of each pane of these windows have their label by now.

        One join for all panes that the tail holds; for older ones, of windows that late rows came for, the
        dataset is read.
        """
        label, progress = self.spec.label, self.progress
        if label is None:
            return {}
        panes = {pane for turn in turns for pane in turn.panes}
        older = {pane for pane in panes if pane.start_ms < progress.tail_from_ms}
        main = self.pipeline.source.topic
        counts: dict[Pane, int] = {}
        if panes - older:
            events, labels = progress.tail[main].rows(), progress.tail[label.source].rows()
            counts |= self._count_labelled(panes - older, events, labels)
        for start_ms in sorted({pane.start_ms for pane in older}):
            end_ms = start_ms + self.pipeline.window.pane_ms
            events = self._rows(commit, main, start_ms, end_ms)
            labels = self._rows(commit, label.source, start_ms, end_ms + label.within_ms)
            counts |= self._count_labelled({p for p in older if p.start_ms == start_ms}, events, labels)
        return counts

    def _count_labelled(
        self, panes: set[Pane], events: pl.DataFrame, labels: pl.DataFrame
    ) -> dict[Pane, int]:
        window, label = self.pipeline.window, self.spec.label
        assert label is not None
        start, key = window.start(pl.col("_time")).alias("_start"), key_of(self.pipeline).alias("_key")
        starts_ms = list({pane.start_ms for pane in panes})
        mine = events.select(label.key, "_time", start, key).filter(pl.col("_start").is_in(starts_ms))
        counted = (
            with_labels(mine, labels, label)
            .group_by("_start", "_key")
            .agg(pl.col(label.column).is_not_null().sum().alias("_labelled"))
        )
        return {pane: count for *at, count in counted.iter_rows() if (pane := Pane(*at)) in panes}

    def _decide(self, commit: Commit, closed: WindowClosed, profile: Profile) -> list[Announced]:
        pipeline, progress = self.pipeline, self.progress
        if pipeline.train_when is None or pipeline.train is None:
            return []
        decision, job = decided(
            pipeline,
            closed,
            progress.history,
            profile,
            spec=self.spec,
            newest_from_ms=progress.windows.newest_from_ms,
            configuration_sha256=self._configuration,
            requested_ms=commit.time_ms,
            excluded=[each.span for each in progress.excluded],
            live=progress.live,
        )
        progress.history = after_decision(progress.history, closed, decision, profile)
        announced = [self._say(topics.DECISIONS.name, decision, commit)]
        if job is not None:
            announced.append(self._say(topics.JOBS.name, job, commit))
        return announced

    def _say(self, topic: str, announcement: Announcement, commit: Commit) -> Announced:
        return Announced(
            topic,
            wrap(
                announcement,
                source=self._source,
                time_ms=commit.time_ms,
                extensions=self._extensions(commit),
            ),
            announcement,
        )

    def _extensions(self, commit: Commit) -> dict[str, str]:
        said = {"ledgerversion": str(commit.version), "pipeline": self.pipeline.name}
        return said if self._since is None else {**said, "epoch": str(self._since.epoch)}

    def _epoch(self) -> str:
        """Before a version in an id: versions of two datasets may be the same number."""
        return "" if self._since is None else f"{self._since.epoch}."

    def _forget(self) -> None:
        """Drop rows and windows that nothing to come can look at."""
        progress = self.progress
        if progress.watermark_ms is None:
            return
        progress.tail_from_ms = remember_from_ms(self.pipeline, progress)
        for tail in progress.tail.values():
            tail.forget_before(progress.tail_from_ms)


def _announced_before(read: Mapping[str, int], watermark_ms: int) -> pl.Expr:
    """Rows of the main source that the dataset which was live had read, and whose time it had passed."""
    known = pl.lit(value=False)
    for number, position in read.items():
        known |= (pl.col("_partition") == int(number)) & (pl.col("_offset") < position)
    return known & (pl.col("_time") < watermark_ms)


def decided(
    pipeline: Pipeline,
    closed: WindowClosed,
    history: History,
    profile: Profile,
    *,
    spec: FeatureSpec,
    newest_from_ms: Callable[[int, int], int],
    configuration_sha256: str,
    requested_ms: int,
    excluded: Sequence[Window] = (),
    live: Live | None = None,
) -> tuple[Decision, JobRequested | None]:
    """What the pipeline's trigger says of a window that closed, and the job that a yes asks for.

    `newest_from_ms` gives, of a count and a time, where the newest so many windows start that end by then;
    `excluded` are the spans that no training reads now, `live` how the live model's answers fare.
    """
    assert pipeline.train_when is not None
    assert pipeline.train is not None
    fired, reason, evaluations = decide(pipeline.train_when, closed, history, profile, live)
    decision_id = f"{pipeline.name}/{closed.window}/decision"
    job = None
    if fired:
        job = job_for(
            pipeline.train,
            pipeline.publish_when,
            closed,
            spec=spec,
            newest_from_ms=newest_from_ms,
            decision_id=decision_id,
            configuration_sha256=configuration_sha256,
            requested_ms=requested_ms,
            excluded=excluded,
            training_number=history.yeses + 1,
        )
    seen = job.experiment.training if job else None
    decision = Decision(
        pipeline=pipeline.name,
        window=closed.window,
        verdict="not_evaluated" if fired is None else "yes" if fired else "no",
        reason=reason,
        evaluations=evaluations,
        dataset_version=closed.dataset_version,
        job_id=job.job_id if job else None,
        training=Window(seen.start_ms, seen.end_ms) if seen else None,
    )
    return decision, job


def after_decision(
    history: History, closed: WindowClosed, decision: Decision | None, profile: Profile | None
) -> History:
    """The trigger's history once a window is decided on: from the events alone, live and at a restart."""
    if decision is None:
        return history.after(closed, yes=False, profile=profile)
    return history.after(
        closed,
        yes=decision.verdict == "yes",
        evaluations=decision.evaluations,
        profile=profile,
        training=decision.training,
    )


def accounts(pipeline: Pipeline, commit: Commit) -> dict[Pane, Account]:
    """What a commit says of each pane of its main source's rows."""
    window = pipeline.window
    if window.by is None:
        said = commit.metadata.get("panes", {})
        return {Pane(int(start)): msgspec.convert(account, Account) for start, account in said.items()}
    rows = commit.by_source.get(pipeline.source.topic)
    return {} if rows is None else summarise(rows, start=window.start(pl.col("_time")), key=key_of(pipeline))


def key_of(pipeline: Pipeline) -> pl.Expr:
    """Whose windows a row of the main source belongs to: empty where all rows share them."""
    by = pipeline.window.by
    return pl.lit("") if by is None else pl.col(by).cast(pl.String).fill_null("")


def remember_from_ms(pipeline: Pipeline, progress: Progress) -> int:
    """Oldest event time that a later feature row, or the profile of an open window, may read.

    It never goes back: what was forgotten, is.
    """
    assert progress.watermark_ms is not None
    window = pipeline.window
    # A late row, within lateness, still gets features as of its own time.
    oldest_ms = progress.watermark_ms - window.pane_ms - window.lateness_ms
    open_from_ms = progress.windows.open_from_ms()
    if open_from_ms is not None:
        oldest_ms = min(oldest_ms, open_from_ms)
    return max(progress.tail_from_ms, oldest_ms - pipeline.horizon_ms())


def columns_to_remember(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """By source, name and type of the columns that features, labels and windows read of recent rows."""
    spec = pipeline.spec()
    wanted: dict[str, set[str]] = {topic: set() for topic in pipeline.sources()}
    wanted[spec.source] |= {spec.key, *spec.columns}
    if pipeline.window.by is not None:
        wanted[spec.source].add(pipeline.window.by)
    for feature in spec.features:
        wanted[spec.source] |= set(feature.by)
        wanted[feature.source] |= set(feature.by)
        if isinstance(feature, AsOf):
            wanted[feature.source] |= set(feature.columns.values())
        else:
            wanted[feature.source] |= {c for how, c in feature.aggregates.values() if how != "count"}
    wanted[spec.source] |= {column for tag in spec.tags for column in tag.reads()}
    wanted[spec.source] |= profiling(pipeline, list(source_schema(pipeline.source))).columns
    if spec.label is not None:
        wanted[spec.label.source] |= {spec.label.key, spec.label.column}
    return {
        topic: {**{c: t for c, t in source_schema(source).items() if c in wanted[topic]}, **META}
        for topic, source in pipeline.sources().items()
    }
