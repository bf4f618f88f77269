"""Which versions of a dataset are still referred to, and the end of files that nobody needs.

A version that a published model was trained on, or that an open job is to be trained on, reads for ever as it
did. Of the others the files stay for some hours, for those who are reading them now.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deltalake import PostCommitHookProperties

from infra.dataset import Dataset, open_table
from infra.kafka.connection import Connection
from schemas import topics
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.job import JobAnswered, JobFailed, JobMerged, JobRequested, JobSkipped
from schemas.model import ModelRefused, SignedModel
from streams.announce.outbox import read_to_end
from streams.ledger.commit import make_durable


@dataclass(slots=True)
class References:
    """Versions of one dataset by what refers to them: names of models (`flights/7`) and of open jobs."""

    models: dict[str, set[int]] = field(default_factory=dict)
    jobs: dict[str, set[int]] = field(default_factory=dict)

    def versions(self) -> set[int]:
        """All that must read as they did."""
        return set().union(*self.models.values(), *self.jobs.values())


async def references(connection: Connection, uri: str) -> References:
    """What models and open jobs refer to, from their topics."""
    found = References()
    over: set[str] = set()
    names = (topics.JOBS.name, topics.MODELS.name, topics.MODELS_CURRENT.name)
    async for record in read_to_end(connection, dict.fromkeys(names)):
        try:
            event = unwrap(open_record(record.key, record.value, record.headers))
        except NotAnAnnouncement:
            continue  # what breaks its contract refers to nothing
        match event:
            case JobRequested():
                spans = (event.experiment.training, event.experiment.evaluation)
                versions = {s.version for s in spans if s is not None and _is_same(s.uri, uri)}
                found.jobs.setdefault(event.job_id, set()).update(versions)
            case JobAnswered() | JobFailed() | JobMerged() | JobSkipped() | ModelRefused():
                over.add(event.job_id)
            case SignedModel(manifest=manifest):
                over.add(manifest.lineage.job_id)
                if _is_same(manifest.lineage.dataset_uri, uri):
                    name = f"{manifest.name}/{manifest.version}"
                    found.models.setdefault(name, set()).add(manifest.lineage.dataset_version)
            case _:
                pass
    found.jobs = {name: versions for name, versions in found.jobs.items() if versions and name not in over}
    return found


def _is_same(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


def vacuum(uri: str, *, keep: Iterable[int], keep_hours: int, dry_run: bool = False) -> list[str]:
    """Delete files of no version that is kept: referred to, or of the last hours. Gives their names.

    Raises:
        DatasetUnreadable: there is no dataset, or not one of the versions to keep.
        OSError: files cannot be deleted.
    """
    table = open_table(uri)
    newest = table.version()
    kept = sorted({v for v in keep if v <= newest} | {_version_before(uri, newest, keep_hours)})
    for version in kept:
        open_table(uri, version)  # one that cannot be read must not cost the others their files
    deleted = table.vacuum(
        retention_hours=keep_hours,
        dry_run=dry_run,
        # By the age of the files, too: what a crash left behind stands in no log.
        full=True,
        keep_versions=kept,
        enforce_retention_duration=False,
        post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
    )
    if not dry_run:
        for version in range(newest + 1, open_table(uri).version() + 1):
            make_durable(uri, version)
        for left in (Path(uri) / "_delta_log").glob(".*.json.*"):  # of a compaction that was killed
            if time.time() - left.stat().st_mtime > keep_hours * 3600:
                left.unlink(missing_ok=True)
    return deleted


def _version_before(uri: str, newest: int, hours: int) -> int:
    """The newest version that is older than that: it and all after it were readable within these hours."""
    dataset, limit_ms = Dataset(uri), (time.time() - hours * 3600) * 1000
    low, high = 0, newest
    while low < high:
        middle = (low + high + 1) // 2
        if dataset.commit(middle).timestamp_ms <= limit_ms:
            low = middle
        else:
            high = middle - 1
    return low
