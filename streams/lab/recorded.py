"""Records that are there already, in about the order in which they came: from a cluster, or from files.

Each partition is a feed. What is handed out next is what was appended first, so partitions keep step as they
did live, and only a few chunks are in memory. A partition that is silent for long, or read to its end, is
idle, as it was live.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.kafka.topics import partitions_of
from schemas.errors import InvalidConfiguration
from schemas.producer.encode import Encoder
from schemas.producer.source import FileUnreadable, open_source
from streams.decode.columns import schema_of
from streams.ledger.commit import Partition
from streams.live.judge import FOLLOWED
from streams.pipeline import Pipeline, Source
from streams.transport.frame import Frame, Headers, column

_EVER_MS = 2**62
_CHUNK = 20_000
_POLL_MS = 1_000


@dataclass(slots=True)
class Feed:
    """One partition's records that are read and not handed out yet.

    `order_ms` never falls: when a record came, or where nobody knows, its event time. `stamps_ms` is when it
    was appended, at the latest. `next` is the offset behind the last that was handed out; `end` the one
    behind the feed's last record, once that is known. `is_source` is False of announcements: no window waits
    for them.
    """

    partition: Partition
    next: int
    end: int | None = None
    is_source: bool = True
    offsets: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    stamps_ms: list[int] = field(default_factory=list)
    order_ms: list[int] = field(default_factory=list)
    newest_ms: int = -_EVER_MS
    handed_ms: int = -_EVER_MS

    def add(
        self,
        offset: int,
        value: bytes | None,
        key: bytes | None,
        headers: Headers,
        stamp_ms: int,
        order_ms: int | None,
    ) -> None:
        """One more record; `order_ms` None: it came with the one before."""
        self.newest_ms = max(self.newest_ms, -_EVER_MS if order_ms is None else order_ms)
        self.offsets.append(offset)
        self.values.append(value)
        self.keys.append(key)
        self.headers.append(headers)
        self.stamps_ms.append(stamp_ms)
        self.order_ms.append(self.newest_ms)

    @property
    def is_over(self) -> bool:
        """Whether all of it was handed out."""
        return self.end is not None and not self.offsets

    def take(self, until_ms: int, most: int) -> Frame | None:
        """A frame of the oldest records that came by then, at most so many; None of none."""
        count = min(bisect_right(self.order_ms, until_ms), most)
        if count == 0 and not (self.is_over and self.end is not None and self.next < self.end):
            return None
        whole = count == len(self.offsets) and self.end is not None
        behind = self.end if whole and self.end is not None else self.offsets[count - 1] + 1
        first, self.next = self.next, behind
        self.handed_ms = self.order_ms[count - 1] if count else self.handed_ms
        offsets, values, keys = self.offsets[:count], self.values[:count], self.keys[:count]
        headers = {i: said for i, said in enumerate(self.headers[:count]) if said}
        stamps: list[tuple[int, int]] = []
        for index, ms in enumerate(self.stamps_ms[:count]):
            if not stamps or stamps[-1][1] != ms:
                stamps.append((index, ms))
        for each in (self.offsets, self.values, self.keys, self.headers, self.stamps_ms, self.order_ms):
            del each[:count]
        dense = bool(offsets) and offsets[-1] - offsets[0] + 1 == len(offsets)
        return Frame(
            *self.partition,
            first,
            behind,
            column(values),
            column(keys),
            range(offsets[0], offsets[-1] + 1) if dense else offsets,
            headers=headers,
            stamps=stamps,
            size_bytes=sum(len(v) for v in values if v),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that came at about the same time, and the partitions silent then, with their next offsets."""

    frames: list[Frame]
    idle: dict[Partition, int]

    @property
    def rows(self) -> int:
        """Records in it."""
        return sum(map(len, self.frames))


Fill = Callable[[Sequence[Feed]], Awaitable[None]]
"""Reads on: afterwards each of these feeds has records, or its end is known."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Records to be read once. `records` is how many there are at most; None where only reading tells."""

    feeds: Sequence[Feed]
    fill: Fill
    records: int | None

    @property
    def partitions(self) -> set[Partition]:
        """All that will be read."""
        return {feed.partition for feed in self.feeds}

    async def batches(self, *, rows: int, idle_after_ms: int) -> AsyncIterator[Batch]:
        """All records, about `rows` at a time.

        Args:
            idle_after_ms: a partition silent for so long holds no window open meanwhile.
        """
        resting: dict[Partition, int] = {}
        last: Partition | None = None
        while True:
            hungry = [feed for feed in self.feeds if not feed.offsets and feed.end is None]
            if hungry:
                await self.fill(hungry)
            live = [feed for feed in self.feeds if feed.offsets]
            # What all have passed: nothing older can come of any.
            until_ms = min((feed.order_ms[-1] for feed in live), default=_EVER_MS)
            waiting = np.array([ms for feed in live for ms in feed.order_ms[:rows]])
            if len(waiting) > rows:
                until_ms = min(until_ms, int(np.partition(waiting, rows - 1)[rows - 1]))
            frames, left = [], rows
            for feed in sorted(self.feeds, key=lambda feed: feed.order_ms[0] if feed.offsets else _EVER_MS):
                frame = feed.take(until_ms, max(left, 0)) if left > 0 or not feed.offsets else None
                if frame is not None:
                    frames.append(frame)
                    left -= len(frame)
                    if len(frame) and feed.is_source:
                        last = feed.partition
            sources = [feed for feed in self.feeds if feed.is_source]
            front_ms = max((feed.handed_ms for feed in sources), default=0)
            idle = {
                feed.partition: feed.next
                for feed in sources
                if feed.is_over or (feed.offsets and feed.order_ms[0] > front_ms + idle_after_ms)
            }
            if len(idle) == len(sources) and last is not None:
                # Whoever spoke last carries the watermark, as live.
                idle.pop(last, None)
            # A partition that moved on in this very batch rests anew behind it.
            fresh = {p: at for p, at in idle.items() if resting.get(p) != at}
            resting = idle
            if frames or fresh:
                yield Batch(frames, fresh)
            if all(feed.is_over and feed.next == feed.end for feed in self.feeds):
                return


