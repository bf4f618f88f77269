"""The trainer: takes job events, runs each in a process of its own, publishes or refuses its model.

Its state is the topics': a job without an end is run again at the next start, one attempt later. How a job's
end is announced, and survives a crash in the middle, is `trainers.conclusion`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from infra.kafka.connection import Connection
from infra.logging import correlated, logger
from infra.settings import Settings
from schemas import topics
from schemas.job import JobFailed, JobProgress, JobRequested, JobSkipped, JobStarted
from schemas.model import Manifest
from trainers.admission import Admission, Host, Running, admit
from trainers.artifact import ArtifactStore
from trainers.assignment import Assignment, Began, Done, Failed, Outcome, Progress, Skipped
from trainers.bulletin import Bulletin
from trainers.conclusion import Conclusion, conclude, read_back, write_down
from trainers.devices import Survey, survey
from trainers.process import JobProcess, Standby, StandbyDied, ending

log = logger(__name__)

MOST_ATTEMPTS = 5
_LOOK_AGAIN_S = 0.5
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


def _ask_nvml() -> Survey:
    return survey(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


class Trainer:
    """One trainer on one machine."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        *,
        store_url: str,
        look_at_gpus: Callable[[], Survey] = _ask_nvml,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.bulletin = Bulletin(connection, now_ms=now_ms)
        self.registry = self.bulletin.registry
        self.standby = Standby(settings.paths.jobs / "standby.log")
        self._options = settings.trainer
        self._jobs = settings.paths.jobs
        self._store = ArtifactStore(settings.paths.artifacts)
        self._store_url = store_url
        self._gpus = look_at_gpus
        self._now_ms = now_ms
        self._host = Host(
            cpus=os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            cpu_slots=self._options.cpu_slots,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, Running] = {}
        self._faults: tuple[str, ...] = ()
        self._concluding = asyncio.Lock()

    async def start(self) -> None:
        """Read what the topics know, and finish saying what a crash cut off. Warms up in the background.

        Raises:
            StandbyDied: there is no warm process to be had.
        """
        await self.standby.start()
        await self.bulletin.start()
        for event in self.registry.unsaid_current():
            await self.bulletin.say(topics.MODELS_CURRENT.name, event)
        for job in self.registry.open_jobs():
            conclusion = read_back(
                self.folder(job.job_id), champion=self.registry.champion(job.experiment.model)
            )
            if conclusion is not None:
                await self._announce(conclusion)
        log.info("trainer is up", store=self._store_url, open_jobs=len(self.registry.open_jobs()))

    async def run(self) -> None:
        """Admit and run jobs until cancelled."""
        try:
            warm = await self.standby.warm()
            self._host = Host(
                cpus=self._host.cpus,
                memory_bytes=self._host.memory_bytes,
                cpu_slots=self._host.cpu_slots,
                torch_knows_cuda=warm.cuda is not None,
            )
            log.info("ready for jobs", torch=warm.torch, warmed_s=round(warm.warmed_s, 1))
            while True:
                self.bulletin.changed.clear()
                self.bulletin.check()
                await self._admit_all()
                # Not `wait_for`: in Python 3.11 it may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await self.bulletin.changed.wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def stop(self) -> None:
        """End all jobs, to be run again at the next start, and let go of the cluster."""
        await self.standby.stop()
        await self.bulletin.stop()

    async def _admit_all(self) -> None:
        waiting = self.registry.open_jobs(but_not=self._tasks.keys())
        if not waiting:
            return
        found = await asyncio.to_thread(self._gpus)
        if found.faults != self._faults:
            self._faults = found.faults
            log.warning("GPUs do not answer", faults=found.faults)
        names = {self.registry.requested[job_id].experiment.model for job_id in self._tasks}
        for job in waiting:
            experiment = job.experiment
            if experiment.model in names:
                continue  # it is to be judged against, and may begin from, the model before it
            admission = admit(
                experiment.resources,
                found.gpus,
                list(self._running.values()),
                self._host,
                setting=self._options.device,
            )
            if admission.verdict == "wait":
                continue
            names.add(experiment.model)
            gpu = admission.gpu
            if admission.verdict == "run":
                self._running[job.job_id] = Running(
                    gpu_uuid=gpu.uuid if gpu else None,
                    gpu_memory_bytes=experiment.resources.gpu_memory_bytes if gpu else 0,
                )
            self._tasks[job.job_id] = asyncio.create_task(self._see_through(job, admission))

    async def _see_through(self, job: JobRequested, admission: Admission) -> None:
        attempt = self.registry.attempts.get(job.job_id, 0) + 1
        with correlated(job=job.job_id, attempt=attempt):
            try:
                if admission.verdict == "never":
                    await self._fail(job, attempt, f"it can never run here: {admission.reason}")
                elif attempt > MOST_ATTEMPTS:
                    await self._fail(job, attempt - 1, f"the trainer died under it {MOST_ATTEMPTS} times")
                else:
                    await self._attempt(job, attempt, admission)
            except StandbyDied as error:
                log.error("the job will be run again", error=str(error))
                await asyncio.sleep(_LOOK_AGAIN_S)  # the job stays open and is tried again
            except Exception as error:
                log.exception("the trainer failed on a job")
                await self._fail(job, attempt, f"the trainer failed on it: {error}")
            finally:
                self._tasks.pop(job.job_id, None)
                self._running.pop(job.job_id, None)
                self.bulletin.changed.set()

    async def _attempt(self, job: JobRequested, attempt: int, admission: Admission) -> None:
        champion = self.registry.champion(job.experiment.model)
        process = await self.standby.begin(self.folder(job.job_id) / "job.log")
        limit_s = job.experiment.resources.time_limit_s
        ended: Done | Skipped | Failed | None = None
        try:
            async with asyncio.timeout(limit_s):
                ended = await self._hear(process, self._assignment(job, attempt, admission, champion))
        except TimeoutError:
            ended = Failed(reason=f"it ran longer than its limit of {limit_s:g} s and was killed")
        finally:
            process.kill()
        match ended:
            case Done(outcome=outcome):
                await self._conclude(job, attempt, outcome, champion)
            case Skipped(reason=reason):
                log.info("skipped", reason=reason)
                skipped = JobSkipped(job_id=job.job_id, reason=reason, finished_ms=self._now_ms())
                await self.bulletin.say(topics.JOBS.name, skipped)
            case Failed(reason=reason):
                await process.ended()
                await self._fail(job, attempt, reason, process.log_tail())
            case None:
                code = await process.ended()
                if code is None:
                    raise StandbyDied("the warm process went, and the job's process with it")
                await self._fail(job, attempt, f"its process died: {ending(code)}", process.log_tail())
        await process.ended()  # only now is its device free

    def _assignment(
        self, job: JobRequested, attempt: int, admission: Admission, champion: Manifest | None
    ) -> Assignment:
        gpu, asked = admission.gpu, job.experiment.resources
        return Assignment(
            job=job,
            attempt=attempt,
            artifacts=str(self._store.folder),
            champion=champion,
            device="cpu" if gpu is None else "cuda:0",
            device_name="cpu" if gpu is None else gpu.label,
            gpu_uuid=None if gpu is None else gpu.uuid,
            gpu_share=None if gpu is None else min(1.0, asked.gpu_memory_bytes / gpu.total_bytes),
            threads=max(asked.cpus, self._options.threads_per_job),
        )

    async def _hear(self, process: JobProcess, assignment: Assignment) -> Done | Skipped | Failed | None:
        """Pass on what a job's process says; what came of it, or None if it is gone without a word."""
        job_id, attempt = assignment.job.job_id, assignment.attempt
        said_s = 0.0
        async for report in process.reports(assignment):
            match report:
                case Began(pid=pid, started_ms=started_ms):
                    self._note_pid(job_id, pid)
                    started = JobStarted(
                        job_id=job_id, attempt=attempt, device=assignment.device_name, started_ms=started_ms
                    )
                    await self.bulletin.say(topics.JOBS.name, started)
                case Progress():
                    if (time.monotonic() - said_s) * 1000 >= self._options.progress_interval_ms:
                        said_s = time.monotonic()
                        progress = JobProgress(
                            job_id=job_id,
                            attempt=attempt,
                            step=report.step,
                            of=report.of,
                            metrics=report.metrics,
                        )
                        await self.bulletin.say(topics.JOBS.name, progress)
                case Done() | Skipped() | Failed():
                    return report
        return None

    def _note_pid(self, job_id: str, pid: int) -> None:
        known = self._running[job_id]
        self._running[job_id] = Running(
            gpu_uuid=known.gpu_uuid, gpu_memory_bytes=known.gpu_memory_bytes, pid=pid
        )

    async def _conclude(
        self, job: JobRequested, attempt: int, outcome: Outcome, judged_against: Manifest | None
    ) -> None:
        # The bytes that the event promises, read back by whoever promises them.
        await asyncio.to_thread(self._store.get, outcome.sha256)
        async with self._concluding:
            await self.bulletin.caught_up()
            conclusion = conclude(
                job,
                attempt,
                outcome,
                judged_against=judged_against,
                champion=self.registry.champion(job.experiment.model),
                store_url=self._store_url,
                now_ms=self._now_ms(),
            )
            await asyncio.to_thread(write_down, self.folder(job.job_id), conclusion)
            await self._announce(conclusion)

    async def _announce(self, conclusion: Conclusion) -> None:
        succeeded, published = conclusion.succeeded, conclusion.published
        if succeeded.job_id not in self.registry.succeeded:
            await self.bulletin.say(topics.JOBS.name, succeeded)
        await self.bulletin.say(topics.MODELS.name, conclusion.model_event)
        if published is not None:
            await self.bulletin.say(topics.MODELS_CURRENT.name, published)
        event = conclusion.model_event
        log.info("concluded", event_id=event.event_id(), published=published is not None)

    async def _fail(self, job: JobRequested, attempt: int, reason: str, log_tail: str = "") -> None:
        log.warning("job failed", job=job.job_id, reason=reason)
        failed = JobFailed(
            job_id=job.job_id,
            attempt=attempt,
            reason=reason,
            log_tail=log_tail,
            finished_ms=self._now_ms(),
        )
        await self.bulletin.say(topics.JOBS.name, failed)

    def folder(self, job_id: str) -> Path:
        """A job's own folder: its log, and its conclusion."""
        if _PLAIN_NAME.fullmatch(job_id):
            return self._jobs / job_id
        return self._jobs / hashlib.sha256(job_id.encode()).hexdigest()
