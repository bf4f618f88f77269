"""Counts how the live model's answers fare, and commits the counts: one of a pipeline's workers does.

What it has counted stands in the dataset's log alone, with how far answers, labels and jobs were read.
Whoever takes over reads from there, so an answer and its label count once, whatever died in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import polars as pl
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from infra.dataset import Dataset, open_table
from infra.kafka.connection import Connection
from schemas import topics
from schemas.contract import Announcement, type_of
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import Retryable
from schemas.job import JobAnswered, JobFailed, JobMerged, JobRequested, JobSkipped, JobSucceeded
from schemas.prediction import Predictions
from streams.announce.fold import EVER_MS, Commit
from streams.live.pending import Pending, Settled
from streams.live.tally import JUDGED, Assessment, Reading, assessment_of, tallied
from streams.pipeline import Pipeline
from streams.trigger import watched_by

log = structlog.get_logger(__name__)

FOLLOWED = (topics.PREDICTIONS.name, topics.JOBS.name)
"""What services answer, and how long trainings took."""

# How often is counted, at most; and how many records are looked at between two commits of others.
_TURN_S = 1.0
_RECORDS = 500
_OVER = (JobAnswered, JobFailed, JobMerged, JobSkipped)
_TOLD = {type_of(each) for each in (Predictions, JobRequested, JobSucceeded, *_OVER)}

CommitCounts = Callable[[Mapping[str, Any], int | None], Awaitable[Commit]]
"""Commits a metadata without rows, if the newest assessment is at that version; gives the commit.

Raises:
    Superseded: another assessment was made.
    DatasetNotWritable: nothing was committed.
