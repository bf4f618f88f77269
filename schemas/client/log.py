"""Read model events in the order of their log: one consumer for every model that a service follows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.structs import TopicPartition

log = logging.getLogger(__name__)

_ASK_END_WITHIN_S = 30.0
_AGAIN_AFTER_S = 1.0


class Reader(Protocol):
    """Who follows one model by its log."""

    name: str
    topic: str
    confirm_every_s: float

    async def take(self, record: ConsumerRecord[Any, Any]) -> None:
        """A record whose key is the model's name; the next is read only when this one is taken."""
        ...

    def confirmed(self, asked_s: float) -> None:
        """All that lay in the log at that moment (of `time.monotonic`) was taken."""
        ...


@dataclass(slots=True)
class _End:
    """Where a topic ended when that was last asked, and whether all up to there was read."""

    offsets: Mapping[TopicPartition, int]
    asked_s: float
    reached: bool = False


class ModelLog:
    """Hands each model event to whoever follows its name, and says how far the log was read."""

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._client = dict(client)

    async def run(self, readers: Sequence[Reader]) -> None:
        """Read from the beginning, until cancelled; while the cluster is away, try again.

        A cluster that comes back is read from the beginning once more: readers know what they have.
        """
        while True:
            consumer = AIOKafkaConsumer(
                **self._client, enable_auto_commit=False, auto_offset_reset="earliest"
            )
            try:
                await consumer.start()
                await self._read(consumer, readers)
            except Exception as error:
                log.warning("model events cannot be read, trying again in a second: %s", error)
            finally:
                await asyncio.gather(consumer.stop(), return_exceptions=True)
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def _read(self, consumer: AIOKafkaConsumer, readers: Sequence[Reader]) -> None:
        of_topic: dict[str, list[Reader]] = defaultdict(list)
        of_key: dict[tuple[str, bytes], list[Reader]] = defaultdict(list)
        for reader in readers:
            of_topic[reader.topic].append(reader)
            of_key[reader.topic, reader.name.encode()].append(reader)
        # Asking for all topics creates none, as asking for one would on some clusters.
        while not of_topic.keys() <= await consumer.topics():  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        partitions = {
            topic: [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or {0}]
            for topic in of_topic
        }
        every = [partition for each in partitions.values() for partition in each]
        consumer.assign(every)
        await consumer.seek_to_beginning(*every)
        ends = {topic: await _end(consumer, each) for topic, each in partitions.items()}
        ask_every_s = min(reader.confirm_every_s for reader in readers)
        wait_ms = int(1000 * min(1.0, ask_every_s))
        while True:
            for topic, end in ends.items():
                if not end.reached and await _is_reached(consumer, end):
                    end.reached = True
                    for reader in of_topic[topic]:
                        reader.confirmed(end.asked_s)
            for records in (await consumer.getmany(timeout_ms=wait_ms)).values():
                for record in records:
                    for reader in of_key.get((record.topic, record.key or b""), ()):
                        await reader.take(record)
            for topic, end in ends.items():
                if end.reached and time.monotonic() - end.asked_s >= ask_every_s:
                    ends[topic] = await _end(consumer, partitions[topic])


async def _end(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> _End:
    """The moment is the one before it was asked: what comes later may lie behind the answer."""
    asked_s = time.monotonic()
    async with asyncio.timeout(_ASK_END_WITHIN_S):
        return _End(await consumer.end_offsets(partitions), asked_s)


async def _is_reached(consumer: AIOKafkaConsumer, end: _End) -> bool:
    return all([await consumer.position(place) >= offset for place, offset in end.offsets.items()])
