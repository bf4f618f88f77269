"""A dataset made anew under other rules, beside the old one: a version of its own, `NAME@RULES`.

It reads the raw records from where they begin, and holds each event's time against the clock of its own
appending: by today's, a far-future time that was refused live would be taken, and carry the watermark away.
Stopped or killed, it goes on where its ledger stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from infra.dataset import Dataset
from infra.switched import live_dataset
from streams.decode.avro import Writers
from streams.lab.compare import Report, differences
from streams.lab.recorded import Recorded
from streams.lab.rehearse import Rehearsal, offsets_of
from streams.load import Loaded

_HASH = 8


def version_name(loaded: Loaded) -> str:
    """Name of the dataset that these rules make: the pipeline's, and the beginning of its file's SHA-256."""
    return f"{loaded.pipeline.name}@{loaded.sha256[:_HASH]}"


def rehearsal_at(
    loaded: Loaded, dataset_dir: Path, recorded: Recorded, *, writers: Writers | None = None
) -> Rehearsal:
    """The dataset that these rules make, opened or begun, and ready to take in records.

    Raises:
        DatasetDiffers, DatasetNotWhole, DatasetNotWritable: see `Ledger`.
    """
    return Rehearsal(
        loaded.pipeline, dataset_dir / version_name(loaded), recorded.partitions, writers=writers
    )


def positions_of(loaded: Loaded, dataset_dir: Path) -> dict[tuple[str, int], int]:
    """Where an earlier replay of the same rules stands, by partition; empty where there was none."""
    uri = dataset_dir / version_name(loaded)
    if not (uri / "_delta_log").is_dir():
        return {}
    return {partition: end for partition, (_, end) in offsets_of(uri).items()}


async def replay(
    rehearsal: Rehearsal,
    recorded: Recorded,
    *,
    batch_rows: int = 50_000,
    idle_after_ms: int = 30_000,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Take in all records that are not in the dataset yet; gives how many were read.

    Args:
        progress: told how many have been read.

    Raises:
        FailsOnAll: an expression fails on every row that comes; mended, the replay goes on.
        Fenced, Overtaken: another replay of the same rules runs.
    """
    events = 0
    async for batch in recorded.batches(rows=batch_rows, idle_after_ms=idle_after_ms):
        await asyncio.to_thread(rehearsal.take, batch.frames, idle=batch.idle)
        events += batch.rows
        progress(events)
    return events


def report_on(
    live: Loaded, edited: Loaded, dataset_dir: Path, *, read: str, events: int, began_s: float
) -> Report:
    """What differs between the live dataset and the one made anew, over the records that both have read.

    Args:
        live: the rules of the pipeline's live dataset.
        began_s: by `time.perf_counter`.

    Raises:
        DatasetUnreadable: one of both is not there.
    """
    (old, _), new = live_dataset(dataset_dir, live.pipeline.name), dataset_dir / version_name(edited)
    found = differences(((live.pipeline, old), (edited.pipeline, new)))
    versions = [f"{uri.name} version {Dataset(uri).newest_version()}" for uri in (old, new)]
    return Report(
        pipeline=edited.pipeline.name,
        live=versions[0],
        edited=versions[1],
        read=read,
        events=events,
        sources=found,
        seconds=time.perf_counter() - began_s,
    )
