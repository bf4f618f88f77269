"""The ingesting half of a worker: frames in, commits out. Thin around the pure steps.

While one batch is committed the next is finished as if that commit were made already, and those behind it
are sifted. The ledger has the last word on where a partition is, so a row is committed once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import operator
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from faust.types import TP

from infra.kafka.connection import Connection
from infra.kafka.reach import patiently
from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.observe.server import Readiness
from infra.observe.traces import Traces
from infra.settings_model import Metrics, Upkeep
from infra.settings_model import Worker as Options
from infra.switched import Switched, SwitchedAway
from schemas import topics
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration, Retryable
from streams import compiled
from streams.announce.fold import Announced, Commit
from streams.announce.herald import Herald
from streams.announce.outbox import Outbox
from streams.by_model import Following
from streams.decode.avro import Writers
from streams.ingest import Ingest, Prepared, SiftedBatch, Standing, dataset_schema
from streams.intake import Consumer, Intake
from streams.ledger.commit import Advance, DatasetNotWritable, Fenced, Ledger, Overtaken, Partition
from streams.ledger.keeper import Keeper
from streams.ledger.positions import PositionLost, check_position
from streams.letters import Letters
from streams.live.assessor import Assessor, Superseded
from streams.live.tally import JUDGED
from streams.observed import WorkerMetrics
from streams.partitions import Partitions
from streams.pipeline import Pipeline
from streams.queue import Arrived, FrameQueue
from streams.transport.frame import Frame
from streams.turn import account_of, keys_of, stand_by, watermark_after

log = structlog.get_logger(__name__)

_RETRY_S = (0.1, 0.3, 1.0, 3.0, 10.0)
# How long a worker that ends waits for commits and announcements in flight.
_LAST_WORK_S = 10.0
# Batches that are sifted ahead of the one that is being committed: by one, each waits for the other's turn.
_AHEAD = 2
# What comes first after a rest gathers for so long: of a volley of records more than one.
_GATHER_S = 0.005
# How often the partitions' ends are looked at, for the lag that metrics show.
_LOOK_S = 3.0
_ALERT_S = 10.0
# So many that wait call for the compiled loops, and these for a little patience.
_MANY_RECORDS = 50_000
_LOAD_S = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that were sifted ahead of their commit. What was read in an earlier term is not committed."""

    arrived: list[Arrived]
    sifted: SiftedBatch
    term: int


@dataclass(slots=True)
class InTurn:
    """The batch that is committed next, and its commit where that was finished ahead, against a standing."""

    batch: Batch
    finished: tuple[Prepared, Standing] | None = None


def _let_go_of(arrived: Iterable[Arrived]) -> None:
    """Nobody need wait for these any more: they are in the dataset, or will be read again."""
    for each in arrived:
        each.done()


def _same(frames: Sequence[Frame], others: Sequence[Frame]) -> bool:
    return len(frames) == len(others) and all(map(operator.is_, frames, others))