@asynccontextmanager
async def from_cluster(
    connection: Connection,
    topics: Sequence[str],
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    positions: Mapping[Partition, int] | None = None,
    beside: Mapping[str, int | None] | None = None,
) -> AsyncIterator[Recorded]:
    """Raw records of a cluster, by when they were appended; to where the topics end now.

    Args:
        from_ms, to_ms: records appended in [from_ms, to_ms), epoch ms; None: all that there are.
        positions: where to go on instead, by partition.
        beside: topics of announcements that are read with them, where they are there, each from that time on.

    Raises:
        InvalidConfiguration: a topic is not there, or a position has expired.
    """
    there = await partitions_of(connection)
    if missing := [topic for topic in topics if topic not in there]:
        raise InvalidConfiguration(
            f"topic {missing[0]} is not on the cluster; has anything been pushed to it?"
        )
    said = {topic: since for topic, since in (beside or {}).items() if topic in there}
    partitions = [
        TopicPartition(topic, number) for topic in (*topics, *said) for number in range(there[topic])
    ]
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(),
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 * 2**20,
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        firsts, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        starts: dict[TopicPartition, int] = {**firsts}
        for since_ms in {from_ms, *said.values()}:
            asked = [tp for tp in partitions if said.get(tp.topic, from_ms) == since_ms]
            if since_ms is not None and asked:
                starts |= await _offsets_at(consumer, asked, since_ms, ends)
        ends = ends if to_ms is None else await _offsets_at(consumer, partitions, to_ms, ends)
        feeds = []
        for tp in partitions:
            start: int = (positions or {}).get((tp.topic, tp.partition), starts[tp])
            if start < firsts[tp]:
                raise InvalidConfiguration(
                    f"{tp.topic}/{tp.partition}: records from offset {start} to {firsts[tp] - 1} have expired"
                )
            over_at = start if start >= ends[tp] else None
            feeds.append(Feed((tp.topic, tp.partition), start, over_at, is_source=tp.topic not in said))
            consumer.seek(tp, start)
        total = sum(max(0, ends[tp] - feed.next) for tp, feed in zip(partitions, feeds, strict=True))

        async def fill(hungry: Sequence[Feed]) -> None:
            wanting = {TopicPartition(*feed.partition): feed for feed in hungry}
            while wanting:
                for tp, records in (await consumer.getmany(*wanting, timeout_ms=_POLL_MS)).items():
                    feed = wanting[tp]
                    for record in records:
                        if record.offset < ends[tp]:
                            headers = record.headers
                            feed.add(
                                record.offset,
                                record.value,
                                record.key,
                                headers,
                                record.timestamp,
                                record.timestamp,
                            )
                for tp, feed in list(wanting.items()):
                    if await consumer.position(tp) >= ends[tp]:
                        feed.end = ends[tp]
                    if feed.end is not None or feed.offsets:
                        del wanting[tp]

        yield Recorded(feeds, fill, total)
    finally:
        await consumer.stop()


async def _offsets_at(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], ms: int, ends: Mapping[Any, int]
) -> dict[TopicPartition, int]:
    """Offset of each partition's first record that was appended at that time or later; else its end."""
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, max(ms, 0)))
    return {tp: at.offset if (at := found.get(tp)) is not None else ends[tp] for tp in partitions}


