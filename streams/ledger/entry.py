"""One version of a dataset in a folder: its file of rows and its entry in the log, by the Delta protocol.

deltalake writes both, too. Its writer takes twice the time a row that Polars takes, and each of its commits
reads the log's newest part anew, twice: 10 ms that a ledger, which knows what it said last, need not spend.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from infra.atomic_file import create_bytes
from infra.dataset import COMMIT_METADATA, entry_of

Action = dict[str, Any]
# A column's dictionary is tried for each group of rows: one of so many stays in the processor's cache.
_GROUP_ROWS = 65_536
STATED = ("_source", "_partition", "_offset", "_time")
"""Of identity and event time the log states the extremes of each file: what readers skip files by."""


def write_file(root: Path, rows: pl.DataFrame) -> Path:
    """A Parquet file of these rows that no version names yet.

    Raises:
        PolarsError, OSError: it could not be written; nothing is left of it.
    """
    file = root / f"part-{uuid.uuid4()}.parquet"
    try:
        # Statistics of a row group would say again what the log says of the file.
        rows.write_parquet(file, compression="snappy", statistics=False, row_group_size=_GROUP_ROWS)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return file


def add(file: Path, rows: pl.DataFrame, *, is_new: bool = True) -> Action:
    """The action that names a file.

    Args:
        rows: those in it, at least the columns `STATED`.
        is_new: they are in no version before.
    """
    now_ms = int(time.time() * 1000)
    stated = [rows.get_column(name) for name in STATED] if rows.height else []
    statistics = {
        "numRecords": rows.height,
        "minValues": {column.name: column.min() for column in stated},
        "maxValues": {column.name: column.max() for column in stated},
        "nullCount": {column.name: 0 for column in stated},
    }
    return {
        "add": {
            "path": file.name,
            "partitionValues": {},
            "size": file.stat().st_size,
            "modificationTime": now_ms,
            "dataChange": is_new,
            "stats": json.dumps(statistics),
        }
    }


def transactions(said: Mapping[str, int]) -> list[Action]:
    """The actions that hold what the ledger says from this version on, by its names."""
    now_ms = int(time.time() * 1000)
    return [
        {"txn": {"appId": name, "version": version, "lastUpdated": now_ms}} for name, version in said.items()
    ]


def entry(operation: str, actions: Sequence[Action], metadata: str) -> bytes:
    """The log entry; its first line says how many files it must name, so that one cut short is noticed."""
    info = {
        "timestamp": int(time.time() * 1000),
        "operation": operation,
        "operationParameters": {},
        "operationMetrics": {
            "num_added_files": sum("add" in action for action in actions),
            "num_removed_files": sum("remove" in action for action in actions),
        },
        COMMIT_METADATA: metadata,
    }
    return "".join(json.dumps(action) + "\n" for action in ({"commitInfo": info}, *actions)).encode()


def put(root: Path, version: int, content: bytes, *, flushed: bool = True) -> None:
    """Make it that version, in one step.

    Args:
        flushed: on disk when it returns; else the caller sees to it.

    Raises:
        FileExistsError: somebody else made that version.
    """
    create_bytes(entry_of(root, version), content, flushed=flushed)
