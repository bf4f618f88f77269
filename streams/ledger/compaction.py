"""Small files of a dataset become large ones, beside workers that append and readers that read on.

A compaction is a version of its own that says nothing: the same rows in other files, no offsets, no
watermark. So there is nothing to announce, the ledger stands where it stood, and older versions read as
they did.

The log entry is written here and not by deltalake's `optimize.compact`: that chooses all files by itself,
mixes event times that the files' statistics had kept apart, cannot flush the new file before the entry names
it, and gives way to no append. Here the new file is on disk first, then the whole entry appears in one step
or not at all. Whoever dies in between leaves a file that nobody names, and a vacuum takes it.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from deltalake import DeltaTable
from polars.io.plugins import register_io_source

from infra.atomic_file import flush
from infra.dataset import actions_of, entry_of, open_table
from schemas.errors import Rejected, Retryable
from streams.ledger import checkpoint
from streams.ledger.commit import make_durable
from streams.ledger.entry import STATED, Action, add, entry, put

# Files of one class differ in size by no more than this factor: so a row is rewritten a few times in all.
_CLASS = 8
# Rows of a row group: statistics of event time let a reader of few windows pass over the others.
_GROUP_ROWS = 65_536
# Event times of all its files may overlap: so much is then in memory, sorted beside unsorted.
_MOST_ROWS = 1_000_000
_ORDER = ("_time", "_source", "_partition", "_offset", "_row")
# How often other commits may come first before it is left for later.
_TRIES = 50


class CompactionOvertaken(Retryable):
    """Others were faster: with a compaction of the same files, or with too many commits. Nothing changed."""


class CompactionNotWritten(Retryable):
    """The new file could not be written (disk full, no permission). Nothing changed."""


class CannotCompact(Rejected):
    """The dataset is not one that can be compacted here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """A compaction that was made: its version, and what became of how many files."""

    version: int
    files: int
    rows: int
    bytes_before: int
    bytes_after: int


def is_due(uri: str, *, files: int, file_bytes: int) -> bool:
    """Whether `compact` would find something to do.

    Raises:
        CannotCompact, DatasetUnreadable: as it does.
    """
    return _choose(_opened(uri), files, file_bytes) is not None


def compact(uri: str, *, files: int, file_bytes: int) -> Compacted | None:
    """Make one file of many small ones, the oldest by event time; None where there are not enough of them.

    Rows of open windows are among them: a window of a day that is committed to many times a second would
    else be a million files before it closes.

    Args:
        files: so many of about the same size are worth it.
        file_bytes: a file that large, or of a million rows, is left alone, and one is made about that large.

    Raises:
        CompactionOvertaken: others were faster; try again later.
        CannotCompact: it lies in an object store, or asks for a newer Delta protocol than is known here.
        DatasetUnreadable: there is none at `uri`.
        CompactionNotWritten: the disk is full, or it may not be written.
    """
    table, root = _opened(uri), Path(uri)
    chosen = _choose(table, files, file_bytes)
    if chosen is None:
        return None
    made = root / f"part-compacted-{uuid.uuid4()}.parquet"
    try:
        rows = _write(made, table, root, chosen)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CompactionNotWritten(
            f"{made} could not be written ({error}); the dataset is as it was: free space or mend its folder"
        ) from error
    try:
        version = _commit(root, table.version(), {c["path"] for c in chosen}, _entry(chosen, made, rows))
    except CompactionOvertaken:
        # After any other error the entry may be there, and names it: a vacuum can tell.
        made.unlink(missing_ok=True)
        raise
    make_durable(uri, version)
    if version % checkpoint.EVERY == 0:
        checkpoint.checkpoint(uri, version)
    return Compacted(
        version=version,
        files=len(chosen),
        rows=rows.height,
        bytes_before=sum(c["size_bytes"] for c in chosen),
        bytes_after=made.stat().st_size,
    )


def _opened(uri: str) -> DeltaTable:
    if "://" in uri:
        raise CannotCompact(f"dataset {uri} lies in an object store; only datasets in folders are compacted")
    table = open_table(uri)
    protocol = table.protocol()
    if protocol.min_reader_version > 1 or protocol.min_writer_version > 2:
        raise CannotCompact(
            f"dataset {table.table_uri} asks for Delta reader {protocol.min_reader_version} and writer "
            f"{protocol.min_writer_version}; compact it by what gave it those"
        )
    return table


