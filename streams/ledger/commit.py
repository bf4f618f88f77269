"""The dataset's log is the ledger: rows, offsets, watermarks and summary in one atomic commit.

Kafka's committed offsets decide nothing. After a crash the worker asks the table where it was. Delta
itself does not refuse a repeated transaction version, so the fence is here: versions are read and the
commit is made on the same table handle without retries; whoever finds his partition's version moved by
somebody else is a zombie and stops.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from infra.atomic_file import flush
from infra.dataset import COMMIT_METADATA, META, actions_of, entry_of, read_transactions, transaction_name
from infra.switched import SWITCHED, SwitchedAway
from schemas.errors import InvalidConfiguration, Retryable
from streams.ledger import checkpoint
from streams.ledger.checkpoint import Checkpoints
from streams.ledger.entry import add, entry, put, transactions, write_file

Partition = tuple[str, int]
"""Topic and partition."""

_TABLE_SETTINGS = {
    # Log entries are the ledger: they outlive Delta's own default of 30 days.
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.checkpointInterval": str(checkpoint.EVERY),
    # How long checkpoints name files that a compaction replaced; `retention` keeps the files longer.
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
_PIPELINE = "watermark"
_WAY_OUT = (
    "restore it, or move the entry away to go back to the version before; "
    "what came later is then read again from Kafka"
)


class Fenced(Retryable):
    """Somebody else committed for this partition: this worker no longer owns it."""

    def __init__(self, partition: Partition, expected: int, found: int) -> None:
        super().__init__(
            f"{partition[0]}/{partition[1]} stands at offset {found} in the ledger, not at {expected}: "
            "another worker owns it now; this one drops what it had read and asks the ledger again"
        )
        self.partition, self.expected, self.found = partition, expected, found


class Overtaken(Retryable):
    """Somebody else committed first, for other partitions. Nothing was committed: try again."""


class DatasetNotWhole(InvalidConfiguration):
    """The newest entry of the dataset's log, or a file that it names, is cut short, as after a power cut."""


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

    def __init__(self, uri: str | Path, schema: Mapping[str, Any] | None) -> None:
        """Open the dataset, or make it; without a schema, as it is there.

        Raises:
            DatasetDiffers: it is there with other columns.
            DatasetNotWhole: its newest commit is not all there.
            DatasetUnreadable: an older entry of its log is gone, or not whole.
            DatasetNotWritable: it cannot be made.
        """
        self.uri = str(uri)
        self.schema = pl.Schema({**META, **(schema or {})})
        self.checkpoints = Checkpoints(self.uri)
        # What the table's transactions say at this version: of a folder all, of a store what was asked for.
        self._said: dict[str, int | None] = {}
        # A file whose rows no version names yet: another worker's commit came first.
        self._unnamed: tuple[pl.DataFrame, Path] | None = None
        self._table = self._open(as_it_is=schema is None)
        self._version = self._table.version()
        if "://" not in self.uri:
            self._said |= read_transactions(self.uri, self._version)
        self._switched_at = self.marked(SWITCHED)

    def _open(self, *, as_it_is: bool) -> DeltaTable:
        try:
            if not DeltaTable.is_deltatable(self.uri):
                if "://" not in self.uri:
                    Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
                table = DeltaTable.create(
                    self.uri, schema=self.schema, mode="ignore", configuration=_TABLE_SETTINGS
                )
                make_durable(self.uri, table.version())
                return table
            if "://" not in self.uri:
                _check_whole(Path(self.uri))
            table = DeltaTable(self.uri)
        except (DeltaError, OSError) as error:
            raise DatasetNotWritable(
                f"cannot open or make the dataset at {self.uri}: {error}; check its folder, space and rights"
            ) from error
        found = pl.scan_delta(table).collect_schema()
        if as_it_is:
            self.schema = pl.Schema(found)
        if dict(found) != dict(self.schema):
            odd = sorted({n for n in {*found, *self.schema} if found.get(n) != self.schema.get(n)})
            raise DatasetDiffers(
                f"the dataset at {self.uri} has other columns than the pipeline ({', '.join(odd)}); "
                "give the changed pipeline a new name, or move the old dataset away"
            )
        return table

    def is_behind(self) -> bool:
        """Whether somebody else is known to have committed since; of a store nothing is known."""
        return "://" not in self.uri and entry_of(self.uri, self._version + 1).exists()

    def refresh(self) -> bool:
        """See what others have committed; False where that is nothing.

        In a folder their entries are read, .5 ms each; of a store deltalake looks anew.

        Raises:
            DatasetNotWhole: an entry cannot be read.
        """
        if "://" in self.uri:
            self._table.update_incremental()
            if self._table.version() == self._version:
                return False
            self._version = self._table.version()
            self._said.clear()
            return True
        before = self._version
        while self.is_behind():
            said_by = entry_of(self.uri, self._version + 1)
            try:
                actions = actions_of(said_by)
            except ValueError as error:
                raise DatasetNotWhole(f"log entry {said_by} is not whole ({error}): {_WAY_OUT}") from error
            said = [action["txn"] for action in actions if "txn" in action]
            self._said |= {each["appId"]: each["version"] for each in said}
            named = {action["add"]["path"] for action in actions if "add" in action}
            if self._unnamed is not None and self._unnamed[1].name in named:
                self._unnamed = None
            self._version += 1
        if self._version == before:
            return False
        make_durable(self.uri, self._version)
        return True

    def version(self) -> int:
        """Newest version that this handle has seen."""
        return self._version

    def position(self, partition: Partition) -> int | None:
        """Next offset to read of a partition; None where nothing of it was ever committed."""
        return self._ask(transaction_name("offset", *partition))

    def watermark(self, partition: Partition) -> int | None:
        """Watermark of a partition, epoch ms, as of its last commit."""
        return self._ask(transaction_name("watermark", *partition))

    def is_idle(self, partition: Partition) -> bool:
        """Whether the partition was said to be idle, and has not moved since."""
        idle_at = self._ask(transaction_name("idle", *partition))
        return idle_at is not None and idle_at == self.position(partition)

    def pipeline_watermark(self) -> int | None:
        """Watermark of the pipeline, epoch ms, as of the newest commit."""
        return self._ask(_PIPELINE)

    def refuse_switched(self) -> None:
        """Raises SwitchedAway where the pipeline's live dataset was switched since this was opened."""
        if self.marked(SWITCHED) != self._switched_at:
            raise SwitchedAway(
                f"the live dataset of this pipeline was switched, as {self.uri} says: start the worker anew, "
                "by the rules that were switched to"
            )

    def marked(self, name: str) -> int | None:
        """The newest version that was committed under that mark; None where none was."""
        return self._ask(name)

    def _ask(self, app: str) -> int | None:
        if "://" in self.uri and app not in self._said:
            if self._table.version() != self._version:
                # Exactly there: what was asked before and what is asked now are of one version.
                self._table.load_as_version(self._version)
            self._said[app] = self._table.transaction_version(app)
        return self._said.get(app)

    def commit(
        self,
        rows: pl.DataFrame,
        *,
        advances: Mapping[Partition, Advance],
        watermarks: Mapping[Partition, int],
        metadata: Mapping[str, Any],
        idle: Collection[Partition] = (),
        pipeline_watermark_ms: int | None = None,
        marks: Collection[str] = (),
    ) -> int:
        """Commit all of it or nothing; on return it is on disk. Gives the new version.

        Args:
            idle: those of the advancing partitions that hold no window open until they move on.
            marks: names under which the table's transactions hold this version, for what `metadata` says.

        Raises:
            Fenced: a partition's position is not where the advance starts.
            SwitchedAway: the live dataset was switched since this was opened; nothing is committed any more.
            Overtaken: another worker's commit came first; nothing was committed.
            DatasetNotWritable: nothing was committed; the same commit may be tried again.
        """
        said = {transaction_name("offset", *p): a.next for p, a in advances.items()}
        said |= {transaction_name("watermark", *p): ms for p, ms in watermarks.items()}
        said |= {transaction_name("idle", *p): advances[p].next for p in idle}
        if pipeline_watermark_ms is not None:
            said[_PIPELINE] = pipeline_watermark_ms
        version = self._version + 1
        said |= dict.fromkeys(marks, version)
        self.refuse_switched()
        self._check_fence(advances)
        try:
            self._append(version, rows, said, metadata)
        except (FileExistsError, CommitFailedError) as error:
            self._look_again(error)
            self._check_fence(advances)
            raise Overtaken(f"another worker committed to {self.uri} first: try again") from error
        except (DeltaError, pl.exceptions.PolarsError, OSError) as error:
            # The commit itself may have been made, and what comes after it failed: then the fence says so.
            self._look_again(error)
            self._check_fence(advances)
            raise DatasetNotWritable(
                f"commit to {self.uri} failed, nothing was written: {error}; free space or mend the store"
            ) from error
        self._said |= said
        self._version = version
        make_durable(self.uri, version)
        if "://" not in self.uri:  # there deltalake sees to it
            self.checkpoints.committed(version)
        return version

    def _look_again(self, failed: Exception) -> None:
        """See what the dataset holds after a commit that failed, and that this is on disk.

        Raises:
            DatasetNotWritable: it does not answer. Had the commit been made, the next try would be fenced.
        """
        try:
            if not self.refresh():
                make_durable(self.uri, self._version)
        except (DeltaError, OSError) as error:
            raise DatasetNotWritable(
                f"commit to {self.uri} failed ({failed}), and the dataset does not answer since: {error}; "
                "mend the store"
            ) from failed

    def _append(
        self, version: int, rows: pl.DataFrame, said: Mapping[str, int], metadata: Mapping[str, Any]
    ) -> None:
        """Make that version, or leave nothing.

        Raises:
            FileExistsError, CommitFailedError: it is there already; the rows' file waits for another try.
            DeltaError, PolarsError, OSError: it could not be written.
        """
        account = msgspec.json.encode(metadata).decode()
        if "://" in self.uri:
            self._append_in_store(version, self._in_order(rows), said, account)
            return
        root = Path(self.uri)
        files = [self._file_of(rows)] if rows.height else []
        actions = [*transactions(said), *(add(file, rows) for file in files)]
        try:
            put(root, version, entry("WRITE", actions, account), flushed=False)
        except FileExistsError:
            raise
        except OSError:
            if entry_of(root, version).exists():
                self._unnamed = None  # it is named
            self._discard()
            raise
        self._unnamed = None

    def _in_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        names = self.schema.names()
        return rows if rows.columns == names else rows.select(names)

    def _file_of(self, rows: pl.DataFrame) -> Path:
        """The file of these rows: the one of the try before, if they are the same."""
        if self._unnamed is None or self._unnamed[0] is not rows:
            self._discard()
            self._unnamed = rows, write_file(Path(self.uri), self._in_order(rows))
        return self._unnamed[1]

    def _discard(self) -> None:
        if self._unnamed is not None:
            self._unnamed[1].unlink(missing_ok=True)
            self._unnamed = None

    def _append_in_store(
        self, version: int, rows: pl.DataFrame, said: Mapping[str, int], account: str
    ) -> None:
        """By deltalake, which knows how each store fences; without retries it is that version, or none."""
        if self._table.version() != version - 1:
            self._table.load_as_version(version - 1)
        write_deltalake(
            self._table,
            rows,
            mode="append",
            commit_properties=CommitProperties(
                custom_metadata={COMMIT_METADATA: account},
                max_commit_retries=0,
                app_transactions=[Transaction(app, number) for app, number in said.items()],
            ),
            post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
        )

    def _check_fence(self, advances: Mapping[Partition, Advance]) -> None:
        for partition, advance in advances.items():
            found = self.position(partition)
            if found is not None and found != advance.start:
                self._discard()
                raise Fenced(partition, advance.start, found)


