"""A job that begins with a sweep: its trials are asked for as jobs, and it waits for the best of them.

Optuna is slow and its journal is a file, so a sweep is driven by a thread of its own. Nothing of it is lost
with the trainer: the journal and the topics say where it was, and the next trainer goes on there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.kafka.connection import Connection
from schemas.job import JobRequested
from trainers.assignment import Progress

if TYPE_CHECKING:
    import optuna


class SweepStopped(Exception):
    """Somebody wants the job ended; the message says why."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best of a sweep's configurations: its varied parameters, and the trial that they are of."""

    params: dict[str, Any]
    job_id: str
    value: float
    trials: int


class Tuning:
    """One job's sweep, from its first trial, or where it was left, to its best."""

    def __init__(self, job: JobRequested, connection: Connection, *, journal: Path) -> None:
        self._job = job
        self._connection = connection
        self._journal = journal
        self._over = threading.Event()
        self._reason = ""
        self._said = -1

    def stop(self, reason: str) -> None:
        """End it for good; trials that run are the caller's."""
        self._reason = self._reason or reason
        self._over.set()

    async def run(self, *, progressed: Callable[[Progress], Awaitable[None]]) -> Best:
        """The best configuration, once all trials are told.

        Raises:
            SweepStopped: by `stop`.
            InvalidConfiguration: no trial was scored, or the journal is another sweep's.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Best] = loop.create_future()

        def settle(best: Best | None, error: BaseException | None) -> None:
            if found.done():
                return
            if error is not None:
                found.set_exception(error)
            elif best is not None:
                found.set_result(best)

        def tell(report: Progress) -> None:
            asyncio.run_coroutine_threadsafe(_await(progressed(report)), loop)

        def work() -> None:
            best, failure = None, None
            try:
                best = asyncio.run(self._drive(tell))
            except BaseException as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, best, failure)

        # Not one of asyncio's own: those are waited for at the end, and a cluster may be away for long.
        threading.Thread(target=work, name=f"sweep {self._job.job_id}", daemon=True).start()
        try:
            return await found
        finally:
            self._over.set()

    async def _drive(self, tell: Callable[[Progress], None]) -> Best:
        from trainers import sweep as sweeping  # Optuna: a second, for trainers that sweep

        sweep = sweeping.sweep_of(self._job)

        def news(study: optuna.Study) -> None:
            if self._over.is_set():
                raise SweepStopped(self._reason or "the trainer ends")
            report = sweeping.progress(study, sweep)
            if report.step != self._said:
                self._said = report.step
                tell(report)

        study = await sweeping.run(sweep, self._connection, journal=self._journal, news=news)
        return Best(
            params=sweeping.best_params(study, sweep),
            job_id=sweep.job_id(study.best_trial.number),
            value=float(study.best_value),
            trials=len(study.trials),
        )


async def _await(said: Awaitable[None]) -> None:
    await said
