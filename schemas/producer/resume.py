"""What the cluster holds of a push beyond what its journal knows: read from the topic itself.

A process that is killed leaves chunks of which nobody knows whether they arrived. An idempotent producer
keeps the order within a partition, so what arrived of them is a prefix: it is found by comparing the
topic's records behind the journal's offsets with those that would come next, byte for byte. Records of
other producers in between are passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from ..errors import InvalidConfiguration
from .record_batch import Records

_QUIET_S = 1.0
_LOOK_S = 0.1


class TopicMadeAnew(InvalidConfiguration):
    """The topic ends before what was acknowledged on it."""


async def ends_of(client: Mapping[str, Any], topic: str, partitions: int, *, quiet: bool) -> list[int]:
    """The next offset of each partition.

    Args:
        quiet: wait until none has moved for a second, or three have passed: a request of a process that was
            killed may still be on its way through the broker.
    """
    consumer = AIOKafkaConsumer(**client, enable_auto_commit=False)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        ends = await consumer.end_offsets(tps)
        quiet_since = began = time.monotonic()
        while quiet and time.monotonic() - quiet_since < _QUIET_S and time.monotonic() - began < 3 * _QUIET_S:
            await asyncio.sleep(_LOOK_S)
            newer = await consumer.end_offsets(tps)
            if newer != ends:
                quiet_since, ends = time.monotonic(), newer
        return [ends[tp] for tp in tps]
    finally:
        await consumer.stop()


async def arrived(
    client: Mapping[str, Any],
    topic: str,
    *,
    floors: Sequence[int],
    ends: Sequence[int],
    expected: Sequence[Sequence[Records]],
) -> list[list[int]]:
    """Offsets of each partition's expected records as far as they lie on it, from its floor on.

    Args:
        expected: of each partition, the records of one chunk after the other.

    Raises:
        TopicMadeAnew: a partition ends below its floor.
    """
    for number, (floor, end) in enumerate(zip(floors, ends, strict=True)):
        if end < floor:
            raise TopicMadeAnew(
                f"{topic}/{number} ends at {end}, but {floor} records were acknowledged on it: the topic was "
                "made anew; push all of the file by --from-beginning"
            )
    found: list[list[int]] = [[] for _ in floors]
    moved = [n for n in range(len(floors)) if ends[n] > floors[n] and expected[n]]
    if not moved:
        return found
    consumer = AIOKafkaConsumer(**client, enable_auto_commit=False, max_partition_fetch_bytes=4 * 2**20)
    await consumer.start()
    try:
        tps = {n: TopicPartition(topic, n) for n in moved}
        consumer.assign(list(tps.values()))
        for number, tp in tps.items():
            consumer.seek(tp, floors[number])
        awaited = {n: [pair for records in expected[n] for pair in records.pairs()] for n in moved}
        while moved:
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                own = awaited[tp.partition]
                for record in records:
                    at = len(found[tp.partition])
                    if at < len(own) and (record.key, record.value) == own[at]:
                        found[tp.partition].append(record.offset)
            moved = [n for n in moved if await consumer.position(tps[n]) < ends[n]]
        return found
    finally:
        await consumer.stop()
