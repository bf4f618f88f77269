"""Push a file's events to a raw topic, in batches, with progress."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import polars as pl
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import Progress

from infra.kafka.batches import partition_for, send_records
from infra.kafka.cluster import find_cluster
from infra.settings import Settings
from schemas import topics
from schemas.errors import InvalidConfiguration, Rejected

_ROWS_AT_A_TIME = 20_000


class FileUnreadable(Rejected):
    """The file is none that can be pushed."""


async def push_file(settings: Settings, topic: str, file: Path, console: Console) -> int:
    """Push every row of a file as one JSON event; gives how many the cluster holds.

    NDJSON lines are pushed as they stand, good or bad: what is wrong with one is said by its dead letter.

    Raises:
        InvalidConfiguration: no cluster, or the topic is not a raw one.
        FileUnreadable: the file is missing or of no known format.
    """
    declared = next((t for t in topics.TOPICS if t.name == topic and t.unknown_fields != "ignore"), None)
    if declared is None:
        raw = ", ".join(t.name for t in topics.TOPICS if t.unknown_fields != "ignore")
        raise InvalidConfiguration(f"{topic} is no raw topic; events can be pushed to {raw}")
    connection = find_cluster(settings)
    if connection is None:
        raise InvalidConfiguration("no broker runs here; start one by `tidemill up`, or name your cluster")
    lines = _lines(file)
    producer = AIOKafkaProducer(
        **connection.client_arguments(), enable_idempotence=True, acks="all", max_batch_size=262_144
    )
    await producer.start()
    pushed = 0
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"pushing to {topic}", total=len(lines))
            for start in range(0, len(lines), _ROWS_AT_A_TIME):
                chunk = lines[start : start + _ROWS_AT_A_TIME]
                by_partition: dict[int, list[tuple[bytes | None, bytes]]] = {}
                for line in chunk:
                    key = _key(line, declared.key)
                    by_partition.setdefault(partition_for(key, declared.partitions), []).append((key, line))
                sent = [
                    future
                    for partition, records in by_partition.items()
                    for future in await send_records(producer, topic, partition, records)
                ]
                for future in sent:
                    await future
                pushed += len(chunk)
                progress.update(bar, completed=pushed)
    finally:
        await producer.stop()
        if pushed < len(lines):
            console.print(f"{pushed:,} of {len(lines):,} events are on {topic}; the rest were not sent")
    return pushed


def _key(line: bytes, name: str) -> bytes:
    try:
        value = msgspec.json.decode(line)
        return str(value.get(name, "")).encode()
    except (msgspec.DecodeError, AttributeError, UnicodeError):
        return b""


def _lines(file: Path) -> list[bytes]:
    """Events as JSON lines."""
    if str(file) == "-":
        return [line for line in sys.stdin.buffer.read().splitlines() if line.strip()]
    if not file.is_file():
        raise FileUnreadable(f"there is no file {file}; check the path")
    try:
        match file.suffix.lower():
            case ".json" | ".ndjson" | ".jsonl":
                return [line for line in file.read_bytes().splitlines() if line.strip()]
            case ".csv":
                table = pl.read_csv(file, infer_schema_length=None)
            case ".parquet":
                table = pl.read_parquet(file)
            case ".arrow" | ".ipc" | ".feather":
                table = pl.read_ipc(file)
            case other:
                raise FileUnreadable(f"{file}: {other or 'no ending'} is none of ndjson, csv, parquet, arrow")
    except pl.exceptions.PolarsError as error:
        raise FileUnreadable(f"{file} cannot be read: {error}") from error
    encoded = table.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    return [line.encode() for line in encoded]
