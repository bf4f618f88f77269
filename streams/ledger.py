"""The dataset's log is the ledger: rows, offsets, watermarks and summary in one atomic commit.

Kafka's committed offsets decide nothing. After a crash the worker asks the table where it was. Delta
itself does not refuse a repeated transaction version, so the fence is here: versions are read and the
commit is made on the same table handle without retries; whoever finds his partition's version moved by
somebody else is a zombie and stops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from infra.dataset import COMMIT_METADATA, META
from schemas.errors import InvalidConfiguration, Retryable

Partition = tuple[str, int]
"""Topic and partition."""

# Log entries are the ledger: they outlive Delta's own default of 30 days.
_TABLE_SETTINGS = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.checkpointInterval": "100",
}
_ATTEMPTS = 50


class Fenced(Retryable):
    """Somebody else committed for this partition: this worker no longer owns it."""

    def __init__(self, partition: Partition, expected: int, found: int) -> None:
        super().__init__(
            f"{partition[0]}/{partition[1]} stands at offset {found} in the ledger, not at {expected}: "
            "another worker owns it now; this one drops what it had read and asks the ledger again"
        )
        self.partition, self.expected, self.found = partition, expected, found


class DatasetNotWritable(Retryable):
    """The commit could not be written (disk full, no permission, store away). Nothing was committed."""


class DatasetDiffers(InvalidConfiguration):
    """The dataset at this place was made by a pipeline with other columns."""


@dataclass(frozen=True, slots=True)
class Advance:
    """A partition moves from `start` to `next`: exactly these offsets are in the commit."""

    start: int
    next: int


class Ledger:
    """Write access to one pipeline's dataset. One per worker; not safe for threads."""

    def __init__(self, uri: str | Path, schema: Mapping[str, Any]) -> None:
        """Open the dataset, or make it.

        Raises:
            DatasetDiffers: it is there with other columns.
            DatasetNotWritable: it cannot be made.
        """
        self.uri = str(uri)
        self.schema = pl.Schema({**META, **schema})
        self._table = self._open()

    def _open(self) -> DeltaTable:
        try:
            if not DeltaTable.is_deltatable(self.uri):
                if "://" not in self.uri:
                    Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
                return DeltaTable.create(
                    self.uri, schema=self.schema, mode="ignore", configuration=_TABLE_SETTINGS
                )
            table = DeltaTable(self.uri)
        except (DeltaError, OSError) as error:
            raise DatasetNotWritable(
                f"cannot open or make the dataset at {self.uri}: {error}; check its folder, space and rights"
            ) from error
        found = pl.scan_delta(table).collect_schema()
        if dict(found) != dict(self.schema):
            odd = sorted({n for n in {*found, *self.schema} if found.get(n) != self.schema.get(n)})
            raise DatasetDiffers(
                f"the dataset at {self.uri} has other columns than the pipeline ({', '.join(odd)}); "
                "give the changed pipeline a new name, or move the old dataset away"
            )
        return table

    def version(self) -> int:
        """Newest version that this handle has seen."""
        return self._table.version()

    def refresh(self) -> None:
        """See what others have committed."""
        self._table.update_incremental()

    def position(self, partition: Partition) -> int | None:
        """Next offset to read of a partition; None where nothing of it was ever committed."""
        return self._table.transaction_version(_app("offset", partition))

    def watermark(self, partition: Partition) -> int | None:
        """Watermark of a partition, epoch ms, as of its last commit."""
        return self._table.transaction_version(_app("watermark", partition))

    def commit(
        self,
        rows: pl.DataFrame,
        *,
        advances: Mapping[Partition, Advance],
        watermarks: Mapping[Partition, int],
        metadata: Mapping[str, Any],
    ) -> int:
        """Commit all of it or nothing; on return it is on disk. Gives the new version.

        Raises:
            Fenced: a partition's position is not where the advance starts.
            DatasetNotWritable: nothing was committed; the same commit may be tried again.
        """
        transactions = [Transaction(_app("offset", p), a.next) for p, a in advances.items()]
        transactions += [Transaction(_app("watermark", p), ms) for p, ms in watermarks.items()]
        properties = CommitProperties(
            custom_metadata={COMMIT_METADATA: msgspec.json.encode(metadata).decode()},
            max_commit_retries=0,
            app_transactions=transactions,
        )
        for _ in range(_ATTEMPTS):
            self._check_fence(advances)
            try:
                write_deltalake(
                    self._table,
                    rows.select(self.schema.names()),
                    mode="append",
                    commit_properties=properties,
                    post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
                )
            except CommitFailedError:
                # Another worker was first. If it was for other partitions, the fence lets us try again.
                self._table.update_incremental()
                continue
            except (DeltaError, OSError) as error:
                self._table.update_incremental()
                raise DatasetNotWritable(
                    f"commit to {self.uri} failed, nothing was written: {error}; free space or mend the store"
                ) from error
            version = self._table.version()
            self._make_durable(version)
            return version
        raise DatasetNotWritable(
            f"{_ATTEMPTS} commits to {self.uri} in a row lost the race; run fewer workers"
        )

    def _check_fence(self, advances: Mapping[Partition, Advance]) -> None:
        for partition, advance in advances.items():
            found = self.position(partition)
            if found is not None and found != advance.start:
                raise Fenced(partition, advance.start, found)

    def _make_durable(self, version: int) -> None:
        """Flush the commit to disk: deltalake does not, and a power cut would leave an empty log entry."""
        if "://" in self.uri:
            return
        root = Path(self.uri)
        entry = root / "_delta_log" / f"{version:020d}.json"
        added = [
            root / action["add"]["path"]
            for action in map(json.loads, entry.read_text().splitlines())
            if "add" in action
        ]
        for path in (*added, entry, root, entry.parent):
            _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _app(what: str, partition: Partition) -> str:
    topic, number = partition
    return f"{what}/{topic}/{number}"
