"""The trainer: takes job events, runs each in a process of its own, publishes or refuses its model.

Its state is the topics': at start it reads them from the beginning, and a job without an end is run again.
The order of a finished job's events is: job succeeded, model published (or refused) to the history, the
current model. The second alone ends a job. A crash before it runs the job again, with the same result and
the same ids; after it, the current model is said again at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.settings import Settings
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import NotAnAnnouncement, open_record, unwrap, wrap
from schemas.job import JobFailed, JobProgress, JobRequested, JobSkipped, JobStarted, JobSucceeded
from schemas.model import Artifact, Field, Manifest, ModelPublished, ModelRefused
from trainers.admission import CPU, Admission, admit
from trainers.artifact import ENDING
from trainers.devices import Gpu, gpus
from trainers.gate import judge
from trainers.process import Standby
from trainers.registry import Registry
from trainers.store_server import StoreServer
from trainers.work import Assignment, Outcome

log = structlog.get_logger(__name__)

_FOLLOWED = (topics.JOBS.name, topics.MODELS.name)
_LOOK_AGAIN_S = 0.5


async def run_trainer(settings: Settings, connection: Connection) -> None:
    """Run a trainer until SIGTERM or SIGINT. Jobs at work then are run again at the next start."""
    trainer = Trainer(settings, connection)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopped.set)
    await trainer.start()
    try:
        running = asyncio.create_task(trainer.run())
        waiting = asyncio.create_task(stopped.wait())
        done, _ = await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running in done:
            await running
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        await trainer.stop()


class Trainer:
    """One trainer on one machine."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        *,
        look_at_gpus: Callable[[], list[Gpu]] = gpus,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.registry = Registry()
        self._options = settings.trainer
        self._connection = connection
        self._gpus = look_at_gpus
        self._now_ms = now_ms
        self._artifacts = settings.paths.artifacts
        self._standby = Standby(settings.paths.jobs, self._options.standby)
        self._server = StoreServer(
            settings.paths.artifacts,
            host=settings.store.host,
            port=settings.store.port,
            public_url=settings.store.public_url,
        )
        self._running: dict[str, asyncio.Task[None]] = {}
        self._devices: dict[str, tuple[str, int]] = {}
        self._changed = asyncio.Event()
        self._model_lock = asyncio.Lock()

    async def start(self) -> None:
        """Serve the store, warm up, and read back what the topics know."""
        self._artifacts.mkdir(parents=True, exist_ok=True)
        self.store_url = await self._server.start()
        await self._standby.fill()
        self._producer = AIOKafkaProducer(
            **self._connection.client_arguments(),
            enable_idempotence=True,
            acks="all",
            max_request_size=2_097_152,
        )
        await self._producer.start()
        self._consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(), enable_auto_commit=False, fetch_max_wait_ms=50
        )
        await self._consumer.start()
        tps = [TopicPartition(name, 0) for name in _FOLLOWED]
        self._consumer.assign(tps)
        await self._consumer.seek_to_beginning(*tps)
        ends = await self._consumer.end_offsets(tps)
        while any([await self._consumer.position(tp) < ends[tp] for tp in tps]):
            await self._take()
        await self._mend()
        log.info("trainer ready", store=self.store_url, open_jobs=len(self.registry.open_jobs()))

    async def _mend(self) -> None:
        """Say again what a crash may have left unsaid of models that are published."""
        for name, manifest in self.registry.champions.items():
            event = ModelPublished(name=name, manifest=manifest)
            await self._say(topics.MODELS_CURRENT.name, event)

    async def _take(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=200)).values():
            for record in records:
                with contextlib.suppress(NotAnAnnouncement):
                    self.registry.note(unwrap(open_record(record.key, record.value, record.headers)))
        self._changed.set()

    async def run(self) -> None:
        """Admit and run jobs until cancelled."""
        follower = asyncio.create_task(self._follow())
        try:
            while True:
                self._changed.clear()
                for job in self.registry.open_jobs():
                    if job.job_id not in self._running:
                        await self._admit(job)
                if follower.done():
                    follower.result()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _LOOK_AGAIN_S)
        finally:
            follower.cancel()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(follower, *self._running.values(), return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await self._take()

    async def _admit(self, job: JobRequested) -> None:
        promised: dict[str, int] = {}
        for device, size_bytes in self._devices.values():
            promised[device] = promised.get(device, 0) + size_bytes
        admission = admit(
            job.experiment.resources,
            self._gpus(),
            promised=promised,
            on_cpu=sum(device == CPU for device, _ in self._devices.values()),
            cpu_slots=self._options.cpu_slots,
            setting=self._options.device,
        )
        if admission.verdict == "never":
            await self._fail(job.job_id, 0, f"can never run here: {admission.reason}", "")
        elif admission.verdict == "run":
            self._devices[job.job_id] = (admission.device, job.experiment.resources.gpu_memory_bytes)
            self._running[job.job_id] = asyncio.create_task(self._run_job(job, admission))

    async def _run_job(self, job: JobRequested, admission: Admission) -> None:
        try:
            await self._attempt(job, admission)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("job failed in the trainer", job=job.job_id)
            await self._fail(job.job_id, 0, f"the trainer failed on it: {error}", "")
        finally:
            self._running.pop(job.job_id, None)
            self._devices.pop(job.job_id, None)
            self._changed.set()

    async def _attempt(self, job: JobRequested, admission: Admission) -> None:
        attempt = self.registry.attempts.get(job.job_id, 0) + 1
        process = await self._standby.take()
        champion = self.registry.champions.get(job.experiment.model)
        assignment = Assignment(
            job=job,
            attempt=attempt,
            device=admission.device,
            artifacts=str(self._artifacts),
            champion=champion,
            threads=self._options.threads_per_job,
        )
        await self._say(
            topics.JOBS.name,
            JobStarted(
                job_id=job.job_id, attempt=attempt, device=admission.device, started_ms=self._now_ms()
            ),
        )
        limit_s = job.experiment.resources.time_limit_s
        outcome: Outcome | None = None
        skipped = failed = None
        said_s = 0.0
        try:
            async with asyncio.timeout(limit_s):
                async for report in process.run(assignment):
                    outcome, skipped, failed = report.outcome, report.skipped, report.failed
                    due = time.monotonic() - said_s >= self._options.progress_interval_ms / 1000
                    if report.of and due:
                        said_s = time.monotonic()
                        await self._progress(job.job_id, attempt, report.step, report.of, report.metrics)
        except TimeoutError:
            failed = f"ran longer than its limit of {limit_s:g} s and was killed"
        finally:
            ending = asyncio.create_task(process.end())
            if outcome is None:
                code = await ending
                if failed is None and skipped is None:
                    failed = f"its process died ({_ending(code)})"
        if outcome is not None:
            await self._conclude(job, attempt, outcome)
            await ending
        elif skipped is not None:
            await self._say(
                topics.JOBS.name,
                JobSkipped(job_id=job.job_id, reason=skipped, finished_ms=self._now_ms()),
            )
        else:
            await self._fail(job.job_id, attempt, failed or "no result", process.log_tail())
        # Only now: warming up the next process would slow down the job that just ended.
        await self._standby.fill()

    async def _progress(
        self, job_id: str, attempt: int, step: int, of: int, metrics: dict[str, float]
    ) -> None:
        event = JobProgress(job_id=job_id, attempt=attempt, step=step, of=of, metrics=metrics)
        await self._say(topics.JOBS.name, event)

    async def _conclude(self, job: JobRequested, attempt: int, outcome: Outcome) -> None:
        """Say that it trained, then publish or refuse."""
        await self._say(
            topics.JOBS.name,
            JobSucceeded(
                job_id=job.job_id,
                attempt=attempt,
                rows=outcome.rows,
                train_s=outcome.train_s,
                finished_ms=outcome.trained_ms,
                artifact_sha256=outcome.sha256,
            ),
        )
        name = job.experiment.model
        async with self._model_lock:
            champion = self.registry.champions.get(name)
            verdict = judge(
                job.experiment.gate,
                champion=outcome.champion,
                challenger=outcome.challenger,
                has_champion=champion is not None,
            )
            if verdict.publish:
                manifest = self._manifest(name, champion, outcome)
                published = ModelPublished(name=name, manifest=manifest)
                await self._say(topics.MODELS.name, published)
                await self._say(topics.MODELS_CURRENT.name, published)
            else:
                await self._say(
                    topics.MODELS.name,
                    ModelRefused(
                        name=name,
                        job_id=job.job_id,
                        reason=verdict.reason,
                        champion=outcome.champion,
                        challenger=outcome.challenger,
                        refused_ms=self._now_ms(),
                    ),
                )
        log.info("job done", job=job.job_id, published=verdict.publish, reason=verdict.reason)

    def _manifest(self, name: str, champion: Manifest | None, outcome: Outcome) -> Manifest:
        return Manifest(
            name=name,
            version=champion.version + 1 if champion else 1,
            artifact=Artifact(
                uri=f"{self.store_url}{outcome.sha256}{ENDING}",
                size_bytes=outcome.size_bytes,
                sha256=outcome.sha256,
            ),
            architecture=outcome.architecture,
            config=outcome.config,
            inputs=outcome.inputs,
            outputs=[Field(name="probability", type="float")],
            example=outcome.example,
            champion=outcome.champion,
            challenger=outcome.challenger,
            lineage=outcome.lineage,
            published_ms=self._now_ms(),
        )

    async def _fail(self, job_id: str, attempt: int, reason: str, tail: str) -> None:
        log.warning("job failed", job=job_id, reason=reason)
        event = JobFailed(
            job_id=job_id, attempt=attempt, reason=reason, log_tail=tail, finished_ms=self._now_ms()
        )
        await self._say(topics.JOBS.name, event)

    async def _say(self, topic: str, event: Announcement) -> None:
        """Announce, and note it here too: the next decision need not wait for the topic's echo."""
        key, value, headers = wrap(event, source="/tidemill/trainer", time_ms=self._now_ms()).record()
        await self._producer.send_and_wait(topic, key=key, value=value, headers=headers)
        self.registry.note(event)

    async def stop(self) -> None:
        """End what stands by and let go of the cluster."""
        await self._standby.end()
        await self._consumer.stop()
        await self._producer.stop()
        await self._server.stop()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