def make_durable(uri: str, version: int) -> None:
    """Flush a commit to disk: deltalake does not, and a power cut would leave an empty log entry."""
    if "://" in uri:
        return
    root = Path(uri)
    log = root / "_delta_log"
    said = entry_of(root, version)
    added = [root / action["add"]["path"] for action in actions_of(said) if "add" in action]
    added = [file for file in added if file.exists()]  # of an old version they may be vacuumed
    for path in (*added, said, root, log, *([root.parent] if version == 0 else [])):
        flush(path)


def _check_whole(root: Path) -> None:
    """Hold the newest entry of the log, and the files that it adds, against what it says of itself.

    Delta takes an entry of no bytes for a commit that does nothing: its rows would be gone without a word.
    """
    newest = max((root / "_delta_log").glob("[0-9]*.json"), default=None)
    if newest is None:
        return
    try:
        actions = actions_of(newest)
        info = next(action["commitInfo"] for action in actions if "commitInfo" in action)
        said = json.loads(info.get(COMMIT_METADATA, "{}"))
    except (ValueError, StopIteration) as error:
        raise DatasetNotWhole(
            f"log entry {newest} is not whole ({error or 'no commitInfo'}), as after a power cut: {_WAY_OUT}"
        ) from error
    expected = {
        transaction_name("offset", *_partition(name)): ends[1]
        for name, ends in said.get("offsets", {}).items()
    }
    found = {a["txn"]["appId"]: a["txn"]["version"] for a in actions if "txn" in a}
    files = [action["add"] for action in actions if "add" in action]
    if any(found.get(app) != version for app, version in expected.items()) or (
        len(files) < info.get("operationMetrics", {}).get("num_added_files", 0)
    ):
        raise DatasetNotWhole(f"log entry {newest} is not whole (actions are missing): {_WAY_OUT}")
    for file in files:
        path = root / file["path"]
        if not path.is_file() or path.stat().st_size != file["size"]:
            raise DatasetNotWhole(
                f"{path} is not the file of {file['size']} bytes that log entry {newest} added: {_WAY_OUT}"
            )


def _partition(name: str) -> Partition:
    topic, _, number = name.rpartition("/")
    return topic, int(number)
