"""Which artifacts somebody may still ask for: a fold over what is said of models and jobs.

Needed is, with its reason,

- what an event made current that may still point a service there: the newest of each model name, whoever
  signed it, and all that was live within the retention;
- the newest versions of each model, for a rollback, and the weights that they began from or were judged
  against, for `tidemill reproduce`;
- the newest canary of each model, on trial or not;
- what a service answers with, as it says, pinned to an old version as it may be;
- what an open job came to and has not been said of yet;
- whatever stands in a record that this version cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import Rejected, Retryable
from schemas.job import JobSucceeded
from schemas.model import CanaryPublished, CurrentModel, Manifest, ModelAdopted, SignedModel
from schemas.signature import SCHEMA, TrustedKeys, schema_of
from trainers import conclusion, trained
from trainers.registry import Registry

_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(slots=True)
class Needed:
    """What the topics say so far."""

    _versions: dict[str, dict[int, list[Manifest]]] = field(default_factory=dict)
    _others: list[Manifest] = field(default_factory=list)
    _current: dict[str, Manifest] = field(default_factory=dict)
    _canaries: dict[str, Manifest] = field(default_factory=dict)
    _adopted: dict[tuple[str, str, bool], ModelAdopted] = field(default_factory=dict)
    _succeeded: dict[str, str] = field(default_factory=dict)
    _unread: set[str] = field(default_factory=set)
    _jobs: Registry = field(default_factory=Registry)

    def note(self, topic: str, event: Announcement, *, trusted: bool = True) -> None:
        """Take in one event.

        Args:
            trusted: whether a key signed it that is trusted here. What another says takes no place among the
                newest versions: who may write to a topic must not be able to have a live model removed.
        """
        self._jobs.note(topic, event, trusted=trusted)
        match event:
            case CurrentModel(name=name, manifest=manifest):
                if topic == topics.MODELS_CURRENT.name:
                    self._current[name] = manifest
                if trusted:
                    self._versions.setdefault(name, {}).setdefault(manifest.version, []).append(manifest)
                else:
                    self._others.append(manifest)
            case CanaryPublished(name=name, manifest=manifest):
                known_canary = self._canaries.get(name)
                if not trusted:
                    self._others.append(manifest)
                elif known_canary is None or manifest.version >= known_canary.version:
                    self._canaries[name] = manifest
            case ModelAdopted(name=name, service=service):
                key = name, service, event.canary
                known = self._adopted.get(key)
                if known is None or event.adopted_ms >= known.adopted_ms:
                    self._adopted[key] = event
            case JobSucceeded(job_id=job_id, artifact_sha256=sha256) if sha256:
                self._succeeded[job_id] = sha256
            case _:
                pass

    def note_unread(self, value: bytes) -> None:
        """A record that is no announcement of this version's: perhaps a newer one's."""
        self._unread.update(digest.decode() for digest in _DIGEST.findall(value))

    @property
    def names_any(self) -> bool:
        """Whether any event tells of a model."""
        return bool(self._versions or self._others or self._current)

    def open_jobs(self) -> list[str]:
        """Jobs that are not over."""
        return [job.job_id for job in self._jobs.open_jobs()]

    def reasons(
        self, *, now_ms: int, keep_ms: int, keep_versions: int, unsaid: Iterable[str] = ()
    ) -> dict[str, str]:
        """Why an artifact is needed, by its SHA-256; of several reasons the strongest.

        Args:
            keep_ms: how long a version stays after a newer one has taken its place.
            keep_versions: how many of the newest of each model stay, whatever their age.
            unsaid: what jobs' folders hold; see `unsaid_by`.
        """
        found: dict[str, str] = {}
        for name, manifest in self._current.items():
            found.setdefault(manifest.artifact.sha256, f"{name} {manifest.version} is current")
        for name, manifest in self._canaries.items():
            found.setdefault(manifest.artifact.sha256, f"{name} {manifest.version} is its newest canary")
        for name, versions in self._versions.items():
            self._of_model(found, name, versions, now_ms - keep_ms, keep_versions)
        for manifest in self._others:
            if manifest.published_ms > now_ms - keep_ms:
                named = f"an event of {manifest.name} {manifest.version} that nobody trusted signed"
                found.setdefault(manifest.artifact.sha256, named)
        for (name, service, _), adopted in self._adopted.items():
            found.setdefault(adopted.sha256, f"{service} answers with {name} {adopted.version}")
        open_jobs = set(self.open_jobs())
        for job_id, sha256 in self._succeeded.items():
            if job_id in open_jobs:
                found.setdefault(sha256, f"job {job_id} came to it")
        for sha256 in unsaid:
            found.setdefault(sha256, "a job came to it, and its end is not said yet")
        for sha256 in self._unread:
            found.setdefault(sha256, "a record that cannot be read names it")
        return found

    def _of_model(
        self,
        found: dict[str, str],
        name: str,
        versions: dict[int, list[Manifest]],
        live_since_ms: int,
        keep_versions: int,
    ) -> None:
        ordered = sorted(versions, reverse=True)
        kept: list[Manifest] = []
        for place, version in enumerate(ordered):
            # It was live until the next newer version took its place.
            until_ms = min(m.published_ms for m in versions[ordered[place - 1]]) if place else None
            if place == 0:
                reason = f"{name} {version} is the newest"
            elif place < keep_versions:
                reason = f"{name} {version} is among the newest {keep_versions}"
            elif until_ms is not None and until_ms > live_since_ms:
                reason = f"{name} {version} was live within the retention"
            else:
                continue
            for manifest in versions[version]:
                kept.append(manifest)
                found.setdefault(manifest.artifact.sha256, reason)
        for manifest in kept:
            for sha256 in (manifest.lineage.parent_sha256, manifest.lineage.champion_sha256):
                if sha256:
                    found.setdefault(sha256, f"{name} {manifest.version} began from it, or was judged by it")


async def needed(connection: Connection, *, trusted: TrustedKeys | None) -> Needed:
    """What the topics say now."""
    found = Needed()
    names = (topics.JOBS.name, topics.MODELS.name, topics.MODELS_CURRENT.name)
    async for record in read_to_end(connection, dict.fromkeys(names)):
        try:
            envelope = open_record(record.key, record.value, record.headers)
            event = unwrap(envelope)
        except NotAnAnnouncement:
            found.note_unread(record.value or b"")
            continue
        is_trusted = not isinstance(event, SignedModel) or _is_signed(
            envelope.data, trusted, schema_of(event)
        )
        found.note(record.topic, event, trusted=is_trusted)
    return found


def _is_signed(event: bytes, trusted: TrustedKeys | None, schema: str = SCHEMA) -> bool:
    if trusted is None:
        return True
    try:
        trusted.manifest(event, schema)
    except (Rejected, Retryable):
        return False
    return True


def unsaid_by(jobs: Path, job_ids: Iterable[str]) -> set[str]:
    """Artifacts that stand in the folders of open jobs: trained, or concluded, and not said."""
    found: set[str] = set()
    for job_id in job_ids:
        folder = conclusion.folder_of(jobs, job_id)
        for file in (folder / trained.FILE, folder / conclusion.FILE):
            if file.exists():
                found.update(digest.decode() for digest in _DIGEST.findall(file.read_bytes()))
    return found
