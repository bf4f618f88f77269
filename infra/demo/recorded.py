"""A recorded stream without a cluster: the year's events through the worker's own step into a dataset.

What a worker commits, this commits: the same frames through `streams.ingest`, the same ledger, a commit a
day that the day's heartbeats end. What the lab needs of a past stream is there in a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from infra.dataset import Dataset
from infra.demo.flights import DAY_MS, events
from infra.demo.player import SOURCES, Partition, close_of_day_ms
from infra.kafka.batches import partition_for
from schemas.topics import WATERMARK_HEADER
from streams import watermark
from streams.ingest import Ingest, dataset_schema
from streams.ledger.commit import Ledger
from streams.pipeline import Pipeline
from streams.transport.frame import Frame, column


def record(
    pipeline: Pipeline, folder: Path, *, days: int, on_day: Callable[[int], object] = lambda _: None
) -> Dataset:
    """Commit so many days of flights into the dataset `folder / pipeline.name`, each as its window closes.

    A dataset that has some of the days already gets the rest: the ledger says where it stands.
    """
    ledger = Ledger(folder / pipeline.name, dataset_schema(pipeline))
    ingest = Ingest(pipeline)
    reached_ms = ledger.pipeline_watermark()
    partitions = [(topic.name, number) for topic in SOURCES for number in range(topic.partitions)]
    ingest.watermarks = {p: ms for p in partitions if (ms := ledger.watermark(p)) is not None}
    ingest.pipeline_watermark_ms = reached_ms
    ingest.recall()
    for day, frames in enumerate(_days(days)):
        if reached_ms is None or close_of_day_ms(day) > reached_ms:
            _commit(ledger, ingest, frames, close_of_day_ms(day))
        on_day(day)
    return Dataset(ledger.uri)


def _commit(ledger: Ledger, ingest: Ingest, frames: Sequence[Frame], now_ms: int) -> None:
    prepared = ingest.prepare(frames, now_ms=now_ms)
    mark_ms = watermark.of_pipeline(ledger.pipeline_watermark(), prepared.watermarks)
    ledger.commit(
        prepared.rows,
        advances=prepared.advances,
        watermarks=prepared.watermarks,
        pipeline_watermark_ms=mark_ms,
        metadata={**prepared.metadata(), "watermark_ms": mark_ms, "committed_ms": now_ms, "idle": []},
    )
    ingest.settle(prepared)
    ingest.pipeline_watermark_ms = mark_ms


def _days(days: int) -> Iterator[list[Frame]]:
    """A frame of every partition a day: its events in the order of time, then a heartbeat."""
    played = events(days=days + 1).filter(pl.col("time_ms") < close_of_day_ms(days - 1))
    counts = {topic.name: topic.partitions for topic in SOURCES}
    played = played.with_columns(
        day=((pl.col("time_ms") - close_of_day_ms(0)) // DAY_MS + 1).clip(lower_bound=0),
        partition=pl.Series(
            [
                partition_for(key.encode(), counts[topic])
                for topic, key in played.select("topic", "key").iter_rows()
            ],
            dtype=pl.Int32,
        ),
    )
    by_day = played.partition_by("day", as_dict=True, maintain_order=True)
    stands = {(topic.name, number): 0 for topic in SOURCES for number in range(topic.partitions)}
    for day in range(days):
        own = by_day.get((day,), played.clear()).partition_by("topic", "partition", as_dict=True)
        frames = []
        for partition, first in stands.items():
            part = own.get(partition, played.clear())
            frames.append(_frame(partition, first, part, close_of_day_ms(day)))
            stands[partition] = frames[-1].next
        yield frames


def _frame(partition: Partition, first: int, part: pl.DataFrame, heartbeat_ms: int) -> Frame:
    values, keys = part.get_column("value").cast(pl.Binary), part.get_column("key").cast(pl.Binary)
    return Frame(
        *partition,
        first,
        first + len(values) + 1,
        pl.concat([values, column([b""])]),
        pl.concat([keys, column([None])]),
        range(first, first + len(values) + 1),
        headers={len(values): ((WATERMARK_HEADER, str(heartbeat_ms).encode()),)},
        stamps=[(0, heartbeat_ms)],
        size_bytes=int(values.bin.size().sum()),
    )
