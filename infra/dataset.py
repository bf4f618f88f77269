"""A pipeline's dataset, read at exactly the version that somebody names.

A dataset is one Delta table: all sources' rows in one flat schema, each row with the meta columns below.
Streams append to it (`streams.ledger.commit`); trainers and engineers read it here. A version never changes.

Meta columns: `_source` (topic), `_partition`, `_offset`, `_row` (identity of the row), `_time` (event
time, epoch ms UTC), `_tags`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from schemas.errors import Rejected
from schemas.model import OffsetRange

META: dict[str, pl.DataType] = {
    "_source": pl.String(),
    "_partition": pl.Int32(),
    "_offset": pl.Int64(),
    "_row": pl.Int32(),
    "_time": pl.Int64(),
    "_tags": pl.List(pl.String()),
}
IDENTITY = ("_source", "_partition", "_offset", "_row")
COMMIT_METADATA = "tidemill"


def transaction_name(what: Literal["offset", "watermark", "idle"], topic: str, partition: int) -> str:
    """Under which name the table's transactions hold what the ledger knows of a partition.

    Its next offset, its watermark in epoch ms, or the offset at which it was said to be idle.
    """
    return f"{what}/{topic}/{partition}"


class DatasetUnreadable(Rejected):
    """There is no dataset at that address, or it lacks the version that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """One version's own account: what `streams.ledger` wrote beside the rows, and the files it added."""

    version: int
    timestamp_ms: int
    metadata: dict[str, Any]
    added: tuple[str, ...]
    operation: str = ""
    rows: int = 0
    added_bytes: int = 0
    removed: int = 0


