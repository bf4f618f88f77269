"""What was acknowledged, held against what lies on the topic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from loadtest.door.form import number_of
from loadtest.ingest.readings import TOPIC, declare

_UNKNOWN = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The account of one run.

    Attributes:
        lost: acknowledged events that are nowhere on the topic.
        misplaced: those that do not lie where their answer said.
        twice: records that are there once more, such as those sent again after an answer that never came.
    """

    acknowledged: int
    lost: int
    misplaced: int
    twice: int


async def ends(connection: Connection) -> dict[int, int]:
    """The topic's end by partition."""
    consumer = AIOKafkaConsumer(**connection.client_arguments(), enable_auto_commit=False)
    await consumer.start()
    try:
        places = [TopicPartition(TOPIC, number) for number in range(declare().partitions)]
        return {place.partition: end for place, end in (await consumer.end_offsets(places)).items()}
    finally:
        await consumer.stop()


async def lying(connection: Connection, before: dict[int, int]) -> dict[int, np.ndarray]:
    """Numbers of the events on the topic since `before`: by partition, in the order of offsets."""
    until = await ends(connection)
    found = {number: np.full(until[number] - start, _UNKNOWN) for number, start in before.items()}
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(), enable_auto_commit=False, max_partition_fetch_bytes=8 << 20
    )
    await consumer.start()
    try:
        places = [TopicPartition(TOPIC, number) for number in found if len(found[number])]
        consumer.assign(places)
        for place in places:
            consumer.seek(place, before[place.partition])
        left = sum(map(len, found.values()))
        while left:
            for place, records in (await consumer.getmany(timeout_ms=1_000)).items():
                into, start = found[place.partition], before[place.partition]
                own = [
                    (r.offset - start, r.value or b"") for r in records if r.offset < until[place.partition]
                ]
                into[[at for at, _ in own]] = [number_of(value) for _, value in own]
                left -= len(own)
    finally:
        await consumer.stop()
    return found


def compare(acknowledged: np.ndarray, found: dict[int, np.ndarray], before: dict[int, int]) -> Found:
    """The account.

    Args:
        acknowledged: int64 of shape (events, 3): number, partition, offset; an offset of -1 is not known.
        found: what `lying` gives.
    """
    everything = np.concatenate([*found.values(), np.empty(0, dtype=np.int64)])
    numbers, partitions, offsets = acknowledged.T
    misplaced = 0
    for partition, lies in found.items():
        mine = (partitions == partition) & (offsets >= 0)
        at = offsets[mine] - before[partition]
        there = (at >= 0) & (at < len(lies))
        misplaced += int((~there).sum()) + int((lies[at[there]] != numbers[mine][there]).sum())
    return Found(
        acknowledged=len(numbers),
        lost=int((~np.isin(numbers, everything)).sum()),
        misplaced=misplaced,
        twice=len(everything) - len(np.unique(everything)),
    )
