"""The common work: small sensor events, cleaned, deduped, tagged, counted in windows of 10 s.

The peers count by source and tag. Tidemill's windows say how many rows and tags of all sources they hold; by
source they are counted from the rows, which it keeps (see `counted`).

An event is about 130 bytes of JSON, keyed by its source. One in a thousand has an impossible value, five in
a thousand are sent twice. Event time runs at 1,000 events/s, out of order by 200 ms at most.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import fastavro
import numpy as np
import polars as pl
from msgspec import Meta, Struct

from infra.kafka.batches import partition_for
from schemas import topics
from schemas.raw import TimeMs
from schemas.topics import Topic, Version
from streams.clean import between, dedupe, require
from streams.pipeline import Pipeline, Source
from streams.tag import Tag
from streams.window import Sliding, Tumbling

TOPIC = "bench.readings"
FIRST_MS = 1_767_225_600_000
PER_SECOND = 1_000
WINDOW_MS = 10_000
HOTTEST = 150.0
HOT = 80.0
ROWS_PER_FRAME = 5_000
_CHUNK = 200_000
_SEED = 20_130_101


class Reading(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a sensor said. Event time: `time`."""

    id: Annotated[str, Meta(min_length=1, max_length=32)]
    time: TimeMs
    source: Annotated[str, Meta(min_length=1, max_length=32)]
    kind: Annotated[str, Meta(min_length=1, max_length=32)]
    value: Annotated[float | None, Meta(description="degrees Celsius")]
    battery: Annotated[int, Meta(ge=0, le=100, description="percent")]


def declare(partitions: int = 4, *, name: str = TOPIC) -> Topic:
    """The topic of the readings, declared for the worker's checks and for whoever creates it."""
    return topics.declare(
        Topic(
            name=name,
            purpose="Readings of the load test.",
            producer="tidemill bench",
            consumers=("the sides of tidemill bench",),
            key="source",
            partitions=partitions,
            versions=(Version(number=1, contracts=(Reading,)),),
            settings={"retention.ms": "-1", "max.message.bytes": "8388608"},
            unknown_fields="refuse",
        )
    )


AVRO_ID = 7
AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "time", "type": "long"},
        {"name": "source", "type": "string"},
        {"name": "kind", "type": "string"},
        {"name": "value", "type": ["null", "double"]},
        {"name": "battery", "type": "int"},
    ],
}
"""The writer's schema of the Avro records; its id is ours to choose, as it is found in a file."""


def pipeline(
    name: str,
    records: Literal["json", "avro"] = "json",
    *,
    topic: str = TOPIC,
    within: str | None = "1m",
    window: Sliding | None = None,
) -> Pipeline:
    """The common work as a Tidemill engineer writes it.

    Args:
        within: the horizon of dedupe, of event time; None keeps repeats.
        window: another than the common work's.
    """
    declare(name=topic)
    return Pipeline(
        name=name,
        source=Source(topic, schema=Reading, event_time="time", key="id", disorder="1s", records=records),
        clean=[
            require("source", "value"),
            between("value", -50, HOTTEST),
            *([dedupe(within=within)] if within else []),
        ],
        tag=[Tag("hot", pl.col("value") >= HOT)],
        window=window or Tumbling("10s", lateness="1s"),
    )


def sources(count: int, partitions: int) -> list[list[str]]:
    """Names of sources by partition, the same number in each but for one; every partition has some."""
    count = max(count, partitions)
    room = [count // partitions + (number < count % partitions) for number in range(partitions)]
    by_partition: list[list[str]] = [[] for _ in range(partitions)]
    numbers = itertools.count()
    while sum(map(len, by_partition)) < count:
        name = f"sensor-{next(numbers):05d}"
        at = partition_for(name.encode(), partitions)
        if len(by_partition[at]) < room[at]:
            by_partition[at].append(name)
    return by_partition


def chunks(
    events: int, *, partitions: int = 4, keys: int = 32, first: int = 0
) -> Iterator[list[pl.DataFrame]]:
    """The events in order of time, some hundred thousand at a time, each chunk by partition.

    The same for the same arguments, whoever makes them. `first` is the number of the first event: those
    before it were made by an earlier call.
    """
    chance = np.random.default_rng((_SEED, first) if first else _SEED)
    names = sources(keys, partitions)
    flat = [name for own in names for name in own]
    home = np.array([number for number, own in enumerate(names) for _ in own])
    for start in range(first, first + events, _CHUNK):
        number = np.arange(start, min(first + events, start + _CHUNK))
        size = len(number)
        by = chance.integers(0, len(flat), size)
        value = np.round(chance.normal(55, 20, size).clip(-40, 140), 2)
        value[chance.random(size) < 0.001] = 999.0
        time = FIRST_MS + number * 1000 // PER_SECOND + chance.integers(0, 200, size)
        table = pl.DataFrame(
            {
                "id": pl.Series([f"reading-{n:012d}" for n in number.tolist()]),
                "time": time,
                "source": pl.Series(flat).gather(by),
                "kind": pl.repeat("temperature", size, eager=True),
                "value": value,
                "battery": chance.integers(0, 101, size),
                "_partition": home[by],
            }
        )
        # A repeat is the row before it of its partition, whole: the same key, the same time.
        parts = [table.filter(pl.col("_partition") == n).drop("_partition") for n in range(partitions)]
        yield [_with_repeats(part, chance) for part in parts]


def _with_repeats(part: pl.DataFrame, chance: np.random.Generator) -> pl.DataFrame:
    at = np.arange(part.height)
    again = chance.random(part.height) < 0.005
    again[:1] = False
    at[again] -= 1
    return part[at.tolist()] if part.height else part


def kept(part: pl.DataFrame) -> pl.DataFrame:
    """Rows that cleaning leaves, repeats among them: the truth that a side's count is held against."""
    return part.filter(pl.col("value").is_between(-50, HOTTEST))


def counts(rows: pl.DataFrame) -> pl.DataFrame:
    """What the common work comes to: rows by window, source and tag ("hot" or none).

    Args:
        rows: columns time (epoch ms), source and is_hot.
    """
    return rows.group_by(
        window=pl.col("time") // WINDOW_MS * WINDOW_MS,
        source=pl.col("source"),
        tag=pl.when("is_hot").then(pl.lit("hot")).otherwise(pl.lit("")),
    ).agg(count=pl.len().cast(pl.Int64))


def as_json(part: pl.DataFrame) -> Iterator[tuple[bytes | None, bytes]]:
    """Records of one event."""
    values = part.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    for key, value in zip(part.get_column("source"), values, strict=True):
        yield key.encode(), value.encode()


def as_avro(part: pl.DataFrame) -> Iterator[tuple[bytes | None, bytes]]:
    """Records of one event in Confluent's framing."""
    schema = fastavro.parse_schema(AVRO)
    head = struct.pack(">bi", 0, AVRO_ID)
    for row in part.iter_rows(named=True):
        sink = io.BytesIO()
        sink.write(head)
        fastavro.schemaless_writer(sink, schema, row)
        yield row["source"].encode(), sink.getvalue()


def as_arrow(part: pl.DataFrame) -> Iterator[tuple[bytes | None, bytes]]:
    """Records of some thousand rows."""
    for rows in part.iter_slices(ROWS_PER_FRAME):
        sink = io.BytesIO()
        rows.write_ipc_stream(sink)
        yield None, sink.getvalue()
