"""Tells others of jobs and models, from the events alone: all that the topics hold, then what comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.logging import logger
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import Retryable

FOLLOWED = (topics.JOBS, topics.MODELS)
_POLL_MS = 500
_AGAIN_S = 2.0

Tell = Callable[[Sequence[tuple[Announcement, int]]], Awaitable[None]]

log = logger(__name__)


async def mirror(connection: Connection, tell: Tell, *, follow: bool) -> int:
    """Pass events on, each with its time in epoch ms, a batch at a time; gives how many.

    A batch that could not be told is told again, whole, until it is: `tell` must bear repeats.

    Args:
        follow: go on until cancelled; else to where the topics end now.
    """
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=_POLL_MS,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(t.name, number) for t in FOLLOWED for number in range(t.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends, told = await consumer.end_offsets(tps), 0
        while follow or any([await consumer.position(tp) < end for tp, end in ends.items()]):
            events: list[tuple[Announcement, int]] = []
            for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    with contextlib.suppress(NotAnAnnouncement):
                        envelope = open_record(record.key, record.value, record.headers)
                        events.append((unwrap(envelope), envelope.time_ms))
            if events:
                await _tell(tell, events)
                told += len(events)
        return told
    finally:
        await consumer.stop()


async def _tell(tell: Tell, events: Sequence[tuple[Announcement, int]]) -> None:
    while True:
        try:
            await tell(events)
        except Retryable as error:
            log.warning("cannot tell, will try again", error=str(error), in_s=_AGAIN_S)
            await asyncio.sleep(_AGAIN_S)
        else:
            return
