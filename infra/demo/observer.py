"""The demo's eyes: follows every announcement, waits for what the player waits for, counts at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from schemas import topics
from schemas.contract import Announcement
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.job import (
    JobAnswered,
    JobFailed,
    JobMerged,
    JobRequested,
    JobSkipped,
    JobStarted,
    JobSucceeded,
)
from schemas.model import AdoptionRefused, ModelAdopted, ModelPublished, ModelRefused
from schemas.prediction import Predictions
from schemas.window import WindowAmended, WindowClosed

FOLLOWED = (
    topics.WINDOWS,
    topics.DECISIONS,
    topics.JOBS,
    topics.MODELS,
    topics.PREDICTIONS,
    topics.DEAD_LETTERS,
)

T = TypeVar("T")


@dataclass(slots=True)
class Seen:
    """Every announcement once, by id; times are when the record was written, epoch ms."""

    windows: dict[int, WindowClosed] = field(default_factory=dict)
    window_ms: dict[int, int] = field(default_factory=dict)
    amended: int = 0
    decisions: dict[int, Decision] = field(default_factory=dict)
    requested: dict[str, JobRequested] = field(default_factory=dict)
    requested_ms: dict[str, int] = field(default_factory=dict)
    started: dict[str, JobStarted] = field(default_factory=dict)
    succeeded: dict[str, JobSucceeded] = field(default_factory=dict)
    failed: dict[str, JobFailed] = field(default_factory=dict)
    skipped: dict[str, JobSkipped] = field(default_factory=dict)
    spared: dict[str, JobAnswered | JobMerged] = field(default_factory=dict)
    published: dict[tuple[str, int], ModelPublished] = field(default_factory=dict)
    refused: dict[str, ModelRefused] = field(default_factory=dict)
    adopted: dict[tuple[str, int], ModelAdopted] = field(default_factory=dict)
    adoption_refused: list[AdoptionRefused] = field(default_factory=list)
    dead_letters: Counter[str] = field(default_factory=Counter)
    predictions: list[Predictions] = field(default_factory=list)
    repeats: int = 0

    def finished(self, job_id: str) -> bool:
        """Whether a job needs no more waiting for: its model is adopted, or there will be none."""
        if any(job_id in ends for ends in (self.failed, self.skipped, self.spared, self.refused)):
            return True
        for key, event in self.published.items():
            if event.manifest.lineage.job_id == job_id:
                return key in self.adopted or any((r.name, r.version) == key for r in self.adoption_refused)
        return False


class Observer:
    """Follows the announcements of one pipeline from their beginning."""

    def __init__(self, connection: Connection) -> None:
        self.seen = Seen()
        self._connection = connection
        self._ids: set[str] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read all that is there, then go on following in the background."""
        self._consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(), enable_auto_commit=False, fetch_max_wait_ms=20
        )
        await self._consumer.start()
        tps = [TopicPartition(t.name, n) for t in FOLLOWED for n in range(t.partitions)]
        self._consumer.assign(tps)
        await self._consumer.seek_to_beginning(*tps)
        ends = await self._consumer.end_offsets(tps)
        while any([await self._consumer.position(tp) < ends[tp] for tp in tps]):
            await self._take()
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await self._take()

    async def _take(self) -> None:
        batches = await self._consumer.getmany(timeout_ms=200)
        for records in batches.values():
            for record in records:
                try:
                    envelope = open_record(record.key, record.value, record.headers)
                    if envelope.id in self._ids:
                        self.seen.repeats += 1
                        continue
                    self._ids.add(envelope.id)
                    self._note(unwrap(envelope), record.timestamp)
                except NotAnAnnouncement:
                    continue
        if batches:
            self._changed.set()

    def _note(self, event: Announcement, written_ms: int) -> None:  # noqa: PLR0912  (a case an event type)
        seen = self.seen
        match event:
            case WindowClosed():
                seen.windows[event.window.start_ms] = event
                seen.window_ms[event.window.start_ms] = written_ms
            case WindowAmended():
                seen.amended += 1
            case Decision():
                seen.decisions[event.window.start_ms] = event
            case JobRequested():
                seen.requested[event.job_id] = event
                seen.requested_ms[event.job_id] = written_ms
            case JobStarted():
                seen.started.setdefault(event.job_id, event)
            case JobSucceeded():
                seen.succeeded[event.job_id] = event
            case JobFailed():
                seen.failed[event.job_id] = event
            case JobSkipped():
                seen.skipped[event.job_id] = event
            case JobAnswered() | JobMerged():
                seen.spared[event.job_id] = event
            case ModelPublished():
                seen.published[event.name, event.manifest.version] = event
            case ModelRefused():
                seen.refused[event.job_id] = event
            case ModelAdopted():
                seen.adopted.setdefault((event.name, event.version), event)
            case AdoptionRefused():
                seen.adoption_refused.append(event)
            case DeadLetter():
                seen.dead_letters[event.reason] += 1
            case Predictions():
                seen.predictions.append(event)
            case _:
                pass

    async def wait_for(self, ready: Callable[[Seen], T | None], *, meanwhile: Callable[[], object]) -> T:
        """Wait until `ready` gives something; `meanwhile` runs at least twice a second, and may raise."""
        while True:
            self._changed.clear()
            if self._task is not None and self._task.done():
                self._task.result()
            found = ready(self.seen)
            if found is not None:
                return found
            meanwhile()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._changed.wait()

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()