class StreamWorker:
    """Runs one pipeline in this process. Lives on Faust's event loop."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        dataset_dir: Path,
        connection: Connection,
        options: Options,
        dataset: str = "",
        since: Switched | None = None,
        upkeep: Upkeep | None = None,
        configuration_sha256: str = "",
        writers: Writers | None = None,
        models: Following | None = None,
        instruments: Instruments | None = None,
        metrics_options: Metrics | None = None,
        traces: Traces | None = None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.pipeline = pipeline
        self.connection = connection
        self.options = options
        self._upkeep = upkeep or Upkeep()
        self.uri = str(dataset_dir / (dataset or pipeline.name))
        self._since = since
        self._source = f"/tidemill/{pipeline.name}"
        self._configuration = configuration_sha256
        self._now_ms = now_ms
        self._ledger = Ledger(self.uri, dataset_schema(pipeline))
        self._ledger_lock = asyncio.Lock()
        self._ingest = Ingest(pipeline, read_keys=keys_of(self._ledger), writers=writers, models=models)
        self._models = models
        self._queue = FrameQueue(options.batch_rows, options.batch_bytes)
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()
        self._next: InTurn | None = None
        self._ahead = asyncio.Semaphore(_AHEAD)
        self._nothing_in_hand = asyncio.Event()
        self._nothing_in_hand.set()
        self._took_at = float("-inf")
        self._term = 0
        self._stopping = asyncio.Event()
        self._contact_ms = (metrics_options or Metrics()).contact_ms
        self._has_positions = False
        self._not_writable = ""
        self._partitions = Partitions(pipeline.sources(), self._ledger.position)
        self.observed = WorkerMetrics(
            pipeline,
            self._queue,
            instruments or Instruments("worker"),
            contact_age_s=self._partitions.contact_age_s,
        )
        self._intake = Intake(self._queue, self.observed)
        self._letters = Letters(pipeline.name, self._source)
        self._traces = traces
        self._tasks: list[asyncio.Task[None]] = []

    # ── life ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, crash: Callable[[BaseException], Awaitable[object]], *, patience_s: float) -> None:
        """Connect the producer and begin; `crash` is told when a part of the worker dies."""
        self._crash = crash
        self._producer = AIOKafkaProducer(
            **self.connection.client_arguments(),
            enable_idempotence=True,
            acks="all",
            linger_ms=2,
            max_request_size=16_777_216,
            max_batch_size=262_144,
        )
        await patiently(self._producer.start, patience_s=patience_s)
        if self._models is not None:
            await self._models.start()
        self._outbox = self._letters.outbox = Outbox(self._producer)
        self._herald = Herald(
            self.pipeline,
            self.uri,
            self.connection,
            self._outbox,
            configuration_sha256=self._configuration,
            instruments=self.observed.instruments,
            traces=self._traces,
            assessor=Assessor(self.pipeline, self.uri, self.connection, self._commit_counts),
            since=self._since,
        )
        self.observed.herald = self._herald
        keeper = Keeper(
            self.uri,
            self.connection,
            self._upkeep,
            is_mine=lambda: self._herald.leads,
            instruments=self.observed.instruments,
            pipeline=self.pipeline.name,
        )
        await self._partitions.begin(self._producer)
        parts = [self._sift_forever, self._commit_forever, self._herald.run, self._watch, keeper.run]
        if self.options.metrics_port is not None:
            parts.append(self._look_at_ends)
        for part in parts:
            self._tasks.append(asyncio.create_task(self._guarded(part), name=part.__name__))

    async def _guarded(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if isinstance(error, PositionLost):
                await self.alert(error)
            if not self._stopping.is_set():
                await self._crash(error)

    async def alert(self, lost: PositionLost) -> None:
        """Say on the alerts' topic what only a person can decide. The worker stops either way."""
        alert = lost.alert(self.pipeline.name)
        now_ms = self._now_ms()
        envelope = wrap(alert, source=self._source, time_ms=now_ms)
        try:
            async with asyncio.timeout(_ALERT_S):
                await self._outbox.publish([Announced(topics.ALERTS.name, envelope)])
        except Exception as error:  # the log has it in any case
            log.error("the alert could not be published", alert=alert.event_id(), error=str(error))

    def stopping(self) -> None:
        """The end is near: a commit that cannot be written is not waited for any more.

        Faust waits until all that it handed over is acknowledged. Where dataset or cluster are away that
        would be for ever, so after a while all is let go.
        """
        self._stopping.set()
        asyncio.get_running_loop().call_later(_LAST_WORK_S, self._let_go)

    def _let_go(self) -> None:
        """Nothing more is committed: what was read and is not in the ledger, the next worker reads again."""
        self._intake.end()
        self._drop()
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Finish what is in flight and let go. Whatever is not committed is read again by the next worker."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._models is not None:
            await self._models.stop()
        try:
            async with asyncio.timeout(_LAST_WORK_S):
                await self._producer.stop()
        except TimeoutError:  # an idempotent producer waits for a dead cluster for ever
            log.warning("the cluster has not taken all that was announced; the next worker says it again")

    @property
    def consumer(self) -> Consumer:
        """Faust's, once it has come to be."""
        return self._intake.consumer

    @consumer.setter
    def consumer(self, consumer: Consumer) -> None:
        self._intake.consumer = consumer

    # ── what it says of itself ──────────────────────────────────────────────────────────────────────

    def readiness(self) -> Readiness:
        """Ready is: the cluster answers, positions are taken, and what is read can be committed."""
        if self._stopping.is_set():
            return Readiness(False, "the worker is ending")
        age_s = self._partitions.contact_age_s()
        if age_s * 1000 > self._contact_ms:
            since = "yet" if age_s == float("inf") else f"for {age_s:.0f} s"
            return Readiness(False, f"no broker has answered {since}")
        if not self._has_positions:
            return Readiness(False, "no positions are taken yet: the group is being shared out")
        if self._not_writable:
            return Readiness(False, f"the dataset cannot be written: {self._not_writable}")
        return Readiness(True)

    async def _look_at_ends(self) -> None:
        """Where this worker's partitions end, every few seconds; whoever reads the lag wants no more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            with contextlib.suppress(Exception):  # the cluster is away, or the group is being shared out
                bounds = await self.consumer.bounds({TP(*partition) for partition in self._intake.expected})
                self.observed.ends = {(tp.topic, tp.partition): end for tp, (_, end) in bounds.items()}

    # ── positions ───────────────────────────────────────────────────────────────────────────────────

    async def positions(self, assigned: Set[TP]) -> dict[TP, int]:
        """Where reading of newly assigned partitions starts: where the ledger ends.

        Raises:
            PositionLost: the ledger's position is not within what the cluster has. Nothing is reset silently.
        """
        try:
            starts = await self._take_positions(assigned)
        except PositionLost as lost:
            await self.alert(lost)
            raise
        expected = self._intake.expected
        await self._letters.take_up(self.connection, expected, most=self.options.batch_rows)
        if (self.pipeline.source.topic, 0) in expected:
            self._herald.lead()
        else:
            self._herald.fall_silent()
        self.observed.positions = {(tp.topic, tp.partition): start for tp, start in starts.items()}
        self._has_positions = True
        return starts

    async def _take_positions(self, assigned: Set[TP]) -> dict[TP, int]:
        await self._partitions.count()
        async with self._ledger_lock:
            await asyncio.to_thread(self._ledger.refresh)
            self._ledger.refuse_switched()
            # Asked after the ledger: another worker may be moving on, and the end must not be the older.
            bounds = await self.consumer.bounds(set(assigned))
            starts: dict[TP, int] = {}
            self._intake.release()
            for tp, (first, end) in bounds.items():
                at = self._ledger.position((tp.topic, tp.partition))
                check_position(tp.topic, tp.partition, at, first=first, end=end)
                starts[tp] = first if at is None else at
            self._intake.begin({(tp.topic, tp.partition): start for tp, start in starts.items()})
            self._partitions.known |= self._intake.expected.keys()
            stand_by(self._ledger, self._ingest, self._partitions.known)
            await asyncio.to_thread(self._ingest.recall)
        if sum(end - starts[tp] for tp, (_, end) in bounds.items()) >= _MANY_RECORDS:
            # What reads many is there before they come, unless it must be compiled first.
            await asyncio.to_thread(futures.wait, [compiled.loading()], timeout=_LOAD_S)
        return starts

    def release(self) -> None:
        """Nothing is assigned to this worker: others have it all."""
        self._intake.release()
        self._herald.fall_silent()
        self.observed.positions = {}
        self._has_positions = True  # none: it stands by

    # ── frames ──────────────────────────────────────────────────────────────────────────────────────

    def taken_up_to(self, tp: TP) -> int | None:
        """Offset of the first record not accepted yet, None for another's partition. Any thread may ask."""
        return self._intake.expected.get((tp.topic, tp.partition))

    async def accept(self, tp: TP, frame: Frame, done: Callable[[], object]) -> None:
        """See `Intake.accept`."""
        await self._intake.accept(tp, frame, done)

    async def _watch(self) -> None:
        """Notice partitions that lost a frame on the way, and those that have nothing to say."""
        idle_s = self.options.idle_timeout_ms / 1000
        while True:
            await asyncio.sleep(min(idle_s / 4, 1.0))
            await self._partitions.count_now_and_then()
            await self._intake.find_lost()
            async with self._ledger_lock:
                silent_s = self._intake.silent_s()
                live = {p: for_s for p, for_s in silent_s.items() if not self._ledger.is_idle(p)}
            idle = {p for p, for_s in live.items() if for_s > idle_s}
            if len(idle) == len(live) > 1:
                # Whoever spoke last carries the watermark on before he rests, too: were all to rest at once,
                # it would stand where the slowest of them left it.
                idle.discard(min(live, key=live.__getitem__))
            if idle:
                await self._say_idle(idle)

    # ── commits ─────────────────────────────────────────────────────────────────────────────────────

    async def _sift_forever(self) -> None:
        """Sift ahead of the batch that is being committed."""
        while True:
            await self._ahead.acquire()
            await self._worth_taking()
            await self._herald.room()
            term, arrived = self._term, self._queue.take()
            self._took_at = time.monotonic()
            try:
                sifted = await self._sift([each.frame for each in arrived])
            except BaseException:
                _let_go_of(arrived)
                raise
            self._nothing_in_hand.clear()
            self._batches.put_nowait(Batch(arrived, sifted, term))

    async def _worth_taking(self) -> None:
        """A full batch waits; or anything, while none is being committed and none was taken of late."""
        await self._queue.changed.wait()
        while self._queue.fullness() < 1:
            await asyncio.sleep(_GATHER_S)
            rested_s = time.monotonic() - self._took_at
            if self._nothing_in_hand.is_set() and rested_s * 1000 >= self.options.coalesce_ms:
                break
        await self._queue.changed.wait()

    async def _sift(self, frames: Sequence[Frame]) -> SiftedBatch:
        """Sift, and while a schema registry is away, wait and try again: nothing is dropped."""
        for pause_s in itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1])):
            try:
                return await asyncio.to_thread(self._ingest.sift, frames, now_ms=self._now_ms())
            except Retryable as error:
                if self._stopping.is_set():
                    raise
                log.error("cannot decode, will try again", error=str(error), in_s=pause_s)
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def _commit_forever(self) -> None:
        while True:
            turn, self._next = self._next, None
            if turn is None:
                turn = InTurn(await self._batches.get())
                self._ahead.release()
            try:
                if turn.batch.term == self._term:
                    await self._one_commit(turn)
            except Fenced as error:
                self._say_fenced(error)
                await self._start_over()
            except SwitchedAway:
                self._drop()
                if (
                    self._herald.leads
                ):  # it has the dataset's last words to say, and then it ends this process
                    await asyncio.sleep(_LAST_WORK_S)
                raise
            except DatasetNotWritable as error:  # and it ends: else it would have been waited out
                log.warning("ends without its last commit", error=str(error))
                self._let_go()
            finally:
                _let_go_of(turn.batch.arrived)
                if self._batches.empty() and self._next is None:
                    self._nothing_in_hand.set()

    def _say_fenced(self, error: Fenced) -> None:
        self.observed.count(metrics.FENCED)
        log.warning("fenced", error=str(error))

    async def _start_over(self) -> None:
        """Drop all that was read and ask the ledger again."""
        self._drop()
        for pause_s in (*_RETRY_S, None):
            try:
                await self.consumer.perform_seek()
            except InvalidConfiguration:
                raise
            except Exception as error:
                if pause_s is None:
                    raise
                log.warning("could not seek, will try again", error=str(error), in_s=pause_s)
                await asyncio.sleep(pause_s)
            else:
                return

    def _drop(self) -> None:
        """Forget all that was read and is not in a commit."""
        self._term += 1
        self._queue.drop()
        if self._next is not None:
            _let_go_of(self._next.batch.arrived)
            self._next = None
        while not self._batches.empty():
            _let_go_of(self._batches.get_nowait().arrived)
            self._ahead.release()

    def _say_committed(self, commit: Commit, prepared: Prepared, began_ms: float) -> None:
        """To the log and the trace: an event finds the version that holds it by its place."""
        name, version = self.pipeline.name, commit.version
        offsets = commit.metadata["offsets"]
        log.debug("committed", version=version, rows=prepared.rows.height, offsets=offsets)
        for letter in prepared.dead_letters if log.is_enabled_for(logging.DEBUG) else ():
            log.debug("refused", version=version, letter=letter.event_id(), rule=letter.rule)
        if self._traces is not None:
            self._traces.record(
                "commit",
                self._traces.beginning(f"{name}@{version}"),
                start_ms=began_ms,
                end_ms=time.time() * 1000,
                pipeline=name,
                version=version,
                rows=prepared.rows.height,
                rejected=len(prepared.dead_letters),
                offsets=json.dumps(offsets),
            )

    async def _one_commit(self, turn: InTurn) -> None:
        began_ms = time.time() * 1000
        async with self._ledger_lock:
            await self._hear_of_others()
            frames = self._next_in_line(each.frame for each in turn.batch.arrived)
            while frames:
                prepared = await self._prepared(turn, frames)
                # Nobody else commits for its partitions, so what the ledger will hold is known already.
                standing = self._ingest.after(
                    prepared, watermark_after(self._ledger, prepared, self._partitions.known)
                )
                behind = asyncio.create_task(self._finish_next(standing))
                try:
                    commit = await self._commit(prepared)
                    if commit is not None:
                        self._tell(commit, prepared, began_ms)
                        await self._publish_letters_of_next()
                    await behind
                finally:
                    behind.cancel()
                if commit is not None:
                    self._ingest.settle(prepared)
                    return
                if self._next is not None:  # that one was finished behind what is prepared anew
                    self._next.finished = None

    async def _hear_of_others(self) -> None:
        """What was committed since by other workers is taken in before a file is written in vain."""
        if self._ledger.is_behind():
            with contextlib.suppress(OSError):  # the commit will say so
                await asyncio.to_thread(self._ledger.refresh)

    async def _prepared(self, turn: InTurn, frames: Sequence[Frame]) -> Prepared:
        """The commit of these frames: as it was finished ahead, where all came as was thought then."""
        stand_by(self._ledger, self._ingest, self._partitions.known)
        sifted, finished, turn.finished = turn.batch.sifted, turn.finished, None
        as_sifted = _same(frames, sifted.frames)
        if finished is not None and as_sifted and self._ingest.came_true(*finished):
            return finished[0]
        if sifted.is_finished or not as_sifted:
            # The ledger moved on since they were sifted, or they were finished once already.
            sifted = await self._sift(frames)
        # What is refused is known; whether the rest is late or a repeat is found out meanwhile.
        prepared, _ = await asyncio.gather(self._finish(sifted), self._letters.publish(sifted.dead_letters))
        return prepared

    async def _finish(self, sifted: SiftedBatch, standing: Standing | None = None) -> Prepared:
        began = time.perf_counter()
        prepared = await asyncio.to_thread(self._ingest.finish, sifted, standing)
        took_s = time.perf_counter() - began
        self.observed.took(metrics.PREPARE_SECONDS, took_s)
        return prepared

    async def _finish_next(self, standing: Standing) -> None:
        """Finish the next batch, if there is one, as if what is being committed were in the ledger."""
        if self._next is not None or self._batches.empty():
            return
        turn = self._next = InTurn(self._batches.get_nowait())
        self._ahead.release()
        if turn.batch.term == self._term:
            turn.finished = (await self._finish(turn.batch.sifted, standing), standing)

    async def _publish_letters_of_next(self) -> None:
        """Now that the batch before is committed: until then another worker could have to say them."""
        if self._next is not None and self._next.batch.term == self._term:
            await self._letters.publish(self._next.batch.sifted.dead_letters)

    def _tell(self, commit: Commit, prepared: Prepared, began_ms: float) -> None:
        """Everyone who waits for it that this commit is made."""
        self._letters.committed(prepared.dead_letters)
        for (topic, number), advance in prepared.advances.items():
            self.consumer.mark_durable(TP(topic, number), advance.next)
        self.observed.committed(commit, prepared)
        self._say_committed(commit, prepared, began_ms)
        self._herald.committed(commit)

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

    async def _commit(self, prepared: Prepared, idle: Collection[Partition] = ()) -> Commit | None:
        """Commit, and while the dataset cannot be written, wait and try again: nothing is dropped.

        None where another worker's commit came between and changed what of these rows is late: they must
        be prepared again.
        """
        attempt = 0
        began = time.perf_counter()
        while True:
            watermark_ms = watermark_after(self._ledger, prepared, self._partitions.known, idle)
            metadata = account_of(prepared, watermark_ms=watermark_ms, committed_ms=self._now_ms(), idle=idle)
            try:
                version = await asyncio.to_thread(
                    self._ledger.commit,
                    prepared.rows,
                    advances=prepared.advances,
                    watermarks=prepared.watermarks,
                    idle=idle,
                    pipeline_watermark_ms=watermark_ms,
                    metadata=metadata,
                )
            except Overtaken:
                if not self._ingest.still_holds(prepared, self._ledger.pipeline_watermark()):
                    return None
            except DatasetNotWritable as error:
                if self._stopping.is_set():
                    raise
                self._not_writable = str(error)
                self.observed.count(metrics.COMMIT_FAILURES)
                pause_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
                log.error("cannot commit, will try again", error=str(error), in_s=pause_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._stopping.wait()
                attempt += 1
            else:
                self._not_writable = ""
                took_s = time.perf_counter() - began
                self.observed.took(metrics.COMMIT_SECONDS, took_s)
                return Commit(version, metadata, prepared.by_source)

    async def _commit_counts(self, said: Mapping[str, Any], after: int | None) -> Commit:
        """Commit what was counted of the live model's answers, if `after` is still the newest such version.

        Raises:
            Superseded: another worker has counted since.
            DatasetNotWritable: nothing was committed.
        """
        nothing = Prepared(self._ingest.empty(), {}, [], {}, {}, {}, {})
        async with self._ledger_lock:
            while True:
                if self._ledger.marked(JUDGED) != after:
                    raise Superseded(f"another worker counts the answers to {self.pipeline.name} now")
                metadata = {
                    "offsets": {},
                    "watermark_ms": self._ledger.pipeline_watermark(),
                    "committed_ms": self._now_ms(),
                    **said,
                }
                with contextlib.suppress(Overtaken):
                    version = await asyncio.to_thread(
                        self._ledger.commit,
                        nothing.rows,
                        advances={},
                        watermarks={},
                        metadata=metadata,
                        marks=(JUDGED,),
                    )
                    break
        commit = Commit(version, metadata, {})
        self.observed.committed(commit, nothing)
        self._herald.committed(commit)
        return commit

    async def _say_idle(self, silent: set[Partition]) -> None:
        """Partitions silent for long, and read to their end, hold no window open: a commit without rows."""
        try:
            bounds = await self.consumer.bounds({TP(*partition) for partition in silent})
        except Exception as error:  # the cluster is away, or the group is being shared out anew
            log.info("cannot ask where partitions end, will try again", error=str(error))
            return
        async with self._ledger_lock:
            resting = {
                (tp.topic, tp.partition): Advance(end, end)
                for tp, (_, end) in bounds.items()
                if self._intake.expected.get((tp.topic, tp.partition)) == end
                and self._ledger.position((tp.topic, tp.partition)) in (end, None)
            }
            if not resting:
                return
            log.info("idle", partitions=sorted(resting))
            empty = Prepared(self._ingest.empty(), {}, [], resting, {}, {}, {})
            try:
                commit = await self._commit(empty, idle=resting.keys())
            except Fenced as error:
                self._say_fenced(error)
                return  # somebody else owns one of them, and reads it
        if commit is not None:
            self.observed.committed(commit, empty)
            self._herald.committed(commit)
