"""What a trainer says of its jobs: each step of a job's life as the event that it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from schemas import topics
from schemas.job import (
    JobAnswered,
    JobEvent,
    JobFailed,
    JobMerged,
    JobPreempted,
    JobProgress,
    JobQueued,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobSucceeded,
    JobSwept,
)
from trainers.assignment import Assignment, Began, Outcome, Progress
from trainers.bulletin import Bulletin
from trainers.conclusion import measures


class Telling:
    """Says them; on return of each the cluster holds it."""

    def __init__(self, bulletin: Bulletin, *, now_ms: Callable[[], int], progress_interval_ms: int) -> None:
        self._bulletin = bulletin
        self._now_ms = now_ms
        self._progress_interval_ms = progress_interval_ms

    async def _say(self, event: JobEvent) -> None:
        await self._bulletin.say(topics.JOBS.name, event)

    async def queued(self, job_id: str, reason: str, *, ahead: int) -> None:
        """It cannot start at once."""
        await self._say(JobQueued(job_id=job_id, reason=reason, ahead=ahead, queued_ms=self._now_ms()))

    async def merged(self, job_id: str, *, into: str) -> None:
        """Another takes its place."""
        await self._say(JobMerged(job_id=job_id, into_job_id=into, merged_ms=self._now_ms()))

    async def answered(self, job_id: str, *, run_key: str, earlier: str) -> None:
        """The same training is known."""
        await self._say(
            JobAnswered(job_id=job_id, run_key=run_key, earlier_job_id=earlier, answered_ms=self._now_ms())
        )

    async def started(self, assignment: Assignment, began: Began, *, resumed: bool) -> None:
        """A process of its own has begun on it."""
        await self._say(
            JobStarted(
                job_id=assignment.job.job_id,
                attempt=assignment.attempt,
                device=assignment.device_name,
                started_ms=began.started_ms,
                run_key=assignment.run_key,
                resumed=resumed,
            )
        )

    def progress(self, job_id: str, attempt: int) -> Callable[[Progress], Coroutine[Any, Any, None]]:
        """Passes progress on, not too often; the last step always."""
        said_s = 0.0

        async def say(report: Progress) -> None:
            nonlocal said_s
            due = (time.monotonic() - said_s) * 1000 >= self._progress_interval_ms
            if not due and report.step < report.of:
                return
            said_s = time.monotonic()
            await self._say(
                JobProgress(
                    job_id=job_id,
                    attempt=attempt,
                    step=report.step,
                    of=report.of,
                    metrics=report.metrics,
                )
            )

        return say

    async def preempted(self, job_id: str, attempt: int, *, by: str, checkpointed: bool) -> None:
        """It made room."""
        await self._say(
            JobPreempted(
                job_id=job_id,
                attempt=attempt,
                by_job_id=by,
                checkpointed=checkpointed,
                preempted_ms=self._now_ms(),
            )
        )

    async def retried(self, job_id: str, attempt: int, reason: str, *, log_tail: str, pause_s: float) -> None:
        """It is tried again after a pause."""
        await self._say(
            JobRetried(
                job_id=job_id,
                attempt=attempt,
                reason=reason,
                log_tail=log_tail,
                not_before_ms=self._now_ms() + int(pause_s * 1000),
            )
        )

    async def swept(
        self, job_id: str, *, params: Mapping[str, Any], best_job_id: str, value: float, trials: int
    ) -> None:
        """The best of its configurations is found."""
        await self._say(
            JobSwept(
                job_id=job_id,
                params=dict(params),
                best_job_id=best_job_id,
                value=value,
                trials=trials,
                swept_ms=self._now_ms(),
            )
        )

    async def scored(self, job_id: str, attempt: int, outcome: Outcome) -> None:
        """A trial came to its scores, which is all that a trial comes to."""
        await self._say(
            JobSucceeded(
                job_id=job_id,
                attempt=attempt,
                rows=outcome.rows,
                train_s=outcome.train_s,
                finished_ms=outcome.trained_ms,
                artifact_sha256=outcome.sha256,
                scores=measures(outcome),
            )
        )

    async def skipped(self, job_id: str, reason: str) -> None:
        """There was nothing to train on."""
        await self._say(JobSkipped(job_id=job_id, reason=reason, finished_ms=self._now_ms()))

    async def failed(self, job_id: str, attempt: int, reason: str, *, log_tail: str = "") -> None:
        """It is not tried again."""
        await self._say(
            JobFailed(
                job_id=job_id,
                attempt=attempt,
                reason=reason,
                log_tail=log_tail,
                finished_ms=self._now_ms(),
            )
        )
