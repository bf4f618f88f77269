"""What a service reads when it starts without a memory: it must depend on the models, not on their events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from loadtest.swap.models import event
from schemas import topics
from schemas.envelope import wrap

CLEANER = {"log.cleaner.backoff.ms": "200"}
"""Of the broker: it looks for what to compact this often; by default every 15 s."""

_HOUR_MS = "1000"
_COMPACTED_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Cold:
    """One start: the topic's events, of how many models, what was read of it, and how long that took."""

    events: int
    models: int
    records_read: int
    bytes_read: int
    took_ms: float


async def cold_starts(
    connection: Connection, events: Sequence[int], *, models: int = 5, said: Callable[[str], object]
) -> dict[str, list[dict[str, Any]]]:
    """Read the topic of current models after so many events of the same models, compacted and not.

    `declared` has the settings of `schemas.topics`, an hour of theirs made a second; `uncompacted` is what
    the same topic was with Kafka's own defaults for segments.
    """
    hours = {"segment.ms": _HOUR_MS, "max.compaction.lag.ms": _HOUR_MS}
    settings = {
        "declared": {**topics.MODELS_CURRENT.settings, **hours},
        "uncompacted": {
            name: value
            for name, value in topics.MODELS_CURRENT.settings.items()
            if name in ("cleanup.policy", "retention.ms", "max.message.bytes")
        },
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for side, how in settings.items():
        for count in events:
            said(f"a cold start after {count:,} events, {side}")
            topic = replace(topics.MODELS_CURRENT, name=f"cold-{side}-{count}", settings=how)
            await ensure([topic], connection)
            await _fill(connection, topic.name, count, models)
            if side == "declared":
                await _compacted(connection, topic.name, models)
            started = await _start(connection, topic.name)
            found.setdefault(side, []).append(asdict(Cold(count, models, *started)))
    return found


async def _fill(connection: Connection, topic: str, count: int, models: int) -> None:
    async with AIOKafkaProducer(**connection.client_arguments(), linger_ms=5) as producer:
        for version in range(1, count + 1):
            await _say(producer, topic, version, models)
        await producer.flush()


async def _say(producer: AIOKafkaProducer, topic: str, version: int, models: int) -> None:
    said = event(f"model-{version % models}", version, b"weights", store="http://127.0.0.1/", size=8)
    small = replace(wrap(said, source="/bench", time_ms=0), data=b'{"version": %d}' % version + b" " * 2000)
    key, value, headers = small.record()
    await producer.send(topic, key=key, value=value, headers=headers)


async def _compacted(connection: Connection, topic: str, models: int) -> None:
    """Wait until no more than two events a model are left. The next model's is said meanwhile, as one is."""
    async with asyncio.timeout(_COMPACTED_WITHIN_S):
        while True:
            async with AIOKafkaProducer(**connection.client_arguments()) as producer:
                await _say(producer, topic, 2**31 - 1, models)
                await producer.flush()
            records, *_ = await _start(connection, topic)
            if records <= 2 * models:
                return
            await asyncio.sleep(2.0)


async def _start(connection: Connection, topic: str) -> tuple[int, int, float]:
    """Records and bytes from the beginning to the end, and how long reading them took, in ms."""
    partition = TopicPartition(topic, 0)
    began_s = time.perf_counter()
    consumer = AIOKafkaConsumer(**connection.client_arguments(), enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        records = size_bytes = 0
        while await consumer.position(partition) < end:
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                records += len(batch)
                size_bytes += sum(len(record.value or b"") for record in batch)
        return records, size_bytes, (time.perf_counter() - began_s) * 1000
    finally:
        await consumer.stop()
