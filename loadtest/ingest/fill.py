"""The topic of one benchmark, filled before any side begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import polars as pl
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import Progress

from infra.kafka.batches import Header, send_records
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from loadtest.ingest import readings
from schemas import topics
from schemas.envelope import ARROW_STREAM
from schemas.topics import CONTENT_TYPE_HEADER

Format = Literal["json", "arrow", "avro"]
Encode = Callable[[pl.DataFrame], Iterable[tuple[bytes | None, bytes]]]

_ENCODERS: dict[Format, Encode] = {
    "json": readings.as_json,
    "arrow": readings.as_arrow,
    "avro": readings.as_avro,
}
_HEADERS: dict[Format, tuple[Header, ...]] = {
    "json": (),
    "avro": (),
    "arrow": ((CONTENT_TYPE_HEADER, ARROW_STREAM.encode()),),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """What lies on the topic: `records` by partition, `events` in them, and what must come of these."""

    events: int
    records: tuple[int, ...]
    kept: int
    """Rows that cleaning leaves where repeats are kept."""
    unique: int
    """Rows that cleaning and dedupe leave."""
    bytes_per_event: float
    counts: pl.DataFrame = field(default_factory=pl.DataFrame)
    """Of the unique rows, by window, source and tag: what `readings.counts` gives."""


def producer_for(connection: Connection, form: Format = "json") -> AIOKafkaProducer:
    """A producer whose batches have room for such records."""
    return AIOKafkaProducer(
        **connection.client_arguments(),
        enable_idempotence=True,
        max_batch_size=512 * 1024 if form != "arrow" else 4 * 2**20,
        max_request_size=8 * 2**20,
    )


async def fill(
    connection: Connection,
    events: int,
    *,
    topic: str = readings.TOPIC,
    form: Format = "json",
    partitions: int = 4,
    keys: int = 32,
    first: int = 0,
    console: Console | None = None,
) -> Filled:
    """Create the topics and push the events, in order by partition; `first` as in `readings.chunks`."""
    await ensure([*topics.TOPICS, readings.declare(partitions, name=topic)], connection)
    producer = producer_for(connection, form)
    await producer.start()
    sent = kept = unique = size_bytes = 0
    records_sent = [0] * partitions
    counted: list[pl.DataFrame] = []
    try:
        with Progress(console=console, transient=True, disable=console is None) as progress:
            bar = progress.add_task(f"making {events:,} events", total=events)
            for parts in readings.chunks(events, partitions=partitions, keys=keys, first=first):
                for number, part in enumerate(parts):
                    good = readings.kept(part)
                    kept += good.height
                    once = good.unique("id")
                    unique += once.height
                    is_hot = pl.col("value") >= readings.HOT
                    counted.append(readings.counts(once.select("source", "time", is_hot=is_hot)))
                    records = list(_ENCODERS[form](part))
                    size_bytes += sum(len(value) for _, value in records)
                    records_sent[number] += len(records)
                    for future in await send_records(
                        producer, topic, number, records, headers=_HEADERS[form]
                    ):
                        await future
                    sent += part.height
                progress.update(bar, completed=sent)
    finally:
        await producer.stop()
    return Filled(
        events=sent,
        records=tuple(records_sent),
        kept=kept,
        unique=unique,
        bytes_per_event=size_bytes / max(sent, 1),
        counts=pl.concat(counted).group_by("window", "source", "tag").agg(pl.col("count").sum()),
    )
