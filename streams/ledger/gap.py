"""A gap in a topic that a person accepts: what expired unread is passed over, and the ledger says by whom."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.switched import live_dataset
from schemas.errors import InvalidConfiguration
from streams.ingest import dataset_schema
from streams.ledger.commit import Advance, Ledger, Partition
from streams.ledger.positions import PositionLost, check_position
from streams.pipeline import Pipeline


class NoGap(InvalidConfiguration):
    """There is nothing to accept, or nothing that could be accepted."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets [start, next) of a partition that were never read, and will not be."""

    topic: str
    partition: int
    start: int
    next: int


async def _bounds(connection: Connection, partition: Partition) -> tuple[int, int]:
    """First and end offset of a partition, as the cluster has them now."""
    consumer = AIOKafkaConsumer(**connection.client_arguments(), enable_auto_commit=False)
    await consumer.start()
    try:
        tp = TopicPartition(*partition)
        first, end = await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])
        return first[tp], end[tp]
    finally:
        await consumer.stop()


async def accept_gap(
    pipeline: Pipeline, dataset_dir: Path, connection: Connection, partition: Partition, *, by: str
) -> tuple[Gap, int]:
    """Move a partition's position to the topic's first record; gives the gap and the version that says so.

    The commit holds no rows. It names the offsets that were passed over and who decided it. A worker that
    still runs is fenced by it like by any other commit.

    Raises:
        NoGap: the position is within the topic, was never committed, or the topic was made anew: then the
            offsets of what is there mean other records, and only a new name keeps each row once.
        Fenced, Overtaken: a worker was quicker; look again.
    """
    topic, number = partition
    if topic not in pipeline.sources():
        raise NoGap(
            f"{topic} is no source of pipeline {pipeline.name}; it has {', '.join(pipeline.sources())}"
        )
    ledger = Ledger(live_dataset(dataset_dir, pipeline.name)[0], dataset_schema(pipeline))
    at = ledger.position(partition)
    first, end = await _bounds(connection, partition)
    try:
        check_position(topic, number, at, first=first, end=end)
    except PositionLost as lost:
        if lost.kind != "records_expired":
            raise NoGap(f"there is no gap to accept: {lost}") from lost
        assert at is not None
    else:
        stands = "was never read" if at is None else f"stands at {at}, within [{first}, {end}]"
        raise NoGap(f"{topic}/{number} {stands}: nothing expired unread, and a worker can simply go on")
    gap = Gap(topic, number, at, first)
    now_ms = int(time.time() * 1000)
    version = ledger.commit(
        pl.DataFrame(schema=ledger.schema),
        advances={partition: Advance(at, first)},
        watermarks={},
        metadata={
            "offsets": {f"{topic}/{number}": [at, first]},
            "skipped": {f"{topic}/{number}": [at, first]},
            "decided_by": by,
            "committed_ms": now_ms,
            "watermark_ms": ledger.pipeline_watermark(),
        },
    )
    return gap, version
