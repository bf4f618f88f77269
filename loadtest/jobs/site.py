"""A cluster, a dataset and a trainer of the measurement's own, and all that is said of its jobs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from deltalake import write_deltalake

from infra.dataset import META
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.submit import SOURCE
from infra.supervisor import Supervised, tidemill
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import open_record, unwrap, wrap
from schemas.features import FeatureSpec, Label
from schemas.job import (
    DatasetRange,
    Experiment,
    Gate,
    JobFailed,
    JobProgress,
    JobRequested,
    JobSkipped,
    JobStarted,
    Resources,
)
from schemas.model import ModelPublished, ModelRefused

_ROWS = 2_000
_STEP_MS = 60_000
_FOLLOWED = (topics.JOBS, topics.MODELS, topics.MODELS_CURRENT)
SPEC = FeatureSpec(
    source="asked",
    key="id",
    columns=("x",),
    features=(),
    label=Label(source="answered", column="late", key="id", within_ms=86_400_000),
)


def write_dataset(folder: Path) -> None:
    """Events with one number each, and an hour later what it told, with noise."""
    chance = np.random.default_rng(7)
    x = chance.normal(size=_ROWS)
    late = (x + chance.normal(size=_ROWS) * 0.7 > 0).astype(float)
    times, ids = np.arange(_ROWS) * _STEP_MS, [f"e{i}" for i in range(_ROWS)]
    frames = [
        _frame("asked", times, {"id": ids, "x": x}),
        _frame("answered", times + 3_600_000, {"id": ids, "late": late}),
    ]
    write_deltalake(str(folder), pl.concat(frames, how="diagonal"), mode="append")


def _frame(source: str, times: np.ndarray, columns: dict[str, Any]) -> pl.DataFrame:
    meta = {
        "_source": [source] * len(times),
        "_partition": 0,
        "_offset": np.arange(len(times)),
        "_row": 0,
        "_time": times,
        "_tags": [[] for _ in times],
    }
    return pl.DataFrame({**meta, **columns}, strict=False).cast(META)  # type: ignore[arg-type]


@dataclass
class Site:
    """What was said, and how to ask for more."""

    connection: Connection
    producer: AIOKafkaProducer
    dataset: Path
    artifacts: Path
    trainer: Supervised
    cpus: int
    events: list[tuple[str, str, Announcement]] = field(default_factory=list)
    """(topic, event id, announcement), repeats included."""
    seen_ms: dict[str, float] = field(default_factory=dict)
    """When a job's request was read here first."""
    _fresh: asyncio.Event = field(default_factory=asyncio.Event)

    def job(
        self, job_id: str, model: str, *, seed: int, steps: int, pause_s: float, hidden: int = 8
    ) -> JobRequested:
        """A small job on the CPU."""
        cut_ms = _ROWS * _STEP_MS * 3 // 4
        span = {"uri": str(self.dataset), "version": 0}
        experiment = Experiment(
            pipeline="bench",
            model=model,
            code="loadtest.jobs.model_code:train",
            training=DatasetRange(**span, start_ms=0, end_ms=cut_ms),
            evaluation=DatasetRange(**span, start_ms=cut_ms, end_ms=_ROWS * _STEP_MS),
            spec=SPEC,
            params={"steps": steps, "pause_s": pause_s, "hidden": hidden},
            seed=seed,
            gate=Gate(tolerance=1.0),
            resources=Resources(device="cpu", memory_bytes=2**28, time_limit_s=120),
        )
        now_ms = int(time.time() * 1000)
        return JobRequested(job_id=job_id, experiment=experiment, decision_id=None, requested_ms=now_ms)

    async def ask(self, *jobs: JobRequested) -> None:
        """Request jobs, as a worker does, whose producer is up; on return the cluster holds the requests."""
        for job in jobs:
            key, value, headers = wrap(job, source=SOURCE, time_ms=job.requested_ms).record()
            await self.producer.send_and_wait(topics.JOBS.name, key=key, value=value, headers=headers)

    async def until(self, ready: Callable[[], bool], *, limit_s: float) -> None:
        """Wait until `ready`, asked again with each piece of news."""
        async with asyncio.timeout(limit_s):
            while not ready():
                self._fresh.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await self._fresh.wait()

    async def follow(self, consumer: AIOKafkaConsumer) -> None:
        """Take in all that is said, until cancelled."""
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                for record in records:
                    envelope = open_record(record.key, record.value, record.headers)
                    event = unwrap(envelope)
                    self.events.append((tp.topic, envelope.id, event))
                    if isinstance(event, JobRequested):
                        self.seen_ms.setdefault(event.job_id, time.time() * 1000)
                self._fresh.set()

    def asked(self) -> dict[str, JobRequested]:
        """What was asked for, by job."""
        return {e.job_id: e for _, _, e in self.events if isinstance(e, JobRequested)}

    def started(self) -> dict[str, JobStarted]:
        """The first start of each job."""
        found: dict[str, JobStarted] = {}
        for _, _, event in self.events:
            if isinstance(event, JobStarted):
                found.setdefault(event.job_id, event)
        return found

    def attempts(self) -> Counter[str]:
        """How often each job was begun."""
        return Counter(
            j for j, _ in {(e.job_id, e.attempt) for _, _, e in self.events if isinstance(e, JobStarted)}
        )

    def resumed(self) -> int:
        """How many attempts went on from a state that an earlier one had kept."""
        return len(
            {(e.job_id, e.attempt) for _, _, e in self.events if isinstance(e, JobStarted) and e.resumed}
        )

    def finishing(self) -> set[tuple[str, int]]:
        """Attempts whose last step is done."""
        said = (e for _, _, e in self.events if isinstance(e, JobProgress))
        return {(e.job_id, e.attempt) for e in said if e.step == e.of}

    def ends(self) -> Counter[str]:
        """How many ends each job has: different events, not repeats of one."""
        seen: set[tuple[str, str]] = set()
        for topic, event_id, event in self.events:
            match event:
                case JobFailed(job_id=job_id) | JobSkipped(job_id=job_id) | ModelRefused(job_id=job_id):
                    seen.add((job_id, event_id))
                case ModelPublished(manifest=manifest) if topic == topics.MODELS.name:
                    seen.add((manifest.lineage.job_id, event_id))
                case _:
                    pass
        return Counter(job_id for job_id, _ in seen)

    def weights(self) -> dict[str, str]:
        """SHA-256 of what each published job came to."""
        return {
            event.manifest.lineage.job_id: event.manifest.artifact.sha256
            for _, _, event in self.events
            if isinstance(event, ModelPublished)
        }

    def repeated_model_events(self) -> int:
        """Model events that stand on one topic more than once."""
        said = Counter((t, i) for t, i, e in self.events if isinstance(e, ModelPublished | ModelRefused))
        return sum(count - 1 for count in said.values())


