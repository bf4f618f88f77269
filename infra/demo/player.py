"""The player: pushes the year's events in event-time order, a day at a time, and heartbeats after each.

What it will push is the same in every run, record by record and partition by partition. So where a run was
cut off is read from the topics' own ends: the next run goes on behind them, and nothing is pushed twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.demo.flights import DAY_MS, FIRST_DAY_MS, HOUR_MS, events
from infra.kafka.batches import partition_for, send_records
from infra.kafka.connection import Connection
from schemas import topics
from schemas.topics import WATERMARK_HEADER

SOURCES = (topics.FLIGHTS_SCHEDULED, topics.FLIGHTS_DEPARTED, topics.FLIGHTS_ARRIVED, topics.WEATHER_HOURLY)
Partition = tuple[str, int]


def close_of_day_ms(day: int) -> int:
    """Event time at which the window of a day (0 is 1 January) closes: six hours after its end."""
    return FIRST_DAY_MS + (day + 1) * DAY_MS + 6 * HOUR_MS


class Player:
    """Plays days; day n ends when the window of day n closes."""

    def __init__(self, connection: Connection, *, days: int) -> None:
        self.days = days
        self._connection = connection
        played = events(days=days + 1).filter(pl.col("time_ms") < close_of_day_ms(days - 1))
        self.events = played.height
        keys = played.get_column("key").to_list()
        counts = {t.name: t.partitions for t in SOURCES}
        by_partition = played.with_columns(
            # Day 0 lasts until its window closes, 30 hours; each later one a day from there.
            day=((pl.col("time_ms") - close_of_day_ms(0)) // DAY_MS + 1).clip(lower_bound=0),
            partition=pl.Series(
                [
                    partition_for(key.encode(), counts[topic])
                    for key, topic in zip(keys, played.get_column("topic"), strict=True)
                ],
                dtype=pl.Int32,
            ),
        )
        self._by_day = by_partition.partition_by("day", as_dict=True, maintain_order=True)
        self._pushed: dict[Partition, int] = {}
        self._planned: dict[Partition, int] = {}

    async def start(self) -> int:
        """Connect, and read how far an earlier run came. Gives the first day that is not wholly pushed."""
        self._producer = AIOKafkaProducer(
            **self._connection.client_arguments(),
            enable_idempotence=True,
            acks="all",
            max_batch_size=262_144,
            linger_ms=0,
        )
        await self._producer.start()
        consumer = AIOKafkaConsumer(**self._connection.client_arguments())
        await consumer.start()
        try:
            tps = [TopicPartition(t.name, n) for t in SOURCES for n in range(t.partitions)]
            ends = await consumer.end_offsets(tps)
        finally:
            await consumer.stop()
        self._pushed = {(tp.topic, tp.partition): end for tp, end in ends.items()}
        self._planned = dict.fromkeys(self._pushed, 0)
        day = 0
        while day < self.days and self._is_pushed(day):
            self._plan(self._day(day))
            day += 1
        return day

    def _day(self, day: int) -> Mapping[Partition, list[tuple[bytes | None, bytes]]]:
        """Records of a day by partition, without the heartbeat that ends them."""
        records: dict[Partition, list[tuple[bytes | None, bytes]]] = {p: [] for p in self._pushed}
        frame = self._by_day.get((day,))
        if frame is not None:
            for topic, partition, key, value in frame.select(
                "topic", "partition", "key", "value"
            ).iter_rows():
                records[topic, partition].append((key.encode(), value.encode()))
        return records

    def _is_pushed(self, day: int) -> bool:
        records = self._day(day)
        return all(self._planned[p] + len(own) + 1 <= self._pushed[p] for p, own in records.items())

    def _plan(self, records: Mapping[Partition, list[tuple[bytes | None, bytes]]]) -> None:
        for partition, own in records.items():
            self._planned[partition] += len(own) + 1

    async def play(self, day: int) -> int:
        """Push what of a day is not there yet, then heartbeats. Gives how many events were pushed."""
        records = self._day(day)
        heartbeat = ((WATERMARK_HEADER, str(close_of_day_ms(day)).encode()),)
        sent = []
        pushed = 0
        for (topic, partition), own in records.items():
            there = max(0, self._pushed[topic, partition] - self._planned[topic, partition])
            sent += await send_records(self._producer, topic, partition, own[there:])
            pushed += len(own[there:])
        # All events before any heartbeat: a heartbeat says that nothing earlier follows.
        for future in sent:
            await future
        beats = []
        for (topic, partition), own in records.items():
            there = self._pushed[topic, partition] - self._planned[topic, partition]
            if there <= len(own):
                beats += await send_records(
                    self._producer, topic, partition, [(None, b"")], headers=heartbeat
                )
        for future in beats:
            await future
        self._plan(records)
        return pushed

    async def stop(self) -> None:
        """Let go of the cluster."""
        await self._producer.stop()
