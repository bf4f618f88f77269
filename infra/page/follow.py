"""The view follows the topics, from their beginning on, for ever: also over a broker that goes and comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.logging import logger
from infra.page.view import View
from schemas import topics
from schemas.envelope import NotAnAnnouncement, open_record

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


class Follower:
    """Feeds a view: `run` it as a task, `end` it; `caught_up` is set once all that was there is in the view."""

    def __init__(self, connection: Connection, view: View) -> None:
        self._connection, self._view = connection, view
        self._positions: dict[TopicPartition, int] = {}
        self.caught_up = asyncio.Event()
        self._told_to_end = asyncio.Event()
        self.heard_s = 0.0
        """When the cluster answered last, by the monotonic clock."""

    @property
    def is_connected(self) -> bool:
        """Whether the cluster has answered just now."""
        return time.monotonic() - self.heard_s < _ENDS_S + _ENDS_WITHIN_S + 1

    async def run(self) -> None:
        """Follow until told to end. A cluster that is away, or not there yet, is waited for."""
        while not self._told_to_end.is_set():
            try:
                await self._connected()
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("the cluster does not answer, will try again", error=str(error))
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
        await consumer.start()
        ends = asyncio.create_task(self._watch_ends(consumer))
        try:
            tps = [TopicPartition(t.name, n) for t in FOLLOWED for n in range(t.partitions)]
            consumer.assign(tps)
            for tp in tps:
                if tp in self._positions:
                    consumer.seek(tp, self._positions[tp])
                else:
                    await consumer.seek_to_beginning(tp)
            until = await consumer.end_offsets(tps)
            while not ends.done() and not self._told_to_end.is_set():
                await self._take(consumer)
                # A transaction's marker has an offset too: so not the last record's, but the position.
                if not self.caught_up.is_set() and all(
                    [await consumer.position(tp) >= end for tp, end in until.items()]
                ):
                    self.caught_up.set()
            await ends
        finally:
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
                except NotAnAnnouncement as error:
                    log.debug("passed over", topic=tp.topic, offset=record.offset, error=str(error))
            await asyncio.sleep(0)  # whoever looks at the page waits for no history to be read

    async def _watch_ends(self, consumer: AIOKafkaConsumer) -> None:
        """How much waits on the sources: their ends, about once a second."""
        while not self._told_to_end.is_set():
            sources = [TopicPartition(*at) for at in sorted(self._view.road.sources())]
            asked = sources or [TopicPartition(FOLLOWED[0].name, 0)]
            try:
                async with asyncio.timeout(_ENDS_WITHIN_S):
                    ends = await consumer.end_offsets(asked)
            except (KafkaError, TimeoutError) as error:
                log.info("cannot ask where topics end, will try again", error=str(error))
            else:
                self.heard_s = time.monotonic()
                self._view.ends_are({(tp.topic, tp.partition): ends[tp] for tp in sources})
            await self._pause(_ENDS_S)
