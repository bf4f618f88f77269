"""The dataset's log, read back: commits as the announcer folds them, whoever made them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import polars as pl

from infra.dataset import Dataset
from schemas.window import Summary
from streams.announce import Commit, Progress, columns_to_remember, partition_of, remember_from_ms
from streams.ledger import Partition
from streams.pipeline import Pipeline
from streams.summary import merge
from streams.watermark import of_pipeline


def read_commit(pipeline: Pipeline, uri: str, version: int) -> Commit:
    """One version: the rows that it added, by source, and what it said of itself."""
    record = Dataset(uri).commit(version)
    by_source: dict[str, pl.DataFrame] = {}
    # A compaction rewrites rows that earlier versions announced: it says nothing of offsets and adds none.
    if record.added and "offsets" in record.metadata:
        rows = pl.read_parquet(list(record.added), glob=False)
        by_source = {topic: rows.filter(pl.col("_source") == topic) for topic in pipeline.sources()}
        by_source = {topic: own for topic, own in by_source.items() if own.height}
    return Commit(version, record.timestamp_ms, record.metadata, by_source)


def recall(
    pipeline: Pipeline, uri: str, *, through_version: int, partitions: Iterable[Partition]
) -> Progress:
    """The announcer's state just after a version, from the log alone (but for the trigger's history).

    Windows whose end plus lateness the watermark of that version has passed were announced by then.
    """
    progress = Progress(partitions=dict.fromkeys(partitions), version=through_version)
    if through_version < 0:
        return progress
    summaries: dict[int, Summary] = {}
    for record in Dataset(uri).commits(until_version=through_version):
        said = record.metadata
        for name, mark_ms in said.get("watermarks", {}).items():
            known_ms = progress.partitions.get(partition_of(name))
            progress.partitions[partition_of(name)] = mark_ms if known_ms is None else max(known_ms, mark_ms)
        progress.idle -= {partition_of(name) for name in said.get("offsets", {})}
        progress.idle |= {partition_of(name) for name in said.get("idle", [])}
        progress.watermark_ms = of_pipeline(progress.watermark_ms, progress.partitions, idle=progress.idle)
        for start, summary in said.get("summaries", {}).items():
            parsed = msgspec.convert(summary, Summary)
            summaries[int(start)] = merge(summaries.get(int(start), Summary()), parsed)
    mark_ms = progress.watermark_ms
    window = pipeline.window
    for start_ms, summary in summaries.items():
        is_closed = mark_ms is not None and window.closes_at_ms(start_ms) <= mark_ms
        (progress.closed if is_closed else progress.open)[start_ms] = summary
    _recall_rows(pipeline, uri, progress)
    return progress


def _recall_rows(pipeline: Pipeline, uri: str, progress: Progress) -> None:
    if progress.watermark_ms is None:
        from_ms = _EVER_MS
    else:
        from_ms = remember_from_ms(pipeline, progress.watermark_ms, progress.open)
    dataset = Dataset(uri)
    for topic, columns in columns_to_remember(pipeline).items():
        progress.tail[topic] = dataset.rows(
            topic, version=progress.version, start_ms=from_ms, end_ms=-_EVER_MS, columns=list(columns)
        ).select(*columns)
    main = progress.tail[pipeline.source.topic]
    if progress.watermark_ms is not None:
        main = main.filter(pl.col("_time") >= progress.watermark_ms)
    progress.pending = main


_EVER_MS = -(2**62)
