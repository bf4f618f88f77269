"""Every job as people want to see it: where it is, how far, how well, how much longer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.job import (
    JobAnswered,
    JobEvent,
    JobFailed,
    JobMerged,
    JobPreempted,
    JobProgress,
    JobQueued,
    JobRequested,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobSucceeded,
    JobSwept,
)
from schemas.model import CanaryPublished, ModelPublished, ModelRefused

State = Literal[
    "queued",
    "sweeping",
    "running",
    "judged",
    "published",
    "refused",
    "scored",
    "failed",
    "skipped",
    "answered",
    "merged",
]
OVER: frozenset[State] = frozenset(
    {"published", "refused", "scored", "failed", "skipped", "answered", "merged"}
)
_FOLLOWED = (topics.JOBS, topics.MODELS)
_POLL_MS = 200
_MOST_POINTS = 1_000


@dataclass(frozen=True, slots=True)
class Point:
    """One progress event."""

    attempt: int
    step: int
    of: int
    metrics: dict[str, float]
    at_ms: int


@dataclass(slots=True)
class Job:
    """A job's life so far; times are epoch ms, 0 where it has not come to that."""

    job_id: str
    model: str = ""
    purpose: str = "challenger"
    why: str = ""
    priority: int = 0
    state: State = "queued"
    reason: str = ""
    device: str = ""
    attempt: int = 0
    preempted: int = 0
    requested_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    log_tail: str = ""
    same_as: str = ""
    curve: list[Point] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it."""
        return self.state in OVER

    @property
    def newest(self) -> Point | None:
        """The newest progress of the newest attempt."""
        return self.curve[-1] if self.curve and self.curve[-1].attempt == self.attempt else None

    def remaining_s(self, now_ms: int) -> float | None:
        """Until its last step, by its pace in this attempt; None where that is not known."""
        mine = [point for point in self.curve if point.attempt == self.attempt]
        if self.state != "running" or not mine or mine[-1].step <= 0:
            return None
        first, last = mine[0], mine[-1]
        steps, took_ms = last.step - first.step, last.at_ms - first.at_ms
        if steps <= 0:
            steps, took_ms = last.step, last.at_ms - self.started_ms
        left_ms = (last.of - last.step) * took_ms / steps - (now_ms - last.at_ms)
        return max(0.0, left_ms / 1000)

    def as_json(self, now_ms: int, *, with_curve: bool) -> dict[str, Any]:
        """For programs."""
        own = asdict(self)
        newest = self.newest
        own |= {
            "step": newest.step if newest else None,
            "of": newest.of if newest else None,
            "metrics": newest.metrics if newest else {},
            "remaining_s": self.remaining_s(now_ms),
        }
        if not with_curve:
            del own["curve"], own["log_tail"]
        return own


@dataclass(slots=True)
class Board:
    """A fold over the topics: the jobs that they know, in the order in which they were asked for.

    `most` bounds it: of the jobs that are over the oldest are forgotten. None keeps all.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    most: int | None = None
    _ids: set[str] = field(default_factory=set)

    def forget(self) -> None:
        """Keep to `most` jobs, and of a long curve every other point, however often; the newest stays."""
        if self.most is None:
            return
        self._ids.clear()  # who bounds the board tells it each event once
        for job_id in [j for j, job in self.jobs.items() if job.is_over][
            : max(0, len(self.jobs) - self.most)
        ]:
            del self.jobs[job_id]
        for job in self.jobs.values():
            if len(job.curve) > _MOST_POINTS:
                job.curve = [*job.curve[:-1:2], job.curve[-1]]

    def note(self, event_id: str, event: Announcement, at_ms: int) -> None:
        """Take in one event; a repeat changes nothing."""
        if event_id in self._ids:
            return
        self._ids.add(event_id)
        match event:
            case JobEvent():
                self._note_job(self._job(event.job_id), event, at_ms)
            case ModelPublished(manifest=manifest):
                job = self._job(manifest.lineage.job_id)
                job.state, job.ended_ms = "published", at_ms
                job.reason = f"version {manifest.version}"
            case CanaryPublished(manifest=manifest):
                job = self._job(manifest.lineage.job_id)
                job.state, job.ended_ms = "published", at_ms
                job.reason = f"version {manifest.version}, on trial"
            case ModelRefused(job_id=job_id):
                job = self._job(job_id)
                job.state, job.ended_ms, job.reason = "refused", at_ms, event.reason
            case _:
                pass

    def _job(self, job_id: str) -> Job:
        return self.jobs.setdefault(job_id, Job(job_id))

    def _note_job(self, job: Job, event: JobEvent, at_ms: int) -> None:  # noqa: PLR0912  (a case an event type)
        match event:
            case JobRequested(experiment=experiment):
                job.model, job.purpose, job.params = experiment.model, experiment.purpose, experiment.params
                job.priority, job.requested_ms = event.priority, event.requested_ms
                job.why = event.why or event.decision_id or ""
            case JobProgress():
                job.curve.append(Point(event.attempt, event.step, event.of, event.metrics, at_ms))
                if job.state == "queued" and event.attempt == 0:
                    job.state = "sweeping"
            # Jobs and models are told on two topics: a job's end may be read before what led to it.
            case JobStarted() if job.is_over:
                if event.attempt >= job.attempt:
                    job.device, job.attempt, job.started_ms = event.device, event.attempt, event.started_ms
            case JobSucceeded() if job.is_over:
                job.scores = event.scores
            case _ if job.is_over:
                return
            case JobStarted():
                job.state, job.device, job.attempt = "running", event.device, event.attempt
                job.started_ms, job.reason = event.started_ms, ""
            case JobQueued():
                job.reason = event.reason
            case JobSwept():
                job.state, job.params = "queued", {**job.params, **event.params}
                job.reason = f"the best of {event.trials} trials is {event.best_job_id}, {event.value:.4g}"
            case JobPreempted():
                job.state, job.reason = "queued", f"made room for {event.by_job_id}"
                job.preempted += 1
            case JobRetried():
                job.state, job.reason, job.log_tail = "queued", event.reason, event.log_tail
            case JobSucceeded():
                job.state = "scored" if job.purpose == "trial" else "judged"
                job.ended_ms, job.scores = at_ms, event.scores
            case JobFailed():
                job.state, job.ended_ms = "failed", at_ms
                job.reason, job.log_tail = event.reason, event.log_tail
            case JobSkipped():
                job.state, job.ended_ms, job.reason = "skipped", at_ms, event.reason
            case JobAnswered():
                job.state, job.ended_ms, job.reason = "answered", at_ms, f"as {event.earlier_job_id}"
                job.same_as = event.earlier_job_id
            case JobMerged():
                job.state, job.ended_ms, job.reason = "merged", at_ms, f"into {event.into_job_id}"
            case _:
                pass


async def follow(connection: Connection) -> AsyncGenerator[Board]:
    """The board as the topics have it now, and again whenever there is news or half a second has passed."""
    board = Board()
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(), enable_auto_commit=False, fetch_max_wait_ms=50
    )
    await consumer.start()
    try:
        tps = [TopicPartition(t.name, number) for t in _FOLLOWED for number in range(t.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        said_s = 0.0
        while True:
            batches = await consumer.getmany(timeout_ms=_POLL_MS)
            for records in batches.values():
                for record in records:
                    with contextlib.suppress(NotAnAnnouncement):
                        envelope = open_record(record.key, record.value, record.headers)
                        board.note(envelope.id, unwrap(envelope), record.timestamp)
            if any([await consumer.position(tp) < ends[tp] for tp in tps]):
                continue
            if batches or time.monotonic() - said_s > 0.5:
                said_s = time.monotonic()
                yield board
    finally:
        await consumer.stop()
