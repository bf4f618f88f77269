"""One worker of a pipeline: frames in, commits and announcements out. Thin around the pure steps.

The ledger decides what a frame is: a repeat (dropped), the next one (taken), or one too far ahead because
something between got lost on the way (read again). So whatever Kafka's group, Faust's buffers or a
crash do to frames, a row is committed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.dataset import Dataset
from infra.kafka.connection import Connection
from infra.settings_model import Worker as Options
from schemas import topics
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration
from streams import watermark
from streams.announce import Announced, Announcer, Commit
from streams.ingest import Ingest, Prepared, dataset_schema
from streams.ledger import DatasetNotWritable, Fenced, Ledger, Partition
from streams.log import read_commit, recall
from streams.outbox import Outbox, read_to_end, standing
from streams.pipeline import Pipeline
from streams.transport.frame import Frame

log = structlog.get_logger(__name__)

_MAX_UNANNOUNCED = 8
_RETRY_S = (0.1, 0.3, 1.0, 3.0, 10.0)
_SEEK_AGAIN_S = 2.0


class PositionLost(InvalidConfiguration):
    """The records at the ledger's position are not on the cluster: expired, or the topic was made anew."""


class Consumer(Protocol):
    """What the worker asks of Faust's consumer."""

    async def perform_seek(self) -> None: ...

    async def seek_back(self, positions: Mapping[Any, int]) -> None: ...

    def mark_durable(self, tp: Any, next_offset: int) -> None: ...


@dataclass(slots=True)
class _Arrived:
    frame: Frame
    done: Callable[[], object]


@dataclass(slots=True)
class Totals:
    """Since the start of this process."""

    events: int = 0
    rows: int = 0
    dead_letters: int = 0
    commits: int = 0
    announced: int = 0
    prepare_s: float = 0.0
    commit_s: float = 0.0
    announce_s: float = 0.0
    rewinds: int = 0
    fenced: int = 0


@dataclass(slots=True)
class _Queue:
    """Frames that wait for a commit, bounded by rows and bytes."""

    max_rows: int
    max_bytes: int
    frames: deque[_Arrived] = field(default_factory=deque)
    rows: int = 0
    size_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, arrived: _Arrived) -> None:
        while self.frames and (self.rows >= 2 * self.max_rows or self.size_bytes >= 2 * self.max_bytes):
            self.room.clear()
            await self.room.wait()
        self.frames.append(arrived)
        self.rows += len(arrived.frame)
        self.size_bytes += arrived.frame.size_bytes
        self.changed.set()

    def take(self) -> list[_Arrived]:
        taken: list[_Arrived] = []
        rows = size_bytes = 0
        while self.frames and (not taken or (rows < self.max_rows and size_bytes < self.max_bytes)):
            arrived = self.frames.popleft()
            taken.append(arrived)
            rows += len(arrived.frame)
            size_bytes += arrived.frame.size_bytes
        self.rows -= rows
        self.size_bytes -= size_bytes
        self.room.set()
        if not self.frames:
            self.changed.clear()
        return taken


