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
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from infra.dataset import Dataset, open_table
from infra.kafka.connection import Connection
from schemas.errors import Retryable
from streams.announce.fold import EVER_MS, Commit
from streams.live.judge import FOLLOWED, Judge, is_judged
from streams.live.tally import JUDGED, Assessment, assessment_of
from streams.pipeline import Pipeline

log = structlog.get_logger(__name__)

# How often is counted, at most; and how many records are looked at between two commits of others.
_TURN_S = 1.0
_RECORDS = 500

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
        self._consumer: AIOKafkaConsumer | None = None
        self._newest: int | None = None
        self._turned_s = 0.0

    @property
    def is_wanted(self) -> bool:
        """See `is_judged`."""
        return is_judged(self.pipeline)

    async def take_up(self, version: int) -> None:
        """Begin where the newest assessment stands; told of commits after `version` from now on."""
        await self.close()
        self._judge = judge = Judge(self.pipeline, self.uri, version=version)
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
            judge.next |= {TopicPartition(name, n): 0 for n in parts}
        self._consumer.unsubscribe()
        self._consumer.assign(list(judge.next))
        await self._consumer.seek_to_beginning(*judge.next)
        if newest is not None:
            # Neither goes back, though commits are announced again: what was counted so far hangs on both.
            judge.version = max(version, newest.dataset_version)
            judge.watermark_ms = newest.watermark_ms
            await self._recall(newest)

    def _newest_assessment(self) -> Assessment | None:
        self._newest = open_table(self.uri).transaction_version(JUDGED)
        if self._newest is None:
            return None
        return assessment_of(Dataset(self.uri).commit(self._newest).metadata)

    async def _recall(self, newest: Assessment) -> None:
        """Read again what may still get a label, and hold for counted what had one then."""
        assert self._consumer is not None
        judge, label = self._judge, self._judge.label
        known = {TopicPartition(r.topic, r.partition): r for r in newest.readings if r.since < r.next}
        begins = await self._consumer.beginning_offsets(list(judge.next))
        for each in newest.readings:
            tp = TopicPartition(each.topic, each.partition)
            judge.next[tp] = each.next
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
        judge.trainings_s.clear()  # they are in that assessment
        awaited_from_ms = newest.watermark_ms - label.within_ms
        for at in dict.fromkeys((newest.dataset_version, judge.version)):
            rows = await asyncio.to_thread(
                Dataset(self.uri).rows,
                label.source,
                version=at,
                start_ms=awaited_from_ms,
                end_ms=-EVER_MS,
                columns=[label.key, label.column],
            )
            judge.pending.labels(rows)
            if at == newest.dataset_version:
                judge.pending.count(judge.pending.settle(newest.watermark_ms))

    def take(self, commit: Commit) -> None:
        """A commit's labels, in the order of the log."""
        self._judge.take(commit)

    async def turn(self, watermark_ms: int | None) -> None:
        """Look at what services and trainers have said since, count, and commit what there is to count.

        Raises:
            Superseded: another worker has counted; take up again.
            DatasetNotWritable: nothing was counted; the next turn tries again.
        """
        if self._consumer is None or watermark_ms is None or time.monotonic() - self._turned_s < _TURN_S:
            return
        await self._listen()
        settled = await asyncio.to_thread(self._judge.settle, watermark_ms)
        said = await asyncio.to_thread(self._judge.assessment, settled)
        if said is not None:
            commit = await self._commit({JUDGED: msgspec.to_builtins(said)}, self._newest)
            self._newest = commit.version
            self._judge.counted(settled)
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
                self._judge.next[tp] = record.offset + 1

    def _hear(self, tp: TopicPartition, record: Any) -> None:
        self._judge.hear(tp, record.offset, record.key, record.value, record.headers)

    async def close(self) -> None:
        """Let go of the cluster."""
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
