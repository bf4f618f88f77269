"""One turn: a batch against the ledger. What ingest must know before it, and what its commit says of itself.

A worker takes its turns live, a rehearsal over records that are there already; both take them by this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import polars as pl

from infra.dataset import Dataset
from streams import watermark
from streams.dedupe import Read
from streams.ingest import Ingest, Prepared
from streams.ledger.commit import Ledger, Partition


def stand_by(ledger: Ledger, ingest: Ingest, partitions: Collection[Partition]) -> None:
    """What ingest must know of time is what the ledger says, whoever committed it."""
    marks = {p: ledger.watermark(p) for p in partitions}
    ingest.watermarks = {p: mark for p, mark in marks.items() if mark is not None}
    ingest.pipeline_watermark_ms = ledger.pipeline_watermark()


def watermark_after(
    ledger: Ledger, prepared: Prepared, partitions: Collection[Partition], idle: Collection[Partition] = ()
) -> int | None:
    """The pipeline's watermark, epoch ms, as it will be once that is committed."""
    marks = {p: prepared.watermarks.get(p, ledger.watermark(p)) for p in partitions}
    resting = {p for p in partitions if p not in prepared.advances and ledger.is_idle(p)}
    return watermark.of_pipeline(ledger.pipeline_watermark(), marks, idle=resting | set(idle))


def account_of(
    prepared: Prepared, *, watermark_ms: int | None, committed_ms: int, idle: Collection[Partition] = ()
) -> dict[str, Any]:
    """What the commit says of itself, beside the rows: all that a fold of the log needs."""
    return {
        **prepared.metadata(),
        "watermark_ms": watermark_ms,
        "committed_ms": committed_ms,
        "idle": sorted(f"{topic}/{number}" for topic, number in idle),
    }


def keys_of(ledger: Ledger) -> Callable[[str, str], Read]:
    """By source, what its dedupe reads of the dataset behind that ledger."""

    def keys(topic: str, key: str) -> Read:
        def read(start_ms: int, end_ms: int) -> pl.DataFrame:
            version = ledger.version()
            rows = Dataset(ledger.uri).scan(topic, version=version, start_ms=start_ms, end_ms=end_ms)
            return rows.select(key, "_time").collect()

        return read

    return keys