class Dataset:
    """Read access to the dataset at `uri`. Holds no file open; safe to make anew for each use."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)

    def newest_version(self) -> int:
        """Newest version that has been committed."""
        return self._open(None).version()

    def columns(self, version: int | None = None) -> list[str]:
        """Names of all columns, meta columns included."""
        return [field.name for field in self._open(version).schema().fields]

    def rows(
        self,
        source: str,
        *,
        version: int,
        start_ms: int,
        end_ms: int,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Rows of one source with event time in [start_ms, end_ms) at that version.

        Sorted by event time, then partition, offset and row: the same frame whoever reads it, and whatever
        files were compacted and vacuumed since.

        Raises:
            DatasetUnreadable: no dataset, no such version, or no such column.
        """
        found = self.scan(source, version=version, start_ms=start_ms, end_ms=end_ms)
        schema = found.collect_schema()
        wanted = list(schema) if columns is None else list(dict.fromkeys([*columns, *META]))
        if unknown := [name for name in wanted if name not in schema]:
            raise DatasetUnreadable(
                f"dataset {self.uri} version {version} has no column {unknown[0]!r}; "
                f"it has {', '.join(schema)}"
            )
        return found.select(wanted).collect().sort("_time", "_partition", "_offset", "_row")

    def scan(self, source: str, *, version: int, start_ms: int, end_ms: int) -> pl.LazyFrame:
        """The same rows in no order, of which only the columns are read that are asked for.

        Raises:
            DatasetUnreadable: no dataset, or no such version.
        """
        schema, _ = _contents(self.uri, version)
        return self._scan(schema, version, start_ms, end_ms).filter(pl.col("_source") == source)

    def offset_ranges(
        self, *, version: int, start_ms: int, end_ms: int, of: Mapping[str, tuple[int, int]] | None = None
    ) -> list[OffsetRange]:
        """Offsets of the rows of all sources with event time in [start_ms, end_ms), by partition.

        Args:
            of: only these sources, each with a span of its own instead.
        """
        every = [(start_ms, end_ms)] if of is None else list(of.values())
        first_ms, last_ms = min(s for s, _ in every), max(e for _, e in every)
        time = pl.col("_time")
        wanted = [(time >= first) & (time < last) for first, last in every]
        if of is not None:
            wanted = [(pl.col("_source") == source) & hit for source, hit in zip(of, wanted, strict=True)]
        ranges = (
            self._scan(pl.Schema(META), version, first_ms, last_ms)
            .filter(pl.any_horizontal(wanted))
            .group_by("_source", "_partition")
            .agg(start=pl.col("_offset").min(), end=pl.col("_offset").max() + 1)
            .sort("_source", "_partition")
            .collect()
        )
        return [
            OffsetRange(topic=topic, partition=partition, start=start, end=end)
            for topic, partition, start, end in ranges.iter_rows()
        ]

    def _scan(self, schema: pl.Schema, version: int, start_ms: int, end_ms: int) -> pl.LazyFrame:
        """All sources' rows with event time in [start_ms, end_ms) at a version."""
        files = _files_between(self.uri, version, start_ms, end_ms)
        as_then: pl.Expr | None = None
        if "://" not in self.uri and not all(Path(file).exists() for file in files):
            # Vacuumed. Rows are only ever added, an offset's all in one commit: so that version's rows are
            # those of the newest that lie before where its ledger stood.
            files = _files_between(self.uri, self.newest_version(), start_ms, end_ms)
            if gone := [file for file in files if not Path(file).exists()]:
                raise DatasetUnreadable(f"{gone[0]}, which the dataset's log names, is gone: restore it")
            as_then = self._before_positions_of(version, files)
        if not files:
            return pl.LazyFrame(schema=schema)
        found = pl.scan_parquet(
            files, schema=schema, missing_columns="insert", extra_columns="ignore", glob=False
        ).filter(pl.col("_time") >= start_ms, pl.col("_time") < end_ms)
        return found if as_then is None else found.filter(as_then)

    def _before_positions_of(self, version: int, files: list[str]) -> pl.Expr:
        before = pl.lit(value=False)
        if not files:
            return before
        said = transactions_at(self.uri, version)
        partitions = pl.scan_parquet(files, glob=False).select("_source", "_partition").unique().collect()
        for topic, number in partitions.iter_rows():
            position = said(transaction_name("offset", topic, number))
            if position is not None:
                mine = (pl.col("_source") == topic) & (pl.col("_partition") == number)
                before |= mine & (pl.col("_offset") < position)
        return before

    def commits(self, *, after_version: int = -1, until_version: int | None = None) -> list[CommitRecord]:
        """What the commits after a version, up to and with another, say of themselves; oldest first."""
        until = self.newest_version() if until_version is None else until_version
        return [self.commit(version) for version in range(after_version + 1, until + 1)]

    def commit(self, version: int) -> CommitRecord:
        """One commit's own account, read from its entry in the log.

        Not by `DeltaTable.history`: that numbers the newest entries from whatever version it was opened
        at (deltalake 1.6), so an older table, or a commit by somebody else in between, gets wrong numbers.

        Raises:
            DatasetUnreadable: the log has no such entry, or it is not whole, as after a power cut.
        """
        actions = _actions_at(self.uri, version)
        info = next((action["commitInfo"] for action in actions if "commitInfo" in action), None)
        if info is None:
            raise _not_whole(self.uri, version, "it has no commitInfo")
        added = [action["add"] for action in actions if "add" in action]
        return CommitRecord(
            version=version,
            timestamp_ms=info.get("timestamp", 0),
            metadata=json.loads(info[COMMIT_METADATA]) if COMMIT_METADATA in info else {},
            added=tuple(f"{self.uri}/{file['path']}" for file in added),
            operation=info.get("operation", ""),
            rows=sum(json.loads(file.get("stats") or "{}").get("numRecords", 0) for file in added),
            added_bytes=sum(file["size"] for file in added),
            removed=sum("remove" in action for action in actions),
        )

    def _open(self, version: int | None) -> DeltaTable:
        return open_table(self.uri, version)


def entry_of(uri: str | Path, version: int) -> Path:
    """Where a version's log entry lies, of a dataset in a folder."""
    return Path(uri) / "_delta_log" / f"{version:020d}.json"


def actions_of(entry: Path, *, naming: str = "") -> list[dict[str, Any]]:
    """Those in a log entry; all of those that have a key of that name, at least.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not whole.
    """
    wanted = f'"{naming}"'.encode() if naming else b""
    return [json.loads(line) for line in entry.read_bytes().splitlines() if wanted in line]


def _actions_at(uri: str | Path, version: int, *, naming: str = "") -> list[dict[str, Any]]:
    """The same of a version.

    Raises:
        DatasetUnreadable: the log has no such entry, or it is not whole.
    """
    try:
        return actions_of(entry_of(uri, version), naming=naming)
    except FileNotFoundError as error:
        raise DatasetUnreadable(f"dataset {uri} has no version {version} in its log") from error
    except ValueError as error:
        raise _not_whole(uri, version, str(error)) from error


