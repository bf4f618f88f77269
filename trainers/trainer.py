"""The trainer: takes job events, runs each in a process of its own, publishes or refuses its model.

Its state is the topics': a job without an end is run again at the next start, one attempt later. How a job's
end is announced, and survives a crash in the middle, is `trainers.conclusion`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from aiokafka.errors import KafkaError

from infra.job_user import job_user
from infra.kafka.connection import Connection
from infra.logging import correlated, logger
from infra.observe.instruments import Instruments
from infra.observe.server import Readiness
from infra.observe.traces import Traces
from infra.settings import Settings
from infra.walls import walls_of
from schemas import topics
from schemas.errors import InvalidConfiguration, Rejected, Retryable
from schemas.job import JobRequested, Resources
from schemas.model import CanaryPublished, Manifest, ModelPublished, SignedModel
from schemas.trace import Place
from trainers import trained
from trainers.admission import Admission, Host, Running
from trainers.artifact import ArtifactCorrupt
from trainers.assignment import Assignment, Began, Done, Failed, Outcome, Skipped, Yielded
from trainers.attempt import Attempt
from trainers.bulletin import Bulletin
from trainers.code import source_sha256
from trainers.conclusion import Conclusion, conclude, folder_of, read_back, write_down
from trainers.devices import Survey, survey
from trainers.keys import KeyFolder
from trainers.memory import own_bytes
from trainers.observed import read_by
from trainers.process import JobProcess, Standby, StandbyDied
from trainers.publishing import publishing
from trainers.ray import RayAway, RayCluster, RayJob
from trainers.registry import in_queue
from trainers.schedule import Merge, Preempt, Refuse, Start, Terms, promised, schedule
from trainers.stores import Stores
from trainers.telling import Telling
from trainers.trial import Trials
from trainers.tuning import SweepStopped, Tuning
from trainers.vacuum import Retention, keep_vacuuming

log = logger(__name__)

CHECKPOINT_FILE = "checkpoint.safetensors"
SWEEP_FILE = "sweep.journal"
OWN_FOLDER = "own"
"""In a job's folder: what its process may write to. All else there is the trainer's word."""
_A_SLOT = Resources(device="cpu", cpus=1, memory_bytes=1)
_LONGEST_PAUSE_S = 60.0
_LOOK_AGAIN_S = 0.5
_SWEEP_AGAIN_S = 2.0


def _ask_nvml() -> Survey:
    return survey(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


def _processes(asked: Resources) -> int:
    """That are forked for a job: itself, and its ranks."""
    return 1 if asked.ranks == 1 else 1 + asked.ranks


class Trainer:
    """One trainer on one machine."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        *,
        store_url: str,
        stores: Stores | None = None,
        look_at_gpus: Callable[[], Survey] = _ask_nvml,
        instruments: Instruments | None = None,
        traces: Traces | None = None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.keys = KeyFolder(settings.paths.signing_keys)
        self.keys.ensure()
        self._traces = traces
        instruments = instruments or Instruments("trainer")
        self.bulletin = Bulletin(
            connection, now_ms=now_ms, trusted=self.keys.trusted(), instruments=instruments
        )
        self.registry = self.bulletin.registry
        self.tell = Telling(
            self.bulletin, now_ms=now_ms, progress_interval_ms=settings.trainer.progress_interval_ms
        )
        self._user = job_user(settings.trainer.job_user)
        self._walls = walls_of(settings)
        self.standby = Standby(
            settings.paths.jobs / "standby.log",
            handed_on=settings.trainer.environment_for_jobs,
            user=self._user,
        )
        self._connection = connection
        self._options = settings.trainer
        self._jobs = settings.paths.jobs
        self._stores = stores or Stores.of(settings)
        self._store_url = store_url
        self._gpus = look_at_gpus
        self._now_ms = now_ms
        self._host = Host(
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            cpu_slots=self._options.cpu_slots,
        )
        self._terms = Terms(
            setting=self._options.device,
            aging_ms=int(self._options.aging_s * 1000),
            patience_ms=int(self._options.patience_s * 1000),
        )
        self._ray = None
        if settings.trainer.backend == "ray":
            if self._user is not None:
                raise InvalidConfiguration(
                    "trainer.job_user is of this machine, and trainer.backend is ray: unset one of them; "
                    "whom jobs run as there is the cluster's to say"
                )
            self._ray = RayCluster(settings.ray, settings.paths.jobs)
            self._host = Host(cpus=2**20, memory_bytes=2**60, cpu_slots=settings.ray.jobs_at_once)
            self._terms = replace(self._terms, setting="cpu")
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, Running] = {}
        self._attempts: dict[str, Attempt] = {}
        self._tunings: dict[str, Tuning] = {}
        self._keys: dict[str, str] = {}
        self._inherited_bytes = 0
        self._contact_ms = settings.metrics.contact_ms
        self.survey = Survey()
        self._planned_at = (-1, -1, 0.0)
        self._ends = 0
        self._concluding = asyncio.Lock()
        self._trials = Trials(
            self.bulletin,
            self.keys,
            connection,
            concluding=self._concluding,
            jobs=self._jobs,
            now_ms=now_ms,
        )
        self._retention = Retention.of(settings.store)
        read_by(self, instruments, now_ms=now_ms)

    async def start(self) -> None:
        """Read what the topics know, and finish saying what a crash cut off. Warms up in the background.

        Raises:
            StandbyDied: there is no warm process to be had.
            InvalidConfiguration: the signing keys cannot be used.
        """
        if self._ray is None:
            await self.standby.start()
        await self.bulletin.start()
        await self._say_current(signed_by=self.keys.signing())
        for job in self.registry.open_jobs():
            name = job.experiment.model
            conclusion = read_back(
                self.folder(job.job_id),
                champion=self.registry.champion(name),
                version=self.registry.next_version(name),
            )
            if conclusion is not None:
                await self._announce(conclusion)
        log.info("trainer is up", store=self._store_url, open_jobs=len(self.registry.open_jobs()))

    def readiness(self) -> Readiness:
        """Ready is: the cluster answers, its topics are read, and there is a process to fork jobs from."""
        if not self.bulletin.has_caught_up:
            return Readiness(False, "the topics are not read yet")
        age_s = self.bulletin.contact_age_s()
        if age_s * 1000 > self._contact_ms:
            return Readiness(False, f"no broker has answered for {age_s:.0f} s")
        if self._ray is not None:
            return Readiness(
                self._ray.answers, "" if self._ray.answers else "the Ray cluster does not answer"
            )
        if not self.standby.is_warm:
            return Readiness(False, f"no process for jobs yet; its log is {self.standby.log_file}")
        return Readiness(True)

    def at_work(self) -> int:
        """How many jobs are at work."""
        return len(self._running)

    def begun(self) -> Set[str]:
        """Jobs that are cared for now: at work, or being concluded."""
        return self._tasks.keys()

    async def run(self) -> None:
        """Admit and run jobs until cancelled."""
        vacuuming = asyncio.create_task(
            keep_vacuuming(
                self._connection, self._stores, self._retention, jobs=self._jobs, trusted=self.keys.trusted()
            )
        )
        try:
            await self._get_ready()
            while True:
                self.bulletin.changed.clear()
                self.bulletin.check()
                if not self._concluding.locked():
                    await self._say_current()
                    await self._trials.turn()
                self._stop_unwanted()
                for job in self.registry.sweeps(but_not=self._tasks.keys()):
                    self._care_for(job, partial(self._sweep, job))
                await self._plan()
                # Not `wait_for`: in Python 3.11 it may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await self.bulletin.changed.wait()
        finally:
            for task in (vacuuming, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(vacuuming, *self._tasks.values(), return_exceptions=True)
            await self._trials.stop()

    async def _get_ready(self) -> None:
        """There is something to run jobs by: a warm process, or a cluster that answers."""
        if self._ray is not None:
            log.info("ready for jobs", ray=await self._ray.reach())
            return
        warm = await self.standby.warm()
        self._host = replace(self._host, torch_knows_cuda=warm.cuda is not None)
        self._inherited_bytes = own_bytes(self.standby.pid)
        log.info("ready for jobs", torch=warm.torch, warmed_s=round(warm.warmed_s, 1))

    async def _say_current(self, *, signed_by: Set[str] = frozenset()) -> None:
        """Tell the current topic what the history has beyond it: somebody died between the two."""
        for event in self.registry.unsaid_current(signed_by=signed_by):
            await self.bulletin.say(topics.MODELS_CURRENT.name, self.keys.signed(event))

    async def stop(self) -> None:
        """End all jobs, to be run again at the next start, and let go of the cluster."""
        await self.standby.stop()
        if self._ray is not None:
            await self._ray.stop()
        await self.bulletin.stop()

    def _stop_unwanted(self) -> None:
        """Jobs that somebody wants ended: those at work by their process, those that wait by an event."""
        for job_id in list(self.registry.stops):
            reason = self.registry.stops[job_id]
            if at_work := self._attempts.get(job_id) or self._tunings.get(job_id):
                at_work.stop(reason)
            elif job_id in self.registry.over:
                del self.registry.stops[job_id]
            elif job_id not in self._tasks and (job := self.registry.requested.get(job_id)):
                tried = self.registry.attempts.get(job_id, 0)
                self._care_for(job, partial(self._end_waiting, job, tried, reason))

    async def _end_waiting(self, job: JobRequested, tried: int, reason: str) -> None:
        if self._ray is not None:  # an earlier trainer may have submitted it
            await self._ray.end_left(self.folder(job.job_id), tried)
        await self._fail(job, tried, reason)

    async def _plan(self) -> None:
        """Decide what starts, makes room or is refused, if anything has changed since the last time."""
        now_s = time.monotonic()
        revision, ends, again_s = self._planned_at
        if (revision, ends) == (self.registry.revision, self._ends) and now_s < again_s:
            return
        self._planned_at = (self.registry.revision, self._ends, now_s + _LOOK_AGAIN_S)
        waiting = self.registry.waiting(but_not=self._tasks.keys())
        if not waiting:
            return
        found = Survey()
        if self._ray is None:
            found = await asyncio.to_thread(self._gpus)
            self._note_devices(found)
        else:
            # Which machine has room is the cluster's to say: here a job takes a slot, and no more.
            waiting = [replace(each, resources=_A_SLOT) for each in waiting]
        plan = schedule(
            waiting, self._at_work(), found.gpus, self._host_now(), now_ms=self._now_ms(), terms=self._terms
        )
        for action in plan.actions:
            match action:
                case Start(job_id=job_id, admission=admission):
                    self._begin(self.registry.requested[job_id], admission)
                case Refuse(job_id=job_id, reason=reason):
                    job = self.registry.requested[job_id]
                    self._care_for(job, partial(self._refuse, job, reason))
                case Merge(job_id=job_id, into_job_id=into):
                    job = self.registry.requested[job_id]
                    self._care_for(job, partial(self.tell.merged, job_id, into=into))
                case Preempt(job_id=job_id, by_job_id=by):
                    if attempt := self._attempts.get(job_id):
                        log.info("makes room", job=job_id, by=by)
                        attempt.preempt(by)
        unsaid = (
            self.tell.queued(job_id, reason, ahead=ahead)
            for ahead, (job_id, reason) in enumerate(plan.waits.items())
            if job_id not in self.registry.queued
        )
        await asyncio.gather(*unsaid)

    def _note_devices(self, found: Survey) -> None:
        known = {gpu.uuid: gpu for gpu in (*self._host.known_gpus, *found.gpus)}
        self._host = replace(self._host, known_gpus=tuple(known.values()))
        before, self.survey = self.survey, found
        if found.faults != before.faults:
            log.warning("GPUs do not answer", faults=found.faults)

    def _host_now(self) -> Host:
        if self._ray is not None:
            return self._host
        return replace(self._host, available_bytes=psutil.virtual_memory().available)

    def _at_work(self) -> list[Running]:
        at_work: list[Running] = []
        for job_id, known in self._running.items():
            attempt = self._attempts.get(job_id)
            if attempt is not None:
                known = replace(  # noqa: PLW2901  (the same job, as it stands now)
                    known,
                    pid=attempt.pid,
                    used_bytes=attempt.used_bytes,
                    leaving=attempt.preempted_by is not None,
                )
            at_work.append(known)
        return at_work

    def _begin(self, job: JobRequested, admission: Admission) -> None:
        """Start it, unless the same training is known, or is at work this moment."""
        champion = self.registry.champion(job.experiment.model)
        key = job.experiment.run_key(
            code_sha256=source_sha256(job.experiment.code),
            parent_sha256=champion.artifact.sha256 if champion else None,
        )
        if earlier := self.registry.decided_by(key):
            self._care_for(job, partial(self.tell.answered, job.job_id, run_key=key, earlier=earlier))
            return
        if key in self._keys.values():
            return  # it is answered when that one has ended
        self._keys[job.job_id] = key
        self._running[job.job_id] = promised(
            in_queue(job) if self._ray is None else replace(in_queue(job), resources=_A_SLOT),
            admission,
            now_ms=self._now_ms(),
            terms=self._terms,
        )
        self._care_for(job, partial(self._try, job, admission, champion, key))

    def _care_for(self, job: JobRequested, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks[job.job_id] = asyncio.create_task(self._see_through(job, what))

    async def _see_through(self, job: JobRequested, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        attempt = self.registry.attempts.get(job.job_id, 0) + 1
        experiment = job.experiment
        with correlated(
            job=job.job_id,
            attempt=attempt,
            model=experiment.model,
            pipeline=experiment.pipeline,
            decision=job.decision_id,
        ):
            began_ms = self._now_ms()
            try:
                await what()
            except (StandbyDied, RayAway) as error:
                log.error("the job will be run again", error=str(error))
                await asyncio.sleep(_LOOK_AGAIN_S)  # the job stays open and is tried again
            except Exception as error:
                log.exception("the trainer failed on a job")
                await self._fail(job, attempt, f"the trainer failed on it: {error}")
            finally:
                self._tasks.pop(job.job_id, None)
                self._running.pop(job.job_id, None)
                self._keys.pop(job.job_id, None)
                self._ends += 1
                self._trace_job(job, attempt, began_ms)
                self.bulletin.changed.set()

    def _place(self, job_id: str) -> Place | None:
        """Where a job was asked for; of one that was asked for without a trace, the beginning of its own."""
        if self._traces is None:
            return None
        return self.bulletin.places.get(job_id) or self._traces.beginning(job_id)

    def _trace_job(self, job: JobRequested, attempt: int, began_ms: int) -> None:
        asked = self._place(job.job_id)
        if self._traces is not None and asked is not None:
            self._traces.record(
                "job",
                asked.beside(f"{job.job_id}/{attempt}"),
                parent=asked,
                start_ms=began_ms,
                end_ms=self._now_ms(),
                job=job.job_id,
                attempt=attempt,
                model=job.experiment.model,
                over=job.job_id in self.registry.over,
            )

    def _trace_training(self, job_id: str, attempt: int, outcome: Outcome) -> None:
        asked = self._place(job_id)
        if self._traces is not None and asked is not None:
            self._traces.record(
                "train",
                asked.beside(f"{job_id}/{attempt}/train"),
                parent=asked.beside(f"{job_id}/{attempt}"),
                start_ms=outcome.trained_ms - outcome.train_s * 1000,
                end_ms=outcome.trained_ms,
                job=job_id,
                rows=outcome.rows,
            )

    async def _refuse(self, job: JobRequested, reason: str) -> None:
        await self._fail(job, self.registry.attempts.get(job.job_id, 0), f"it can never run here: {reason}")

    async def _try(
        self, job: JobRequested, admission: Admission, champion: Manifest | None, key: str
    ) -> None:
        number = self.registry.attempts.get(job.job_id, 0) + 1
        if left := self._left_by_another(job.job_id, number - 1):
            number, champion, key = left.attempt, left.champion, left.run_key
        to_blame = number - 1 - self.registry.preempted.get(job.job_id, 0)
        if to_blame >= self._options.attempts:
            await self._fail(job, number - 1, f"the trainer died under it {to_blame} times")
            return
        assignment = left or self._assignment(job, number, admission, champion, key)
        if number > 1 and (outcome := await self._trained(job, key)) is not None:
            log.info("trained already: what is left is to conclude")
            await self._say_started(assignment, Began(pid=os.getpid(), started_ms=self._now_ms()))
            await self._conclude_or_retry(job, number, to_blame + 1, outcome, champion)
            return
        if champion is not None and self._stores.remote is not None:
            # Of another machine, perhaps. What cannot be had, the job itself will miss by name.
            with contextlib.suppress(Rejected, Retryable):
                await self._stores.bring(champion.artifact.sha256)
        process = await self._process_of(assignment)
        attempt = Attempt(
            process,
            job.experiment.resources,
            inherited_bytes=self._inherited_bytes * _processes(job.experiment.resources),
            grace_s=self._options.yield_grace_s,
        )
        self._attempts[job.job_id] = attempt
        try:
            ended = await attempt.run(
                assignment,
                began=partial(self._say_started, assignment),
                progressed=self.tell.progress(job.job_id, number),
            )
        finally:
            self._attempts.pop(job.job_id, None)
        match ended:
            case Done(outcome=outcome):
                self._trace_training(job.job_id, number, outcome)
                await self._take_in(job, number, to_blame + 1, outcome, champion, key)
            case Skipped(reason=reason):
                log.info("skipped", reason=reason)
                await self.tell.skipped(job.job_id, reason)
            case Yielded(checkpointed=checkpointed):
                await self.tell.preempted(
                    job.job_id,
                    number,
                    by=attempt.preempted_by or "",
                    checkpointed=checkpointed or self._checkpoint(job.job_id).exists(),
                )
            case Failed(reason=reason, retryable=retryable):
                await self._retry_or_fail(job, number, to_blame + 1, reason, retryable, process.log_tail())
        self._drop_state(job.job_id, number)

    async def _process_of(self, assignment: Assignment) -> JobProcess | RayJob:
        """A process of its own, here or on the cluster.

        Raises:
            StandbyDied, RayAway: there is none to be had now.
        """
        job_id = assignment.job.job_id
        if self._ray is not None:
            return await self._ray.begin(self.folder(job_id), assignment)
        own = self._own(job_id)
        if self._user is not None:
            await asyncio.to_thread(self._user.give, own)
        else:
            own.mkdir(parents=True, exist_ok=True)
        return await self.standby.begin(self.folder(job_id) / "job.log")

    def _left_by_another(self, job_id: str, attempt: int) -> Assignment | None:
        """What an earlier trainer submitted to a cluster, where it may have gone on meanwhile."""
        return None if self._ray is None else self._ray.left(self.folder(job_id), attempt)

    async def _take_in(
        self,
        job: JobRequested,
        attempt: int,
        to_blame: int,
        outcome: Outcome,
        champion: Manifest | None,
        key: str,
    ) -> None:
        """What a job's process came to is the trainer's from here on, and then concluded."""
        if self._ray is None:
            take_over = self._stores.folder.take_over
            try:
                await asyncio.to_thread(
                    take_over, self._own(job.job_id), outcome.sha256, size_bytes=outcome.size_bytes
                )
            except (Rejected, Retryable) as error:
                again = isinstance(error, Retryable)
                await self._retry_or_fail(job, attempt, to_blame, str(error), again, "")
                return
        await asyncio.to_thread(trained.keep, self.folder(job.job_id), key, outcome)
        await self._conclude_or_retry(job, attempt, to_blame, outcome, champion)

    async def _trained(self, job: JobRequested, key: str) -> Outcome | None:
        """What an earlier attempt came to, if its weights are still there."""
        outcome = await asyncio.to_thread(trained.recall, self.folder(job.job_id), key)
        if outcome is None:
            return None
        try:
            await asyncio.to_thread(self._stores.folder.get, outcome.sha256)
        except ArtifactCorrupt as error:
            log.warning("what was trained is gone and is trained again", error=str(error))
            return None
        return outcome

    async def _conclude_or_retry(
        self,
        job: JobRequested,
        attempt: int,
        to_blame: int,
        outcome: Outcome,
        judged_against: Manifest | None,
    ) -> None:
        try:
            await self._conclude(job, attempt, outcome, judged_against)
        except Retryable as error:
            await self._retry_or_fail(job, attempt, to_blame, str(error), True, "")
        if job.job_id in self.registry.over:
            await asyncio.to_thread(trained.forget, self.folder(job.job_id))
            self._drop_state(job.job_id, attempt)

    async def _retry_or_fail(
        self, job: JobRequested, attempt: int, to_blame: int, reason: str, retryable: bool, log_tail: str
    ) -> None:
        if not retryable:
            await self._fail(job, attempt, reason, log_tail)
        elif to_blame >= self._options.attempts:
            await self._fail(job, attempt, f"{reason}; given up after {to_blame} attempts", log_tail)
        else:
            pause_s = min(_LONGEST_PAUSE_S, self._options.retry_after_s * 2 ** (to_blame - 1))
            log.warning("will be tried again", reason=reason, pause_s=pause_s)
            await self.tell.retried(job.job_id, attempt, reason, log_tail=log_tail, pause_s=pause_s)

    def _assignment(
        self, job: JobRequested, attempt: int, admission: Admission, champion: Manifest | None, key: str
    ) -> Assignment:
        gpu, asked = admission.gpu, job.experiment.resources
        cores = max(1, asked.cpus // asked.ranks)
        shares = gpu is not None and not asked.gpus
        device_name = "cpu" if gpu is None else ", ".join(each.label for each in admission.gpus)
        on_gpu = gpu is not None
        if self._ray is not None:
            on_gpu = asked.gpus > 0 or asked.device == "cuda" or (asked.device == "auto" and self._ray.gpus)
            device_name = "Ray, GPU" if on_gpu else "Ray, cpu"
        return Assignment(
            job=job,
            attempt=attempt,
            artifacts=str(self._stores.folder.folder),
            champion=champion,
            device="cuda:0" if on_gpu else "cpu",
            device_name=device_name,
            gpu_uuids=tuple(each.uuid for each in admission.gpus),
            gpu_share=min(1.0, asked.gpu_memory_bytes / gpu.total_bytes) if gpu and shares else None,
            threads=max(cores, self._options.threads_per_job if asked.ranks == 1 else 1),
            run_key=key,
            checkpoint=str(self._checkpoint(job.job_id)),
            outbox=str(self._own(job.job_id)) if self._ray is None else "",
            walls=self._walls and self._walls.around(job.experiment, own=str(self._own(job.job_id))),
        )

    async def _say_started(self, assignment: Assignment, began: Began) -> None:
        if self.registry.attempts.get(assignment.job.job_id, 0) >= assignment.attempt:
            return  # an earlier trainer said so
        resumed = self._checkpoint(assignment.job.job_id).exists()
        await self.tell.started(assignment, began, resumed=resumed)

    async def _sweep(self, job: JobRequested) -> None:
        """Try its configurations; then it is in the queue, as the best of them."""
        tuning = Tuning(job, self._connection, journal=self.folder(job.job_id) / SWEEP_FILE)
        self._tunings[job.job_id] = tuning
        try:
            best = await tuning.run(progressed=self.tell.progress(job.job_id, 0))
        except (SweepStopped, InvalidConfiguration) as error:
            await self._fail(job, 0, str(error))
        except KafkaError as error:
            log.warning("the sweep pauses", error=repr(error))
            await asyncio.sleep(_SWEEP_AGAIN_S)  # the job stays open, and the sweep goes on where it was
        else:
            await self.tell.swept(
                job.job_id,
                params=best.params,
                best_job_id=best.job_id,
                value=best.value,
                trials=best.trials,
            )
        finally:
            self._tunings.pop(job.job_id, None)

    async def _conclude(
        self, job: JobRequested, attempt: int, outcome: Outcome, judged_against: Manifest | None
    ) -> None:
        stored = self._stores.remote is None
        if stored or job.experiment.purpose == "trial":
            # The bytes that the event promises, read back by whoever promises them. Else the upload does so.
            await asyncio.to_thread(self._stores.folder.get, outcome.sha256)
        if job.experiment.purpose == "trial":
            await self.tell.scored(job.job_id, attempt, outcome)
            return
        while True:
            async with self._concluding, publishing(self._jobs):
                await self.bulletin.caught_up()
                conclusion = conclude(
                    job,
                    attempt,
                    outcome,
                    judged_against=judged_against,
                    champion=self.registry.champion(job.experiment.model),
                    version=self.registry.next_version(job.experiment.model),
                    on_trial=self.registry.canary(job.experiment.model),
                    store_url=self._store_url,
                    now_ms=self._now_ms(),
                )
                if stored or conclusion.refused is not None:
                    await asyncio.to_thread(write_down, self.folder(job.job_id), conclusion)
                    await self._announce(conclusion)
                    return
            # Not while others wait to conclude: a slow store is slow for this job alone. What is live may
            # change meanwhile, so it is decided anew.
            await self._stores.publish(outcome.sha256)
            stored = True

    async def _announce(self, conclusion: Conclusion) -> None:
        succeeded, event = conclusion.succeeded, conclusion.model_event
        began_ms, asked = self._now_ms(), self._place(succeeded.job_id)
        place = None if asked is None else asked.beside(event.event_id())
        if isinstance(event, SignedModel):
            event = await asyncio.to_thread(self.keys.signed, event)
        if succeeded.job_id not in self.registry.succeeded:
            await self.bulletin.say(topics.JOBS.name, succeeded)
        await self.bulletin.say(topics.MODELS.name, event, place=place)
        version = None
        if isinstance(event, ModelPublished):
            await self.bulletin.say(topics.MODELS_CURRENT.name, event, place=place)
            version = event.manifest.version
        elif isinstance(event, CanaryPublished):
            await self.bulletin.say(topics.MODELS_CANARIES.name, event, place=place)
            version = event.manifest.version
        log.info(
            "concluded",
            job=succeeded.job_id,
            event_id=event.event_id(),
            published=version is not None,
            model=event.name,
            model_version=version,
        )
        if self._traces is not None and asked is not None and place is not None:
            self._traces.record(
                "refuse" if version is None else "publish",
                place,
                parent=asked.beside(f"{succeeded.job_id}/{succeeded.attempt}"),
                start_ms=began_ms,
                end_ms=self._now_ms(),
                job=succeeded.job_id,
                model=event.name,
                model_version=version or 0,
            )

    async def _fail(self, job: JobRequested, attempt: int, reason: str, log_tail: str = "") -> None:
        log.warning("job failed", job=job.job_id, reason=reason)
        await self.tell.failed(job.job_id, attempt, reason, log_tail=log_tail)

    def _checkpoint(self, job_id: str) -> Path:
        return (self._own(job_id) if self._ray is None else self.folder(job_id)) / CHECKPOINT_FILE

    def _own(self, job_id: str) -> Path:
        """What a job's process on this machine writes to: its state, its weights, temporary files."""
        return self.folder(job_id) / OWN_FOLDER

    def _drop_state(self, job_id: str, attempt: int) -> None:
        """What came of the attempt is said; if that was the job's end, its checkpoint is of no more use."""
        if self._ray is not None:
            self._ray.conclude(self.folder(job_id), attempt)
        if job_id in self.registry.over:
            self._checkpoint(job_id).unlink(missing_ok=True)
            shutil.rmtree(self._own(job_id), ignore_errors=True)

    def folder(self, job_id: str) -> Path:
        """A job's own folder: its log, and its conclusion."""
        return folder_of(self._jobs, job_id)
