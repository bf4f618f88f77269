"""The dataset's log, read back: commits as the announcer folds them, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from infra.dataset import Dataset, entry_of
from infra.exclusion import excluded_at
from streams.announce import snapshot
from streams.announce.fold import (
    EVER_MS,
    Commit,
    Progress,
    accounts,
    columns_to_remember,
    remember_from_ms,
)
from streams.announce.recent import Recent
from streams.closing import closing
from streams.pipeline import Pipeline


def read_commit(pipeline: Pipeline, uri: str, version: int, *, columns: list[str] | None = None) -> Commit:
    """One version: the rows that it added, by source, and what it said of itself.

    `columns` are those that are wanted of the rows, meta columns with them; None: all.
    """
    dataset = Dataset(uri)
    record = dataset.commit(version)
    by_source: dict[str, pl.DataFrame] = {}
    # A compaction rewrites rows that earlier versions announced: it says nothing of offsets and adds none.
    if record.added and "offsets" in record.metadata:
        try:
            rows = pl.read_parquet(list(record.added), columns=columns, glob=False)
        except FileNotFoundError:  # compacted and vacuumed since: the rows lie in newer files
            rows = _rows_between(dataset, pipeline, record.metadata["offsets"])
        by_source = {topic: rows.filter(pl.col("_source") == topic) for topic in pipeline.sources()}
        by_source = {topic: own for topic, own in by_source.items() if own.height}
    return Commit(version, record.metadata, by_source)


def read_account(pipeline: Pipeline, uri: str, version: int) -> Commit:
    """One version as far as its windows are told by it: with its rows only where they are by key."""
    if pipeline.window.by is None:
        return Commit(version, Dataset(uri).commit(version).metadata, {})
    return read_commit(pipeline, uri, version)


def _rows_between(dataset: Dataset, pipeline: Pipeline, offsets: Mapping[str, Sequence[int]]) -> pl.DataFrame:
    """Rows of a commit by the offsets that it moved over: they are in every later version."""
    taken = pl.lit(value=False)
    for name, (start, end) in offsets.items():
        topic, _, number = name.rpartition("/")
        within = pl.col("_offset").is_between(start, end, closed="left")
        taken |= (pl.col("_source") == topic) & (pl.col("_partition") == int(number)) & within
    newest = dataset.newest_version()
    found = [
        dataset.scan(topic, version=newest, start_ms=EVER_MS, end_ms=-EVER_MS).filter(taken).collect()
        for topic in pipeline.sources()
    ]
    return pl.concat(found).sort("_source", "_partition", "_offset", "_row")


def is_committed(uri: str, version: int) -> bool:
    """Whether the log has that version."""
    return entry_of(uri, version).exists()


def recall(pipeline: Pipeline, uri: str, *, through_version: int) -> Progress:
    """The announcer's state just after a version, from the log alone (but for the trigger's history).

    From the newest snapshot on, where there is one: it only saves reading what it was made of.
    """
    progress = Progress(closing(pipeline.window), version=through_version)
    if through_version < 0:
        return progress
    first = 0
    if (found := snapshot.newest(uri, pipeline.window, through_version=through_version)) is not None:
        saved, progress.windows = found
        progress.watermark_ms, progress.tail_from_ms = saved.watermark_ms, saved.tail_from_ms
        progress.live = saved.live
        first = saved.version + 1
    for version in range(first, through_version + 1):
        commit = read_account(pipeline, uri, version)
        had_ms = progress.watermark_ms
        mark_ms = commit.metadata.get("watermark_ms")
        progress.watermark_ms = had_ms if mark_ms is None else mark_ms
        progress.live = progress.live.after(commit.metadata)
        progress.windows.take(accounts(pipeline, commit), had_ms=had_ms, mark_ms=progress.watermark_ms)
        if progress.watermark_ms is not None:
            progress.tail_from_ms = remember_from_ms(pipeline, progress)
    progress.excluded = excluded_at(uri, through_version)
    _recall_rows(pipeline, uri, progress)
    return progress


def keep(pipeline: Pipeline, uri: str, progress: Progress) -> None:
    """Leave a snapshot, so that the next announcer need not begin at the log's beginning."""
    snapshot.save(
        uri,
        pipeline.window,
        progress.version,
        windows=progress.windows,
        watermark_ms=progress.watermark_ms,
        tail_from_ms=progress.tail_from_ms,
        live=progress.live,
    )


def _recall_rows(pipeline: Pipeline, uri: str, progress: Progress) -> None:
    dataset = Dataset(uri)
    for topic, columns in columns_to_remember(pipeline).items():
        rows = dataset.scan(topic, version=progress.version, start_ms=progress.tail_from_ms, end_ms=-EVER_MS)
        rows = rows.select(*columns).collect()
        progress.tail[topic] = Recent(columns, rows)
        if topic == pipeline.source.topic and pipeline.spec().names():
            progress.pending = Recent(columns, rows)
            if progress.watermark_ms is not None:
                progress.pending.take_before(progress.watermark_ms)