def _not_whole(uri: str | Path, version: int, why: str) -> DatasetUnreadable:
    return DatasetUnreadable(
        f"log entry {entry_of(uri, version).name} of dataset {uri} is not whole ({why}), as after "
        "a power cut: restore it, or move it away to go back to the version before"
    )


def transactions_at(uri: str, version: int) -> Callable[[str], int | None]:
    """What the table's transactions say at a version, by name; None for one that says nothing.

    Of a folder all are read in one go: deltalake goes through the log anew for each that it is asked for,
    16 s for the three of each of 1,000 partitions.

    Raises:
        DatasetUnreadable: the log lacks an entry, or one is not whole.
    """
    return (
        open_table(uri, version).transaction_version if "://" in uri else read_transactions(uri, version).get
    )


def read_transactions(uri: str | Path, version: int) -> dict[str, int]:
    """All that the transactions of a dataset in a folder say at a version, by name.

    Newest entries first, down to a checkpoint: the log keeps all entries, so none is needed.

    Raises:
        DatasetUnreadable: the log lacks an entry, or one is not whole.
    """
    said: dict[str, int] = {}
    for each in range(version, -1, -1):
        if (known := _transactions_in_checkpoint(uri, each)) is not None:
            return known | said
        found = [action["txn"] for action in _actions_at(uri, each, naming="txn") if "txn" in action]
        said = {one["appId"]: one["version"] for one in found} | said
    return said


def _transactions_in_checkpoint(uri: str | Path, version: int) -> dict[str, int] | None:
    """None where that version has none that can be read."""
    file = entry_of(uri, version).with_suffix(".checkpoint.parquet")
    if not file.exists():
        return None
    try:
        found = pl.read_parquet(file, columns=["txn"]).get_column("txn").drop_nulls().struct.unnest()
    except (pl.exceptions.PolarsError, OSError):
        return None
    return dict(zip(found.get_column("appId"), found.get_column("version"), strict=True))


def open_table(uri: str, version: int | None = None) -> DeltaTable:
    """The Delta table at `uri`, at that version.

    Raises:
        DatasetUnreadable: it is not there, or not at that version.
    """
    try:
        return DeltaTable(uri, version=version)
    except TableNotFoundError as error:
        raise DatasetUnreadable(
            f"there is no dataset at {uri}; has the pipeline's worker run yet?"
        ) from error
    except Exception as error:  # deltalake raises several kinds for a version that is not there
        if version is None:
            _read_newest(uri)  # one that is cut short is named, with the way out
        said = str(error).partition("\n")[0]  # what follows is a trace of its own
        raise DatasetUnreadable(f"dataset {uri} has no readable version {version}: {said}") from error


def _read_newest(uri: str) -> None:
    """Raises DatasetUnreadable where the log's newest entry is not whole."""
    newest = max((Path(uri) / "_delta_log").glob("[0-9]*.json"), default=None)
    if newest is not None:
        Dataset(uri).commit(int(newest.stem))


@lru_cache(maxsize=8)
def _contents(uri: str, version: int) -> tuple[pl.Schema, pl.DataFrame]:
    """All columns of a version, and of each of its files the absolute path and the span of event time.

    Versions never change, and to open one takes tens of milliseconds.
    """
    table = open_table(uri, version)
    schema = pl.Schema(pl.scan_delta(table).collect_schema())
    actions = pl.DataFrame(table.get_add_actions(flatten=True))
    if actions.height == 0:
        return schema, pl.DataFrame(schema={"path": pl.String, "first": pl.Int64, "last": pl.Int64})
    root = str(uri).rstrip("/") + "/"
    return schema, actions.select(
        path=pl.lit(root) + pl.col("path"), first=pl.col("min._time"), last=pl.col("max._time")
    )


def _files_between(uri: str, version: int, start_ms: int, end_ms: int) -> list[str]:
    """Files that can hold rows of [start_ms, end_ms), by the log's own statistics."""
    _, spans = _contents(uri, version)
    # A file without statistics may hold anything.
    hit = (pl.col("first").is_null()) | ((pl.col("first") < end_ms) & (pl.col("last") >= start_ms))
    return spans.filter(hit).get_column("path").sort().to_list()