def from_files(
    pipeline: Pipeline, files: Mapping[str, Path], *, from_ms: int | None = None, to_ms: int | None = None
) -> Recorded:
    """Raw events in files, by topic: events as `tidemill push` takes them, or records as an archive has them.

    A table with a binary column `value` is an archive of records: `key`, `partition`, `offset`, `timestamp`
    (or `timestamp_ms`) and `headers` are read where they are there. Events alone are read in the order of
    their event times, and were appended by when the file was last written.

    Args:
        files: by topic; beside the sources' also an archive of what services answered and trainers said.
        from_ms, to_ms: records in [from_ms, to_ms): by their timestamps in an archive, else by event time.

    Raises:
        InvalidConfiguration: a topic is no source of the pipeline.
        FileUnreadable: a file is missing, or of no known format.
    """
    chunks: dict[Partition, Iterator[Sequence[tuple[Any, ...]]]] = {}
    feeds, known = [], pipeline.sources()
    total: int | None = 0
    for topic, file in files.items():
        if topic not in known and topic not in FOLLOWED:
            raise InvalidConfiguration(
                f"pipeline {pipeline.name} has no source {topic}; write --file TOPIC=PATH, one of "
                f"{', '.join(known)}"
            )
        for partition, read in _parted(known.get(topic), file).items():
            feeds.append(Feed((topic, partition), 0, is_source=topic in known))
            chunks[topic, partition] = read
        counted = open_source(file, (known[topic].schema,) if topic in known else ()).rows
        total = None if total is None or counted is None else total + counted
    first_ms, end_ms = -_EVER_MS if from_ms is None else from_ms, _EVER_MS if to_ms is None else to_ms

    async def fill(hungry: Sequence[Feed]) -> None:
        for feed in hungry:
            behind = feed.next
            while not feed.offsets and feed.end is None:
                chunk = next(chunks[feed.partition], None)
                if chunk is None:
                    feed.end = behind
                    break
                for offset, value, key, headers, stamp_ms, order_ms in chunk:
                    behind = offset + 1
                    if order_ms is None or first_ms <= order_ms < end_ms:
                        feed.add(offset, value, key, headers, stamp_ms, order_ms)
                if not feed.offsets:
                    feed.next = behind

    return Recorded(feeds, fill, total)


def _parted(source: Source | None, file: Path) -> dict[int, Iterator[Sequence[tuple[Any, ...]]]]:
    """Chunks of (offset, value, key, headers, stamp, order) by partition."""
    opened = open_source(file, () if source is None else (source.schema,))
    if file.suffix.lower() == ".parquet":
        schema = pl.scan_parquet(file, glob=False).collect_schema()
        if schema.get("value") == pl.Binary() and (source is None or "value" not in schema_of(source.schema)):
            scanned = _archive(pl.scan_parquet(file, glob=False), schema)
            numbers = scanned.select("partition").unique().collect().get_column("partition").sort().to_list()
            return {n: _records(scanned.filter(pl.col("partition") == n)) for n in numbers}
    if source is None:
        raise FileUnreadable(f"{file} is no archive of records: a Parquet file with a binary column value")
    written_ms = int((time.time() if str(file) == "-" else file.stat().st_mtime) * 1000)
    return {0: _events(source, opened.chunks(), written_ms)}


def _archive(scanned: pl.LazyFrame, schema: pl.Schema) -> pl.LazyFrame:
    """An archive's columns under their names and types here."""
    time_column = next((c for c in ("timestamp_ms", "timestamp") if c in schema), None)
    if time_column is None:
        raise FileUnreadable("the archive has no column timestamp or timestamp_ms: when its records came")
    stamp = pl.col(time_column)
    temporal = schema[time_column].is_temporal()
    return scanned.with_row_index("_at").select(
        offset=pl.col("offset").cast(pl.Int64) if "offset" in schema else pl.col("_at").cast(pl.Int64),
        value=pl.col("value"),
        key=pl.col("key").cast(pl.Binary) if "key" in schema else pl.lit(None, dtype=pl.Binary),
        headers=pl.col("headers") if "headers" in schema else pl.lit(None),
        timestamp_ms=stamp.dt.epoch("ms") if temporal else stamp.cast(pl.Int64),
        partition=pl.col("partition").cast(pl.Int32) if "partition" in schema else pl.lit(0, dtype=pl.Int32),
    )


def _records(scanned: pl.LazyFrame) -> Iterator[Sequence[tuple[Any, ...]]]:
    behind = -1
    for table in scanned.collect_batches(chunk_size=_CHUNK, maintain_order=True):
        chunk = []
        for offset, value, key, headers, stamp_ms, _ in table.iter_rows():
            if offset <= behind:
                raise FileUnreadable(
                    f"the archive's offsets do not rise within a partition: {offset} after {behind}"
                )
            behind = offset
            named = tuple((h["key"], h["value"]) for h in headers or ())
            chunk.append((offset, value, key, named, stamp_ms, stamp_ms))
        yield chunk


def _events(source: Source, chunks: Iterator[Any], written_ms: int) -> Iterator[Sequence[tuple[Any, ...]]]:
    encoder = Encoder(source.key, 1, "json")
    when = msgspec.json.Decoder(
        msgspec.defstruct("Timed", [("at", Any, None)], rename={"at": source.event_time}, gc=False)
    )
    offset = 0
    for chunk in chunks:
        read = []
        for key, value in encoder.encode(chunk)[0].pairs():
            read.append((offset, value, key, (), written_ms, _time_of(when, value)))
            offset += 1
        yield read


def _time_of(when: msgspec.json.Decoder, value: bytes) -> int | None:
    try:
        at = when.decode(value).at
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
        return None
    return at if isinstance(at, int) and abs(at) <= 2**53 else None
