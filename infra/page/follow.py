"""The view follows the topics, from their beginning on, for ever: also over a broker that goes and comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.logging import logger
from infra.page.view import View
from schemas import topics
from schemas.envelope import NotAnAnnouncement, open_record
from schemas.errors import Retryable

log = logger(__name__)

FOLLOWED: Sequence[topics.Topic] = (
    topics.STANDINGS,
    topics.ALERTS,
    topics.WINDOWS,
    topics.DEAD_LETTERS,
    topics.DECISIONS,
    topics.JOBS,
    topics.MODELS,
)
_POLL_MS = 250
_AGAIN_S = 1.0
_ENDS_S = 1.0
_ENDS_WITHIN_S = 3.0
# What an announcement is at most, with base64 of 10 MiB.
_FETCH_BYTES = 16 * 2**20


class TopicsMissing(Retryable):
    """The cluster lacks topics that the page follows."""


class Follower:
    """Feeds a view: `run` it as a task, `end` it; `caught_up` is set once the view has all that was there."""

    def __init__(self, connection: Connection, view: View) -> None:
        self._connection, self._view = connection, view
        self._positions: dict[TopicPartition, int] = {}
        self.caught_up = asyncio.Event()
        self._told_to_end = asyncio.Event()
        self.records: Counter[tuple[str]] = Counter()
        """Announcements that were taken, by topic."""
        self.heard_s = 0.0
        """When the cluster answered last, by the monotonic clock."""
        self.problem = ""
        """Why the cluster cannot be followed now."""

    @property
    def is_connected(self) -> bool:
        """Whether the cluster has answered just now."""
        return time.monotonic() - self.heard_s < _ENDS_S + _ENDS_WITHIN_S + 1

    async def run(self) -> None:
        """Follow until told to end. A cluster that is away, or not there yet, is waited for."""
        while not self._told_to_end.is_set():
            try:
                await self._connected()
            except (KafkaError, OSError, TimeoutError, TopicsMissing) as error:
                if str(error) != self.problem:
                    log.warning("the cluster cannot be followed, will try again", error=str(error))
                self.problem = str(error) or type(error).__name__
            await self._pause(_AGAIN_S)

    async def end(self, following: asyncio.Task[None]) -> None:
        """End `run`, and give it a moment: who cancels aiokafka while it connects loses a socket."""
        self._told_to_end.set()
        await asyncio.wait({following}, timeout=_ENDS_WITHIN_S + 1)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def _pause(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._told_to_end.wait()

    async def _connected(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # a topic that was made anew is read from where it begins
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        ends: asyncio.Task[None] | None = None
        try:
            await consumer.start()
            if missing := sorted({topic.name for topic in FOLLOWED} - await consumer.topics()):
                raise TopicsMissing(
                    f"the cluster has no topic {', '.join(missing)}; create it by `tidemill topics --create`"
                )
            tps = [TopicPartition(t.name, n) for t in FOLLOWED for n in range(t.partitions)]
            consumer.assign(tps)
            for tp in tps:
                if tp in self._positions:
                    consumer.seek(tp, self._positions[tp])
                else:
                    await consumer.seek_to_beginning(tp)
            until = await consumer.end_offsets(tps)
            self.problem = ""
            ends = asyncio.create_task(self._watch_ends(consumer))
            while not ends.done() and not self._told_to_end.is_set():
                await self._take(consumer)
                # A transaction's marker has an offset too: so not the last record's, but the position.
                if not self.caught_up.is_set() and all(
                    [await consumer.position(tp) >= end for tp, end in until.items()]
                ):
                    self.caught_up.set()
            await ends
        finally:
            if ends is not None:
                ends.cancel()
                await asyncio.gather(ends, return_exceptions=True)
            await consumer.stop()

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        for tp, records in (await consumer.getmany(timeout_ms=_POLL_MS, max_records=500)).items():
            for record in records:
                self._positions[tp] = record.offset + 1
                try:
                    envelope = open_record(record.key, record.value, record.headers)
                    self._view.note(envelope, written_ms=record.timestamp, offset=record.offset)
                    self.records[(tp.topic,)] += 1
                except NotAnAnnouncement as error:
                    log.debug("passed over", topic=tp.topic, offset=record.offset, error=str(error))
            await asyncio.sleep(0)  # whoever looks at the page waits for no history to be read

    async def _watch_ends(self, consumer: AIOKafkaConsumer) -> None:
        """How much waits on the sources: their ends, about once a second."""
        while not self._told_to_end.is_set():
            asked = {FOLLOWED[0].name: [TopicPartition(FOLLOWED[0].name, 0)]}
            sources = self._view.road.sources()
            for topic, partition in sorted(sources):
                asked.setdefault(topic, []).append(TopicPartition(topic, partition))
            # Each topic for itself: one that was deleted, or may not be read, hides no other's lag.
            ends: dict[TopicPartition, int] = {}
            for answer in await asyncio.gather(*(self._ends_of(consumer, tps) for tps in asked.values())):
                ends |= answer
            if ends:
                self._view.ends_are({at: ends[tp] for at in sources if (tp := TopicPartition(*at)) in ends})
            await self._pause(_ENDS_S)

    async def _ends_of(
        self, consumer: AIOKafkaConsumer, tps: list[TopicPartition]
    ) -> dict[TopicPartition, int]:
        try:
            async with asyncio.timeout(_ENDS_WITHIN_S):
                ends = await consumer.end_offsets(tps)
        except (KafkaError, TimeoutError) as error:
            log.info("cannot ask where a topic ends, will try again", topic=tps[0].topic, error=str(error))
            return {}
        self.heard_s = time.monotonic()
        return ends