"""


class Superseded(Retryable):
    """Another worker counts the answers of this pipeline now."""


class Assessor:
    """One pipeline's. Not safe for threads; whoever announces the log tells it of each commit."""

    def __init__(self, pipeline: Pipeline, uri: str, connection: Connection, commit: CommitCounts) -> None:
        self.pipeline, self.uri, self.connection = pipeline, uri, connection
        self._commit = commit
        self._label = pipeline.spec().label
        self._model = (pipeline.train.model if pipeline.train else "") or pipeline.name
        self._slices = tuple(sorted(watched_by(pipeline.train_when).errors))
        self._consumer: AIOKafkaConsumer | None = None
        self._newest: int | None = None
        self._version = -1
        self._watermark_ms = EVER_MS
        self._next: dict[TopicPartition, int] = {}
        self._open_jobs: dict[str, int] = {}
        self._trainings_s: list[float] = []
        self._turned_s = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether the pipeline's trigger looks at answers, and there are labels to hold them against."""
        return self._label is not None and watched_by(self.pipeline.train_when).answers

    async def take_up(self, version: int) -> None:
        """Begin where the newest assessment stands; told of commits after `version` from now on."""
        await self.close()
        assert self._label is not None
        self._pending = Pending(self._label, self._model)
        self._open_jobs.clear()
        self._trainings_s.clear()
        self._next.clear()
        newest = await asyncio.to_thread(self._newest_assessment)
        self._consumer = AIOKafkaConsumer(
            *FOLLOWED,
            **self.connection.client_arguments(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await self._consumer.start()
        for name in FOLLOWED:
            parts = self._consumer.partitions_for_topic(name) or ()
            self._next |= {TopicPartition(name, n): 0 for n in parts}
        self._consumer.unsubscribe()
        self._consumer.assign(list(self._next))
        await self._consumer.seek_to_beginning(*self._next)
        self._version, self._watermark_ms = version, EVER_MS
        if newest is not None:
            # Neither goes back, though commits are announced again: what was counted so far hangs on both.
            self._version = max(version, newest.dataset_version)
            self._watermark_ms = newest.watermark_ms
            await self._recall(newest)

    def _newest_assessment(self) -> Assessment | None:
        self._newest = open_table(self.uri).transaction_version(JUDGED)
        if self._newest is None:
            return None
        return assessment_of(Dataset(self.uri).commit(self._newest).metadata)

    async def _recall(self, newest: Assessment) -> None:
        """Read again what may still get a label, and hold for counted what had one then."""
        assert self._consumer is not None
        assert self._label is not None
        known = {TopicPartition(r.topic, r.partition): r for r in newest.readings if r.since < r.next}
        begins = await self._consumer.beginning_offsets(list(self._next))
        for each in newest.readings:
            tp = TopicPartition(each.topic, each.partition)
            self._next[tp] = each.next
            self._consumer.seek(tp, max(each.since, begins[tp]))
        unread = {tp for tp, r in known.items() if begins[tp] < r.next}
        while unread:
            batches = await self._consumer.getmany(*unread, timeout_ms=500)
            for tp, records in batches.items():
                for record in records:
                    if record.offset < known[tp].next:
                        self._hear(tp, record)
            for tp in list(unread):
                if await self._consumer.position(tp) >= known[tp].next:
                    unread.discard(tp)
                    self._consumer.seek(tp, known[tp].next)
        self._trainings_s.clear()  # they are in that assessment
        label = self._label
        awaited_from_ms = newest.watermark_ms - label.within_ms
        for at in dict.fromkeys((newest.dataset_version, self._version)):
            rows = await asyncio.to_thread(
                Dataset(self.uri).rows,
                label.source,
                version=at,
                start_ms=awaited_from_ms,
                end_ms=-EVER_MS,
                columns=[label.key, label.column],
            )
            self._pending.labels(rows)
            if at == newest.dataset_version:
                self._pending.count(self._pending.settle(newest.watermark_ms))

    def take(self, commit: Commit) -> None:
        """A commit's labels, in the order of the log."""
        assert self._label is not None
        self._version = max(self._version, commit.version)
        rows = commit.by_source.get(self._label.source)
        if rows is not None:
            self._pending.labels(rows)

    async def turn(self, watermark_ms: int | None) -> None:
        """Look at what services and trainers have said since, count, and commit what there is to count.

        Raises:
            Superseded: another worker has counted; take up again.
            DatasetNotWritable: nothing was counted; the next turn tries again.
        """
        if self._consumer is None or watermark_ms is None or time.monotonic() - self._turned_s < _TURN_S:
            return
        self._watermark_ms = max(self._watermark_ms, watermark_ms)
        await self._listen()
        settled = await asyncio.to_thread(self._pending.settle, self._watermark_ms)
        if settled or self._trainings_s:
            said = await asyncio.to_thread(self._assessment, settled)
            metadata = {JUDGED: msgspec.to_builtins(said)}
            commit = await self._commit(metadata, self._newest)
            self._newest = commit.version
            self._pending.count(settled)
            self._trainings_s.clear()
        self._turned_s = time.monotonic()

    async def _listen(self) -> None:
        assert self._consumer is not None
        try:
            batches = await self._consumer.getmany(timeout_ms=0, max_records=_RECORDS)
        except KafkaError as error:
            log.warning("cannot hear what services answer, will try again", error=str(error))
            return
        for tp, records in batches.items():
            for record in records:
                self._hear(tp, record)
                self._next[tp] = record.offset + 1

    def _hear(self, tp: TopicPartition, record: Any) -> None:
        try:
            envelope = open_record(record.key, record.value, record.headers)
            if envelope.type not in _TOLD:
                return
            event: Announcement = unwrap(envelope)
        except NotAnAnnouncement:
            return  # whoever wrote it is told by his own reader
        match event:
            case Predictions():
                self._pending.answer(event, partition=tp.partition, offset=record.offset)
            case JobRequested(experiment=asked):
                if asked.pipeline == self.pipeline.name and asked.purpose == "challenger":
                    self._open_jobs.setdefault(event.job_id, record.offset)
            case JobSucceeded() if self._open_jobs.pop(event.job_id, None) is not None:
                self._trainings_s.append(event.train_s)
            case JobAnswered() | JobFailed() | JobMerged() | JobSkipped():
                self._open_jobs.pop(event.job_id, None)
            case _:
                pass

    def _assessment(self, settled: Settled) -> Assessment:
        paired = settled.paired
        if self._slices and paired.height:
            paired = paired.join(self._events(paired), on=["key", "_time"], how="left")
        since = self._pending.since()
        jobs_since = min(self._open_jobs.values(), default=None)
        readings = []
        for tp, after in sorted(self._next.items()):
            first = since.get(tp.partition) if tp.topic == topics.PREDICTIONS.name else jobs_since
            readings.append(
                Reading(
                    topic=tp.topic,
                    partition=tp.partition,
                    since=after if first is None else first,
                    next=after,
                )
            )
        return Assessment(
            model=self._model,
            dataset_version=self._version,
            watermark_ms=self._watermark_ms,
            readings=tuple(readings),
            panes=tallied(
                settled.asked,
                paired,
                pane=self.pipeline.window.start(pl.col("_time")),
                slices=self._slices,
            ),
            trainings_s=tuple(self._trainings_s),
        )

    def _events(self, paired: pl.DataFrame) -> pl.DataFrame:
        """Slices of the events that were answered, once for each key and time."""
        times, key = paired.get_column("_time"), self.pipeline.source.key
        rows = Dataset(self.uri).rows(
            self.pipeline.source.topic,
            version=self._version,
            start_ms=int(times.min()),  # type: ignore[arg-type]
            end_ms=int(times.max()) + 1,  # type: ignore[arg-type]
            columns=[key, *self._slices],
        )
        return rows.select(
            pl.col(key).cast(pl.String).alias("key"),
            "_time",
            *(pl.col(column).cast(pl.String) for column in self._slices if column != key),
        ).unique(["key", "_time"], keep="first", maintain_order=True)

    async def close(self) -> None:
        """Let go of the cluster."""
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