class StreamWorker:
    """Runs one pipeline's ingest in this process. Lives on Faust's event loop."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        dataset_dir: Path,
        connection: Connection,
        options: Options,
        configuration_sha256: str = "",
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.pipeline = pipeline
        self.connection = connection
        self.options = options
        self.uri = str(dataset_dir / pipeline.name)
        self.totals = Totals()
        self.consumer: Consumer | None = None
        self._configuration = configuration_sha256
        self._now_ms = now_ms
        self._ledger = Ledger(self.uri, dataset_schema(pipeline))
        self._ledger_lock = asyncio.Lock()
        self._ingest = Ingest(pipeline)
        self._queue = _Queue(options.batch_rows, options.batch_bytes)
        self._expected: dict[Partition, int] = {}
        self._sought_at: dict[Partition, float] = {}
        self._heard_at: dict[Partition, float] = {}
        self._idle: set[Partition] = set()
        self._marks: dict[Partition, int | None] = {}
        self._fresh: dict[int, Commit] = {}
        self._leads = asyncio.Event()
        self._committed = asyncio.Event()
        self._announced = asyncio.Event()
        self._announced_version = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._known_letters: set[str] = set()

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, crash: Callable[[BaseException], Any]) -> None:
        """Connect the producer and begin; `crash` is told when a part of the worker dies."""
        self._producer = AIOKafkaProducer(
            **self.connection.client_arguments(),
            enable_idempotence=True,
            acks="all",
            linger_ms=2,
            max_request_size=16_777_216,
            max_batch_size=262_144,
        )
        await self._producer.start()
        self._outbox = Outbox(self._producer)
        for topic in self.pipeline.sources():
            numbers = await self._producer.partitions_for(topic)
            self._marks |= {(topic, n): None for n in numbers}
        for part in (self._ingest_forever, self._announce_forever, self._watch_idleness):
            self._tasks.append(asyncio.create_task(self._guarded(part, crash), name=part.__name__))

    async def _guarded(self, part: Callable[[], Any], crash: Callable[[BaseException], Any]) -> None:
        try:
            await part()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log.exception("the worker stops", part=part.__name__, error=str(error))
            result = crash(error)
            if asyncio.iscoroutine(result):
                await result

    async def stop(self) -> None:
        """Finish what is in flight and let go. Whatever is not committed is read again by the next worker."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._producer.stop()

    # ── positions ───────────────────────────────────────────────────────────────────────────────────

    async def positions(self, bounds: Mapping[Any, tuple[int, int]]) -> dict[Any, int]:
        """Where reading of newly assigned partitions starts: where the ledger ends.

        Args:
            bounds: first and end offset that the cluster has, by partition.

        Raises:
            PositionLost: the ledger's position is not within them. Nothing is reset silently.
        """
        async with self._ledger_lock:
            await asyncio.to_thread(self._ledger.refresh)
            starts: dict[Any, int] = {}
            self._expected.clear()
            for tp, (first, end) in bounds.items():
                partition = (tp.topic, tp.partition)
                at = self._ledger.position(partition)
                _check_bounds(partition, at, first, end)
                starts[tp] = self._expected[partition] = first if at is None else at
                self._heard_at[partition] = time.monotonic()
            for partition in self._marks:
                self._marks[partition] = self._ledger.watermark(partition)
            self._ingest.watermarks = {p: w for p, w in self._marks.items() if w is not None}
            self._settle_watermark()
            await asyncio.to_thread(self._recall_seen)
        await self._recall_letters(starts)
        if (self.pipeline.source.topic, 0) in self._expected:
            self._leads.set()
        else:
            self._leads.clear()
        return starts

    def _recall_seen(self) -> None:
        """The keys of each dedupe's horizon, from the dataset's newest rows."""
        for topic, seen in self._ingest.seen.items():
            marks = [w for (t, _), w in self._marks.items() if t == topic and w is not None]
            seen.forget_all()
            if marks:
                rows = Dataset(self.uri).rows(
                    topic,
                    version=self._ledger.version(),
                    start_ms=min(marks) - seen.within_ms,
                    end_ms=2**62,
                    columns=[seen.key],
                )
                seen.remember(rows)

    async def _recall_letters(self, starts: Mapping[Any, int]) -> None:
        """Dead letters that went out before a crash kept their commit from being made."""
        self._known_letters = set()
        consumer = AIOKafkaConsumer(**self.connection.client_arguments(), enable_auto_commit=False)
        await consumer.start()
        try:
            tp = TopicPartition(topics.DEAD_LETTERS.name, 0)
            wanted = {(t.topic, t.partition): offset for t, offset in starts.items()}
            async for record in read_to_end(consumer, tp, tail=self.options.batch_rows):
                letter_id = dict(record.headers).get("ce_id", b"").decode()
                name, _, rest = letter_id.partition("/")
                topic, _, numbers = rest.rpartition("/")
                topic, _, offset = topic.rpartition("/")
                topic, _, number = topic.rpartition("/")
                if name != self.pipeline.name or not (number.isdigit() and numbers.isdigit()):
                    continue
                start = wanted.get((topic, int(number)))
                if start is not None and int(offset) >= start:
                    self._known_letters.add(letter_id)
        finally:
            await consumer.stop()

    # ── ingest ──────────────────────────────────────────────────────────────────────────────────────

    async def accept(self, tp: Any, frame: Frame, done: Callable[[], object]) -> None:
        """Take a frame in; `done` is called once its rows are in the dataset, or it is known to be a repeat.

        Waits while too much is queued: that is the backpressure on the fetch.
        """
        partition = (frame.topic, frame.partition)
        self._heard_at[partition] = time.monotonic()
        expected = self._expected.get(partition)
        if expected is None or frame.next <= expected:
            done()
            return
        if frame.first > expected:
            done()
            await self._read_again(tp, partition, expected, frame)
            return
        self._expected[partition] = frame.next
        await self._queue.put(_Arrived(frame.since(expected), done))

    async def _read_again(self, tp: Any, partition: Partition, expected: int, frame: Frame) -> None:
        """A frame came too early: what lies before it was lost between fetch and agent."""
        now = time.monotonic()
        if now - self._sought_at.get(partition, -_SEEK_AGAIN_S) < _SEEK_AGAIN_S:
            return  # frames fetched before the seek may still come
        self._sought_at[partition] = now
        self.totals.rewinds += 1
        log.info("reading again", topic=partition[0], partition=partition[1], at=expected, came=frame.first)
        assert self.consumer is not None
        await self.consumer.seek_back({tp: expected})

    async def _ingest_forever(self) -> None:
        while True:
            await self._queue.changed.wait()
            if self._queue.rows < self.options.batch_rows:
                await asyncio.sleep(self.options.coalesce_ms / 1000)
            while self._leads.is_set() and len(self._fresh) >= _MAX_UNANNOUNCED:
                self._announced.clear()
                await self._announced.wait()
            arrived = self._queue.take()
            try:
                await self._one_commit(arrived)
            except Fenced as error:
                self.totals.fenced += 1
                log.warning("fenced", error=str(error))
                await self._start_over()
            finally:
                for each in arrived:
                    each.done()

    async def _start_over(self) -> None:
        """Drop all that was read and ask the ledger again."""
        while self._queue.frames:
            for each in self._queue.take():
                each.done()
        assert self.consumer is not None
        await self.consumer.perform_seek()

    async def _one_commit(self, arrived: list[_Arrived]) -> None:
        began = time.perf_counter()
        async with self._ledger_lock:
            frames = self._next_in_line(each.frame for each in arrived)
            if not frames:
                return
            prepared = await asyncio.to_thread(self._ingest.prepare, frames, now_ms=self._now_ms())
            self.totals.prepare_s += time.perf_counter() - began
            await self._publish_letters(prepared)
            idle = sorted(self._idle - prepared.advances.keys())
            version = await self._commit(prepared, prepared.metadata(idle))
            self._ingest.settle(prepared)
            self._idle -= prepared.advances.keys()
            self._marks |= prepared.watermarks
            self._settle_watermark()
        for (topic, number), advance in prepared.advances.items():
            assert self.consumer is not None
            self.consumer.mark_durable(TopicPartition(topic, number), advance.next)
        self.totals.events += sum(c.events for c in prepared.counts.values())
        self.totals.rows += prepared.rows.height
        self.totals.dead_letters += len(prepared.dead_letters)
        self._hand_to_announcer(version, prepared)

    def _next_in_line(self, frames: Iterable[Frame]) -> list[Frame]:
        """The frames, held against the ledger once more: it may have moved since they were queued."""
        line: dict[Partition, int | None] = {}
        taken = []
        for frame in frames:
            partition = (frame.topic, frame.partition)
            at = line[partition] if partition in line else self._ledger.position(partition)
            if at is not None and frame.next <= at:
                continue
            if at is not None and frame.first > at:
                raise Fenced(partition, frame.first, at)
            taken.append(frame if at is None else frame.since(at))
            line[partition] = frame.next
        return taken

    async def _publish_letters(self, prepared: Prepared) -> None:
        letters = [
            Announced(
                topics.DEAD_LETTERS.name,
                wrap(letter, source=f"/tidemill/{self.pipeline.name}", time_ms=self._now_ms()),
            )
            for letter in prepared.dead_letters
        ]
        if letters:
            await self._outbox.publish(letters, but_not=self._known_letters)
            # The commit may be tried again after it failed: the letters are out.
            self._known_letters |= {letter.envelope.id for letter in letters}

    async def _commit(self, prepared: Prepared, metadata: Mapping[str, Any]) -> int:
        """Commit, and while the dataset cannot be written, wait and try again: nothing is dropped."""
        attempt = 0
        began = time.perf_counter()
        while True:
            try:
                version = await asyncio.to_thread(
                    self._ledger.commit,
                    prepared.rows,
                    advances=prepared.advances,
                    watermarks=prepared.watermarks,
                    metadata=metadata,
                )
            except DatasetNotWritable as error:
                pause_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
                log.error("cannot commit, will try again", error=str(error), in_s=pause_s)
                await asyncio.sleep(pause_s)
                attempt += 1
            else:
                self.totals.commits += 1
                self.totals.commit_s += time.perf_counter() - began
                return version

    def _settle_watermark(self) -> None:
        foreign = [p for p in self._marks if p not in self._expected]
        for partition in foreign:
            self._marks[partition] = self._ledger.watermark(partition)
        self._ingest.pipeline_watermark_ms = watermark.of_pipeline(
            self._ingest.pipeline_watermark_ms, self._marks, idle=self._idle
        )

    def _hand_to_announcer(self, version: int, prepared: Prepared | None, metadata: Any = None) -> None:
        if self._leads.is_set() and version > self._announced_version:
            said = prepared.metadata(sorted(self._idle)) if prepared else metadata
            by_source = prepared.by_source if prepared else {}
            self._fresh[version] = Commit(version, self._now_ms(), said, by_source)
        self._committed.set()

    # ── idleness ────────────────────────────────────────────────────────────────────────────────────

    async def _watch_idleness(self) -> None:
        """A partition that has been silent for long holds no window open: said by a commit without rows."""
        timeout_s = self.options.idle_timeout_ms / 1000
        while True:
            await asyncio.sleep(min(timeout_s / 4, 1.0))
            now = time.monotonic()
            silent = {p for p in self._expected if now - self._heard_at.get(p, now) > timeout_s}
            fresh = silent - self._idle
            if not fresh or self._queue.frames:
                continue
            self._idle |= fresh
            before_ms = self._ingest.pipeline_watermark_ms
            async with self._ledger_lock:
                self._settle_watermark()
                if self._ingest.pipeline_watermark_ms == before_ms:
                    continue
                metadata = {"idle": [f"{t}/{n}" for t, n in sorted(self._idle)]}
                empty = Prepared(self._ingest.empty(), {}, [], {}, {}, {}, {})
                version = await self._commit(empty, metadata)
            self._hand_to_announcer(version, None, metadata)

    # ── announcements ───────────────────────────────────────────────────────────────────────────────

    async def _announce_forever(self) -> None:
        """The worker that owns the first partition of the main source speaks for the pipeline."""
        while True:
            await self._leads.wait()
            announcer, known = await self._take_up()
            while self._leads.is_set():
                newest = self._ledger.version()
                if announcer.progress.version >= newest:
                    self._committed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._committed.wait(), 0.5)
                    if len(self._expected) < len(self._marks):
                        async with self._ledger_lock:
                            await asyncio.to_thread(self._ledger.refresh)
                    continue
                await self._announce(announcer, known)

    async def _take_up(self) -> tuple[Announcer, set[str]]:
        """Where the announcements stand, from the topics and the log."""
        stands = await standing(self.connection, self.pipeline.name)
        if stands.version > self._ledger.version():
            raise PositionLost(
                f"pipeline {self.pipeline.name} has announced dataset version {stands.version}, but the "
                f"dataset at {self.uri} ends at {self._ledger.version()}: it is not the one that was "
                "announced; restore it, or run the pipeline under a new name"
            )
        progress = await asyncio.to_thread(
            recall,
            self.pipeline,
            self.uri,
            through_version=stands.version - 1 if stands.version >= 0 else -1,
            partitions=self._marks,
        )
        progress.history = stands.history_before(stands.version)
        self._announced_version = progress.version
        log.info("announcing", pipeline=self.pipeline.name, after_version=progress.version)
        announcer = Announcer(self.pipeline, self.uri, progress, configuration_sha256=self._configuration)
        return announcer, stands.ids

    async def _announce(self, announcer: Announcer, known: set[str]) -> None:
        version = announcer.progress.version + 1
        began = time.perf_counter()
        commit = self._fresh.pop(version, None)
        if commit is None:
            commit = await asyncio.to_thread(read_commit, self.pipeline, self.uri, version)
        announced = await asyncio.to_thread(announcer.apply, commit)
        self.totals.announced += await self._outbox.publish(announced, but_not=known)
        known.clear()
        self._announced_version = version
        for stale in [v for v in self._fresh if v <= version]:
            del self._fresh[stale]
        self._announced.set()
        self.totals.announce_s += time.perf_counter() - began


def _check_bounds(partition: Partition, at: int | None, first: int, end: int) -> None:
    name = f"{partition[0]}/{partition[1]}"
    if at is None:
        return
    if at < first:
        raise PositionLost(
            f"{name}: the ledger stands at offset {at}, but the topic begins at {first}: {first - at} "
            "records expired unread; restore them, or give the pipeline a new name to begin with the rest"
        )
    if at > end:
        raise PositionLost(
            f"{name}: the ledger stands at offset {at}, but the topic ends at {end}: it was deleted and made "
            "anew, or lost its newest records; give the pipeline a new name to read it from its beginning"
        )