def _choose(table: DeltaTable, files: int, file_bytes: int) -> list[dict[str, Any]] | None:
    """Of the lowest class of size with enough files the oldest, up to `file_bytes` or `_MOST_ROWS` in all."""
    live = pl.DataFrame(table.get_add_actions(flatten=True))
    if live.height < files:
        return None
    is_small = (pl.col("size_bytes") < file_bytes) & (pl.col("num_records") < _MOST_ROWS)
    small = live.filter(is_small).sort("min._time", "path", nulls_last=True)
    classes: dict[int, list[dict[str, Any]]] = {}
    for file in small.select("path", "size_bytes", "num_records", "min._time").iter_rows(named=True):
        classes.setdefault(int(math.log(file["size_bytes"], _CLASS)), []).append(file)
    for _, members in sorted(classes.items()):
        chosen, total_bytes, total_rows = [], 0, 0
        for file in members:
            chosen.append(file)
            total_bytes += file["size_bytes"]
            total_rows += file["num_records"]
            if total_bytes >= file_bytes or total_rows >= _MOST_ROWS:
                break
        if len(members) >= files and len(chosen) > 1:
            return chosen
    return None


def _write(made: Path, table: DeltaTable, root: Path, chosen: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """The rows of these files as one file, on disk; gives what the log states of them, row by row.

    Raises:
        PolarsError, OSError: it could not be written, or one of them not be read; nothing is left of it.
        CannotCompact: they do not hold what the log says.
    """
    schema = pl.Schema(pl.scan_delta(table).collect_schema())
    try:
        # A few row groups are in memory at a time, and what `_merged` holds.
        register_io_source(lambda *_: _merged(root, schema, chosen), schema=schema).sink_parquet(
            made, compression="zstd", compression_level=1, row_group_size=_GROUP_ROWS, engine="streaming"
        )
        rows = pl.read_parquet(made, columns=list(STATED))
        expected = sum(file["num_records"] for file in chosen)
        if rows.height != expected:
            raise CannotCompact(
                f"{len(chosen)} files of dataset {root} hold {rows.height} rows where its log says "
                f"{expected}; nothing was changed: the files are not those that were committed"
            )
        flush(made)
        flush(root)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    return rows


def _merged(root: Path, schema: pl.Schema, chosen: Sequence[dict[str, Any]]) -> Iterator[pl.DataFrame]:
    """All rows in the order of a large file, a part at a time.

    Files come by their first event time, so what lies before that of the next one is complete. Only files
    that overlap are held together.
    """
    held = pl.DataFrame(schema=schema)
    for number, file in enumerate(chosen, 1):
        path = str(root / file["path"])
        rows = pl.scan_parquet(path, schema=schema, missing_columns="insert", glob=False).collect()
        held = pl.concat([held, rows])
        del rows
        if number == len(chosen):
            yield held.sort(*_ORDER)
            return
        until_ms = chosen[number]["min._time"]
        if until_ms is None:  # nothing is stated of that file: it may begin anywhere
            continue
        whole = held.filter(pl.col("_time") < until_ms)
        if whole.height >= _GROUP_ROWS:
            held = held.filter(pl.col("_time") >= until_ms)
            yield whole.sort(*_ORDER)


def _entry(chosen: Sequence[dict[str, Any]], made: Path, rows: pl.DataFrame) -> bytes:
    """The log entry, by the Delta protocol: the same rows (`dataChange` false) in one file for these."""
    now_ms = int(time.time() * 1000)
    removed: list[Action] = [
        {
            "remove": {
                "path": c["path"],
                "size": c["size_bytes"],
                "deletionTimestamp": now_ms,
                "extendedFileMetadata": True,
                "partitionValues": {},
                "dataChange": False,
            }
        }
        for c in chosen
    ]
    said = json.dumps({"compacted": {"files": len(chosen), "rows": rows.height}})
    return entry("OPTIMIZE", [*removed, add(made, rows, is_new=False)], said)


def _commit(root: Path, seen: int, removed: set[str], content: bytes) -> int:
    """Put the entry behind the newest one; appends that come first are let by. Gives its version."""
    for _ in range(_TRIES):
        while (newer := entry_of(root, seen + 1)).exists():
            _check_unchanged(newer, removed)
            seen += 1
        try:
            put(root, seen + 1, content)
        except FileExistsError:
            continue
        return seen + 1
    raise CompactionOvertaken(f"{_TRIES} commits to {root} came first: compact it later")


def _check_unchanged(other: Path, removed: set[str]) -> None:
    """Nobody took one of these files out, or changed what the table is, since it was looked at."""
    try:
        actions = actions_of(other)
    except ValueError as error:
        raise CompactionOvertaken(f"log entry {other} is not whole yet ({error})") from error
    for action in actions:
        if "metaData" in action or "protocol" in action or action.get("remove", {}).get("path") in removed:
            raise CompactionOvertaken(f"log entry {other} changes what was to be compacted")
