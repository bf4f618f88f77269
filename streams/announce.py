"""What the log of the dataset says to the world: a pure fold over its commits.

Commit after commit it gives the announcements: feature rows that are ready, windows that closed or were
amended, the trigger's decision on each, the job of a yes. Whoever folds the same commits announces the
same ids, so after a crash the fold is simply taken up again where the topics end.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from infra.dataset import META
from infra.point_in_time import compute, with_labels
from schemas import topics
from schemas.contract import Announcement
from schemas.decision import Decision
from schemas.envelope import ARROW_STREAM, Envelope, wrap
from schemas.features import AsOf
from schemas.window import Summary, WindowAmended, WindowClosed
from streams import watermark
from streams.ingest import source_schema
from streams.ledger import Partition
from streams.pipeline import Pipeline
from streams.summary import merge
from streams.training import job_for
from streams.trigger import History, decide

FEATURES_TYPE = "tidemill.features.ready.v1"
ROWS_PER_RECORD = 20_000


@dataclass(frozen=True, slots=True)
class Announced:
    """One record to publish: where, and what."""

    topic: str
    envelope: Envelope


@dataclass(slots=True)
class Commit:
    """A version of the dataset as the fold reads it: its rows by source, and its own account."""

    version: int
    timestamp_ms: int
    metadata: Mapping[str, Any]
    by_source: Mapping[str, pl.DataFrame]


@dataclass(slots=True)
class Progress:
    """All that the fold carries from commit to commit. `tail` holds recent rows of each source."""

    partitions: dict[Partition, int | None]
    idle: set[Partition] = field(default_factory=set)
    watermark_ms: int | None = None
    open: dict[int, Summary] = field(default_factory=dict)
    closed: dict[int, Summary] = field(default_factory=dict)
    tail: dict[str, pl.DataFrame] = field(default_factory=dict)
    pending: pl.DataFrame | None = None
    history: History = field(default_factory=History)
    version: int = -1


class Announcer:
    """Folds commits of one pipeline into announcements."""

    def __init__(
        self, pipeline: Pipeline, dataset_uri: str, progress: Progress, *, configuration_sha256: str = ""
    ) -> None:
        self.pipeline = pipeline
        self.dataset_uri = dataset_uri
        self.progress = progress
        self.spec = pipeline.spec()
        self._configuration = configuration_sha256
        self._source = f"/tidemill/{pipeline.name}"
        self._remembered = columns_to_remember(pipeline)

    def apply(self, commit: Commit) -> list[Announced]:
        """Take one commit in; give what it has to announce, in the order to publish it."""
        progress = self.progress
        had_ms = progress.watermark_ms
        progress.version = commit.version
        self._take_in(commit)
        announced = self._features(commit)
        announced += self._windows(commit, had_ms)
        self._forget()
        return announced

    def _take_in(self, commit: Commit) -> None:
        progress = self.progress
        said = commit.metadata
        for name, mark_ms in said.get("watermarks", {}).items():
            partition = partition_of(name)
            known_ms = progress.partitions.get(partition)
            progress.partitions[partition] = mark_ms if known_ms is None else max(known_ms, mark_ms)
        progress.idle -= {partition_of(name) for name in said.get("offsets", {})}
        progress.idle |= {partition_of(name) for name in said.get("idle", [])}
        progress.watermark_ms = watermark.of_pipeline(
            progress.watermark_ms, progress.partitions, idle=progress.idle
        )
        for topic, rows in commit.by_source.items():
            kept = rows.select(*self._remembered[topic])
            tail = progress.tail.get(topic)
            progress.tail[topic] = kept if tail is None else pl.concat([tail, kept])
        main = self.pipeline.source.topic
        fresh = commit.by_source.get(main)
        if fresh is not None:
            fresh = fresh.select(*self._remembered[main])
            progress.pending = fresh if progress.pending is None else pl.concat([progress.pending, fresh])

    def _features(self, commit: Commit) -> list[Announced]:
        """Rows whose event time all sources have passed: nothing that they look at can still come."""
        progress = self.progress
        if progress.pending is None or progress.watermark_ms is None or not self.spec.names():
            return []
        passed = pl.col("_time") < progress.watermark_ms
        ready = progress.pending.filter(passed)
        if ready.height == 0:
            return []
        progress.pending = progress.pending.filter(~passed)
        rows = compute(ready, self._tails(), self.spec)
        records = []
        for number, chunk in enumerate(rows.iter_slices(ROWS_PER_RECORD)):
            sink = io.BytesIO()
            chunk.write_ipc_stream(sink, compression="lz4")
            envelope = Envelope(
                id=f"{self.pipeline.name}/features/{commit.version}/{number}",
                type=FEATURES_TYPE,
                source=self._source,
                subject=self.pipeline.name,
                time_ms=commit.timestamp_ms,
                data=sink.getvalue(),
                key=self.pipeline.name,
                content_type=ARROW_STREAM,
                extensions={**self._extensions(commit), "key": self.spec.key},
            )
            records.append(Announced(topics.FEATURES.name, envelope))
        return records

    def _tails(self) -> dict[str, pl.DataFrame]:
        tails = dict(self.progress.tail)
        for topic, columns in self._remembered.items():
            if topic not in tails:
                tails[topic] = pl.DataFrame(schema=columns)
        return tails

    def _windows(self, commit: Commit, had_ms: int | None) -> list[Announced]:
        progress, window = self.progress, self.pipeline.window
        late: dict[int, Summary] = {}
        for start, said in commit.metadata.get("summaries", {}).items():
            start_ms, summary = int(start), msgspec.convert(said, Summary)
            if had_ms is not None and window.closes_at_ms(start_ms) <= had_ms:
                late[start_ms] = summary
            else:
                progress.open[start_ms] = merge(progress.open.get(start_ms, Summary()), summary)
        closing = window.closed_by(progress.open, progress.watermark_ms)
        labelled = self._labelled({*closing, *late})
        announced: list[Announced] = []
        for start_ms, summary in sorted(late.items()):
            announced += self._amend(commit, start_ms, summary, labelled.get(start_ms, 0))
        for start_ms in closing:
            closed = WindowClosed(
                **self._statement(commit, start_ms, progress.open.pop(start_ms), labelled.get(start_ms, 0))
            )
            progress.closed[start_ms] = closed.summary
            announced.append(self._say(topics.WINDOWS.name, closed, commit))
            announced += self._decide(commit, closed)
        return announced

    def _amend(self, commit: Commit, start_ms: int, summary: Summary, labelled: int) -> list[Announced]:
        """Rows for a closed window: its summary so far and theirs. Rows that were refused amend nothing."""
        progress = self.progress
        whole = merge(progress.closed.get(start_ms, Summary()), summary)
        progress.closed[start_ms] = whole
        if summary.rows == 0:
            return []
        amended = WindowAmended(**self._statement(commit, start_ms, whole, labelled), late_rows=summary.rows)
        return [self._say(topics.WINDOWS.name, amended, commit)]

    def _statement(self, commit: Commit, start_ms: int, summary: Summary, labelled: int) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline.name,
            "window": self.pipeline.window.window(start_ms),
            "summary": summary,
            "labelled": labelled,
            "watermark_ms": self.progress.watermark_ms,
            "dataset_uri": self.dataset_uri,
            "dataset_version": commit.version,
        }

    def _labelled(self, starts_ms: set[int]) -> dict[int, int]:
        """How many rows of each of these windows have their label by now."""
        label = self.spec.label
        events = self.progress.tail.get(self.pipeline.source.topic)
        labels = None if label is None else self.progress.tail.get(label.source)
        if not starts_ms or label is None or events is None or labels is None:
            return {}
        start = self.pipeline.window.start(pl.col("_time")).alias("start")
        mine = events.select(label.key, "_time", start).filter(pl.col("start").is_in(list(starts_ms)))
        counted = (
            with_labels(mine, labels, label)
            .group_by("start")
            .agg(pl.col(label.column).is_not_null().sum().alias("labelled"))
        )
        return dict(counted.iter_rows())

    def _decide(self, commit: Commit, closed: WindowClosed) -> list[Announced]:
        pipeline, progress = self.pipeline, self.progress
        if pipeline.train_when is None or pipeline.train is None:
            return []
        fired, reason, evaluations = decide(pipeline.train_when, closed, progress.history)
        progress.history = progress.history.after(closed, yes=fired)
        decision_id = f"{pipeline.name}/{closed.window}/decision"
        job = None
        if fired:
            job = job_for(
                pipeline.train,
                pipeline.publish_when,
                closed,
                spec=self.spec,
                window_ms=pipeline.window.size_ms,
                decision_id=decision_id,
                configuration_sha256=self._configuration,
                requested_ms=commit.timestamp_ms,
            )
        decision = Decision(
            pipeline=pipeline.name,
            window=closed.window,
            verdict="yes" if fired else "no",
            reason=reason,
            evaluations=evaluations,
            dataset_version=commit.version,
            job_id=job.job_id if job else None,
        )
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
                time_ms=commit.timestamp_ms,
                extensions=self._extensions(commit),
            ),
        )

    def _extensions(self, commit: Commit) -> dict[str, str]:
        return {"ledgerversion": str(commit.version), "pipeline": self.pipeline.name}

    def _forget(self) -> None:
        """Drop rows and windows that nothing to come can look at."""
        progress, window = self.progress, self.pipeline.window
        if progress.watermark_ms is None:
            return
        keep_from_ms = remember_from_ms(self.pipeline, progress.watermark_ms, progress.open)
        for topic, tail in progress.tail.items():
            progress.tail[topic] = tail.filter(pl.col("_time") >= keep_from_ms)
        horizon = window.closes_at_ms(-window.size_ms) + _AMENDABLE_WINDOWS * window.size_ms
        progress.closed = {s: v for s, v in progress.closed.items() if s >= progress.watermark_ms - horizon}


_AMENDABLE_WINDOWS = 60


def remember_from_ms(
    pipeline: Pipeline, watermark_ms: int, open_starts_ms: Sequence[int] | Mapping[int, Any]
) -> int:
    """Oldest event time that a later feature row, or the label count of an open window, may read."""
    window = pipeline.window
    # A late row, within lateness, still gets features as of its own time.
    oldest_ms = watermark_ms - window.size_ms - window.lateness_ms - pipeline.horizon_ms()
    return min([oldest_ms, *open_starts_ms])


def partition_of(name: str) -> Partition:
    """("flights.scheduled", 3) of "flights.scheduled/3"."""
    topic, _, number = name.rpartition("/")
    return topic, int(number)


def columns_to_remember(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """By source, name and type of the columns that features, labels and windows read of recent rows."""
    spec = pipeline.spec()
    wanted: dict[str, set[str]] = {topic: set() for topic in pipeline.sources()}
    wanted[spec.source] |= {spec.key, *spec.columns}
    for feature in spec.features:
        wanted[spec.source] |= set(feature.by)
        wanted[feature.source] |= set(feature.by)
        if isinstance(feature, AsOf):
            wanted[feature.source] |= set(feature.columns.values())
        else:
            wanted[feature.source] |= {c for how, c in feature.aggregates.values() if how != "count"}
    if spec.label is not None:
        wanted[spec.label.source] |= {spec.label.key, spec.label.column}
    return {
        topic: {**{c: t for c, t in source_schema(source).items() if c in wanted[topic]}, **META}
        for topic, source in pipeline.sources().items()
    }
