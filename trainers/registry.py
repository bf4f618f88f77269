"""What the topics say of jobs and models: a fold over their events, the trainer's only memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.contract import Announcement
from schemas.job import JobFailed, JobRequested, JobSkipped, JobStarted, JobSucceeded
from schemas.model import Manifest, ModelPublished, ModelRefused, RolledBack


@dataclass(slots=True)
class Registry:
    """Jobs by id, and the newest manifest of each model name.

    A job is over when it failed, was skipped, or when its model was published or refused. Succeeded alone
    is not over: a trainer that died between the two trains again, and announces the same ids.
    """

    requested: dict[str, JobRequested] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    succeeded: set[str] = field(default_factory=set)
    champions: dict[str, Manifest] = field(default_factory=dict)

    def note(self, event: Announcement) -> None:
        """Take one event in; repeats change nothing."""
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
                if isinstance(event, ModelPublished):
                    self.over.add(event.manifest.lineage.job_id)
                known = self.champions.get(event.name)
                if known is None or event.manifest.version > known.version:
                    self.champions[event.name] = event.manifest
            case _:
                pass

    def open_jobs(self) -> list[JobRequested]:
        """Jobs that were asked for and are not over, oldest first."""
        return [job for job_id, job in self.requested.items() if job_id not in self.over]
