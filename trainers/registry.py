"""What the topics say of jobs and models: a fold over their events, the trainer's memory."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace

import msgspec

from schemas import topics
from schemas.contract import Announcement
from schemas.job import (
    JobAnswered,
    JobEvent,
    JobFailed,
    JobMerged,
    JobPreempted,
    JobQueued,
    JobRequested,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobStopRequested,
    JobSucceeded,
    JobSwept,
)
from schemas.model import (
    CanaryPromoted,
    CanaryPublished,
    CanaryWithdrawn,
    CurrentModel,
    Manifest,
    ModelPublished,
    ModelRefused,
)
from schemas.sweep import is_trial_of, sweep_of
from trainers.schedule import Waiting

_HIGHEST_BELIEVED = 2**40
"""Of a version that nobody trusted signed: a forger's largest number must not be the last one there is."""


@dataclass(slots=True)
class Registry:
    """Jobs by id, and the newest manifest of each model name.

    A job is over when it failed, was skipped, answered or merged, or when the history says that its model was
    published or refused. Succeeded alone is not over, but for a trial, which comes to no model.

    Attributes:
        attempts: the newest attempt of each job; `preempted` of them it was not to blame for.
        not_before_ms: until when a job that is to be retried backs off.
        asked_ms: when the oldest of the jobs that were merged into a job was asked for.
        stops: jobs that somebody wants ended, and why.
        queued: jobs of which it was said that they wait.
        revision: grows with every event that changes which jobs are open, or may run.
    """

    requested: dict[str, JobRequested] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    preempted: dict[str, int] = field(default_factory=dict)
    not_before_ms: dict[str, int] = field(default_factory=dict)
    asked_ms: dict[str, int] = field(default_factory=dict)
    stops: dict[str, str] = field(default_factory=dict)
    queued: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    succeeded: set[str] = field(default_factory=set)
    remembered: str | None = None
    """A model of which every version's manifest is kept in `versions`."""
    versions: dict[int, Manifest] = field(default_factory=dict)
    revision: int = 0
    _open: dict[str, JobRequested] = field(default_factory=dict)
    _queue: dict[str, Waiting] = field(default_factory=dict)
    _decided: set[str] = field(default_factory=set)
    _failed_sweeps: dict[str, str] = field(default_factory=dict)
    _by_key: dict[str, str] = field(default_factory=dict)
    _preemptions: set[tuple[str, int]] = field(default_factory=set)
    _newest: dict[str, CurrentModel] = field(default_factory=dict)
    _said_current: dict[str, int] = field(default_factory=dict)
    _epochs: dict[str, int] = field(default_factory=dict)
    _signers: dict[str, frozenset[str]] = field(default_factory=dict)
    _canaries: dict[str, CanaryPublished] = field(default_factory=dict)
    _trial_ends: dict[str, CanaryPromoted | CanaryWithdrawn] = field(default_factory=dict)
    _said_canary: dict[str, Announcement] = field(default_factory=dict)

    def note(self, topic: str, event: Announcement, *, trusted: bool = True) -> None:
        """Take in one event of a topic; repeats change nothing.

        Args:
            trusted: whether a model event is signed as it must be. Another one ends its job and takes up its
                version, but is nobody's champion.
        """
        match event:
            case JobEvent():
                self._note_job(event)
            case ModelRefused():
                self._end(event.job_id, decided=True)
            case CanaryPublished():
                self._note_canary(topic, event, trusted=trusted)
            case CanaryWithdrawn():
                self._note_trial_end(topic, event)
            case CurrentModel():
                self._note_current(topic, event, trusted=trusted)
                if isinstance(event, CanaryPromoted) and trusted:
                    self._note_trial_end(topic, event)
            case _:
                pass

    def _note_job(self, event: JobEvent) -> None:  # noqa: PLR0912  (a case an event type)
        job_id = event.job_id
        match event:
            case JobRequested():
                if job_id not in self.requested:
                    self.requested[job_id] = event
                    if job_id not in self.over:
                        self._open[job_id] = event
                    if (why := self._failed_sweeps.get(sweep_of(job_id) or "")) is not None:
                        self.stops[job_id] = why
            case JobQueued():
                self.queued.add(job_id)
                return
            case JobStarted():
                self.attempts[job_id] = max(event.attempt, self.attempts.get(job_id, 0))
                if event.run_key:
                    self._by_key[event.run_key] = job_id
            case JobPreempted():
                self._preemptions.add((job_id, event.attempt))
                self.preempted[job_id] = sum(of == job_id for of, _ in self._preemptions)
            case JobRetried():
                self.not_before_ms[job_id] = event.not_before_ms
            case JobStopRequested():
                self.stops[job_id] = event.reason
            case JobSwept():
                self._settle(event)
            case JobMerged():
                self._inherit(job_id, event.into_job_id)
                self._end(job_id, decided=False)
            case JobSucceeded():
                self.succeeded.add(job_id)
                asked = self.requested.get(job_id)
                if asked is not None and asked.experiment.purpose == "trial":
                    self._end(job_id, decided=True)
            case JobFailed():
                self._end(job_id, decided=False)
                self._end_trials(event)
            case JobAnswered():
                self._end(job_id, decided=False)
            case JobSkipped():
                self._end(job_id, decided=True)
            case _:
                return
        self.revision += 1

    def _end(self, job_id: str, *, decided: bool) -> None:
        """No more of it. `decided`: another job with the same run key needs no training."""
        self.over.add(job_id)
        self._open.pop(job_id, None)
        self._queue.pop(job_id, None)
        if decided:
            self._decided.add(job_id)
        self.revision += 1

    def _end_trials(self, event: JobFailed) -> None:
        """A sweep that fails takes its trials with it: those at work, and those still on their way."""
        asked = self.requested.get(event.job_id)
        if asked is None or asked.sweep is None:
            return
        self._failed_sweeps[event.job_id] = event.reason
        for job_id in self._open:
            if is_trial_of(event.job_id, job_id):
                self.stops.setdefault(job_id, event.reason)

    def _settle(self, event: JobSwept) -> None:
        """Its sweep is over: what is left of it is a training with the best of the parameters."""
        asked = self.requested.get(event.job_id)
        if asked is None or asked.sweep is None:
            return
        params = {**asked.experiment.params, **event.params}
        settled = msgspec.structs.replace(
            asked, sweep=None, experiment=msgspec.structs.replace(asked.experiment, params=params)
        )
        self.requested[event.job_id] = settled
        if event.job_id in self._open:
            self._open[event.job_id] = settled

    def _inherit(self, job_id: str, into_job_id: str) -> None:
        """A job that takes others' place has waited as long as the oldest of them."""
        asked = self.requested.get(job_id)
        if asked is None:
            return
        since_ms = self.asked_ms.get(job_id, asked.requested_ms)
        self.asked_ms[into_job_id] = min(since_ms, self.asked_ms.get(into_job_id, since_ms))

    def decided_by(self, run_key: str) -> str | None:
        """The job that has come to a result under that run key."""
        job_id = self._by_key.get(run_key)
        return job_id if job_id in self._decided else None

    def _note_current(self, topic: str, event: CurrentModel, *, trusted: bool) -> None:
        version = event.manifest.version
        if version < _HIGHEST_BELIEVED:
            self._epochs[event.name] = max(version, self._epochs.get(event.name, 0))
        if topic != topics.MODELS_CURRENT.name and isinstance(event, ModelPublished):
            self._end(event.manifest.lineage.job_id, decided=True)
        if not trusted:
            return
        if topic == topics.MODELS_CURRENT.name and version >= self._said_current.get(event.name, 0):
            self._said_current[event.name] = version
            self._signers[event.name] = frozenset(each.key_id for each in event.signatures)
        if event.name == self.remembered:
            self.versions.setdefault(version, event.manifest)
        known = self._newest.get(event.name)
        if known is None or version > known.manifest.version:
            self._newest[event.name] = event

    def _note_canary(self, topic: str, event: CanaryPublished, *, trusted: bool) -> None:
        version = event.manifest.version
        if version < _HIGHEST_BELIEVED:
            self._epochs[event.name] = max(version, self._epochs.get(event.name, 0))
        if topic == topics.MODELS_CANARIES.name:
            self._said_canary[event.name] = event
        else:
            self._end(event.manifest.lineage.job_id, decided=True)
        known = self._canaries.get(event.name)
        if trusted and (known is None or version > known.manifest.version):
            self._canaries[event.name] = event

    def _note_trial_end(self, topic: str, event: CanaryPromoted | CanaryWithdrawn) -> None:
        if topic == topics.MODELS_CANARIES.name:
            self._said_canary[event.name] = event
        known = self._trial_ends.get(event.name)
        if known is None or _canary_of(event) > _canary_of(known):
            self._trial_ends[event.name] = event

    def is_unended(self, event: CanaryPublished) -> bool:
        """Whether no end of that canary's trial was said yet."""
        end = self._trial_ends.get(event.name)
        return end is None or _canary_of(end) < event.manifest.version

    def canaries(self) -> list[CanaryPublished]:
        """Canaries that are on trial: not ended, and newer than what is current."""
        return [event for event in self._canaries.values() if self.canary(event.name) is not None]

    def canary(self, name: str) -> Manifest | None:
        """The canary of a name that is on trial."""
        event, live = self._canaries.get(name), self.champion(name)
        if event is None or not self.is_unended(event):
            return None
        return event.manifest if live is not None and live.version < event.manifest.version else None

    def overtaken(self) -> list[CanaryPublished]:
        """Canaries whose trial has no end yet, though a newer model is current."""
        return [
            event
            for event in self._canaries.values()
            if self.is_unended(event) and self.canary(event.name) is None
        ]

    def unsaid_canaries(self) -> list[CanaryPublished | CanaryPromoted | CanaryWithdrawn]:
        """What the canaries' topic lacks at its end: after a crash, or where an old event was said again."""
        found: list[CanaryPublished | CanaryPromoted | CanaryWithdrawn] = []
        for name, event in self._canaries.items():
            last, end = self._said_canary.get(name), self._trial_ends.get(name)
            if self.canary(name) is not None:
                if last is None or last.event_id() != event.event_id():
                    found.append(event)
            elif end is not None and isinstance(last, CanaryPublished):
                found.append(end)
        return found

    def names(self) -> list[str]:
        """Names of the models that there are."""
        return list(self._newest)

    def champion(self, name: str) -> Manifest | None:
        """The live model of a name."""
        event = self._newest.get(name)
        return None if event is None else event.manifest

    def next_version(self, name: str) -> int:
        """What the next model of a name is to be called: newer than any that was ever announced."""
        return self._epochs.get(name, 0) + 1

    def unsaid_current(self, *, signed_by: Set[str] = frozenset()) -> list[CurrentModel]:
        """Newest events that the compacted topic lacks, as after a crash between the history and it.

        Args:
            signed_by: ids of keys; an event there that lacks a signature by one of them is to be said again.
        """
        return [
            event
            for name, event in self._newest.items()
            if event.manifest.version > self._said_current.get(name, 0)
            or signed_by - self._signers.get(name, frozenset())
        ]

    def open_jobs(self, *, but_not: Set[str] = frozenset()) -> list[JobRequested]:
        """Jobs that were asked for and are not over, oldest first."""
        return [job for job_id, job in self._open.items() if job_id not in but_not]

    def waiting(self, *, but_not: Set[str] = frozenset()) -> list[Waiting]:
        """The queue. Jobs that sweep are not in it: their trials are."""
        return [self._waiting(job) for job in self.open_jobs(but_not=but_not) if job.sweep is None]

    def sweeps(self, *, but_not: Set[str] = frozenset()) -> list[JobRequested]:
        """Open jobs whose configurations are still being tried, or are to be."""
        return [job for job in self.open_jobs(but_not=but_not) if job.sweep is not None]

    def _waiting(self, job: JobRequested) -> Waiting:
        known = self._queue.get(job.job_id)
        if known is None:
            known = self._queue[job.job_id] = in_queue(job)
        since_ms = min(known.asked_ms, self.asked_ms.get(job.job_id, known.asked_ms))
        not_before_ms = self.not_before_ms.get(job.job_id, 0)
        if (since_ms, not_before_ms) != (known.asked_ms, known.not_before_ms):
            known = replace(known, asked_ms=since_ms, not_before_ms=not_before_ms)
            self._queue[job.job_id] = known
        return known


def _canary_of(event: CanaryPromoted | CanaryWithdrawn) -> int:
    return event.version if isinstance(event, CanaryWithdrawn) else event.canary_version


def in_queue(job: JobRequested) -> Waiting:
    """A request as the schedule sees it."""
    experiment = job.experiment
    return Waiting(
        job_id=job.job_id,
        model=experiment.model,
        resources=experiment.resources,
        asked_ms=job.requested_ms,
        priority=job.priority,
        is_trial=experiment.purpose == "trial",
        pending_key=experiment.pending_key() if experiment.purpose == "challenger" else "",
        data=(experiment.training.version, experiment.training.end_ms, job.requested_ms),
    )
