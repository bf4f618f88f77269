"""What the topics say of jobs and models: a fold over their events, the trainer's memory."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from schemas import topics
from schemas.contract import Announcement
from schemas.job import JobFailed, JobRequested, JobSkipped, JobStarted, JobSucceeded
from schemas.model import Manifest, ModelPublished, ModelRefused, RolledBack

CurrentEvent = ModelPublished | RolledBack


@dataclass(slots=True)
class Registry:
    """Jobs by id, and the newest manifest of each model name.

    A job is over when it failed, was skipped, or when the history says that its model was published or
    refused. Succeeded alone is not over.
    """

    requested: dict[str, JobRequested] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    succeeded: set[str] = field(default_factory=set)
    _newest: dict[str, CurrentEvent] = field(default_factory=dict)
    _said_current: dict[str, int] = field(default_factory=dict)

    def note(self, topic: str, event: Announcement) -> None:
        """Take in one event of a topic; repeats change nothing."""
        match event:
            case JobRequested():
                self.requested.setdefault(event.job_id, event)
            case JobStarted():
                self.attempts[event.job_id] = max(event.attempt, self.attempts.get(event.job_id, 0))
            case JobFailed() | JobSkipped():
                self.over.add(event.job_id)
            case JobSucceeded():
                self.succeeded.add(event.job_id)
            case ModelRefused():
                self.over.add(event.job_id)
            case ModelPublished() | RolledBack():
                self._note_current(topic, event)
            case _:
                pass

    def _note_current(self, topic: str, event: CurrentEvent) -> None:
        version = event.manifest.version
        if topic == topics.MODELS_CURRENT.name:
            self._said_current[event.name] = max(version, self._said_current.get(event.name, 0))
        elif isinstance(event, ModelPublished):
            self.over.add(event.manifest.lineage.job_id)
        known = self._newest.get(event.name)
        if known is None or version > known.manifest.version:
            self._newest[event.name] = event

    def champion(self, name: str) -> Manifest | None:
        """The live model of a name."""
        event = self._newest.get(name)
        return None if event is None else event.manifest

    def unsaid_current(self) -> list[CurrentEvent]:
        """Newest events of the history that the compacted topic lacks, as after a crash between the two."""
        return [
            event
            for name, event in self._newest.items()
            if event.manifest.version > self._said_current.get(name, 0)
        ]

    def open_jobs(self, *, but_not: Set[str] = frozenset()) -> list[JobRequested]:
        """Jobs that were asked for and are not over, oldest first."""
        return [
            job for job_id, job in self.requested.items() if job_id not in self.over and job_id not in but_not
        ]