@contextlib.asynccontextmanager
async def site(folder: Path, *, cache_dir: Path, slots: int) -> AsyncIterator[Site]:
    """A site in a folder, its trainer warm; all of it ends with the block."""
    dataset = folder / "dataset"
    write_dataset(dataset)
    with EmbeddedBroker(folder / "kafka", cache_dir=cache_dir) as broker:
        connection = Connection(bootstrap_servers=broker.bootstrap_servers)
        await ensure(topics.TOPICS, connection)
        environment = {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(folder / "home"),
            "TIDEMILL_TRAINER__CPU_SLOTS": str(slots),
            "TIDEMILL_TRAINER__ATTEMPTS": "1000",
            "TIDEMILL_TRAINER__RETRY_AFTER_S": "0.001",
            "TIDEMILL_TRAINER__DEVICE": "cpu",
        }
        trainer = Supervised(
            "trainer", tidemill("trainer"), folder / "trainer.log", environment, most_restarts=10_000
        )
        consumer = AIOKafkaConsumer(
            **connection.client_arguments(), enable_auto_commit=False, fetch_max_wait_ms=20
        )
        producer = AIOKafkaProducer(**connection.client_arguments(), enable_idempotence=True, acks="all")
        await consumer.start()
        await producer.start()
        tps = [TopicPartition(t.name, 0) for t in _FOLLOWED]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        here = Site(connection, producer, dataset, folder / "home/artifacts", trainer, slots)
        following = asyncio.create_task(here.follow(consumer))
        trainer.start()
        try:
            first = here.job("warm", "warm", seed=0, steps=1, pause_s=0)
            await here.ask(first)
            await here.until(lambda: here.ends()["warm"] > 0, limit_s=180)
            yield here
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await consumer.stop()
            await producer.stop()
            await asyncio.to_thread(trainer.stop)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest."""
    median, p99 = np.quantile(values, [0.5, 0.99])
    return {"median": float(median), "p99": float(p99), "max": float(max(values))}
