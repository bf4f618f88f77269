"""The push itself: chunks are encoded in a thread, sent as whole batches, and noted once they are held."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.kafka.cluster import find_cluster
from infra.kafka.connection import Connection
from infra.kafka.record_batch import Compression, Records, WholeBatch, batches
from infra.kafka.topics import partitions_of
from infra.push.encode import Encoder, Form
from infra.push.journal import Journal
from infra.push.resume import arrived, ends_of
from infra.push.source import STDIN, Chunk, Source, open_source
from infra.settings import Settings
from infra.stopping import asked_to_stop
from schemas import topics
from schemas.envelope import ARROW_STREAM
from schemas.errors import InvalidConfiguration, Retryable
from schemas.topics import CONTENT_TYPE_HEADER, Topic

Ready = list[tuple[int, list[WholeBatch]]]
"""Of each partition: the offset behind what was there before, and the batches to be sent."""

Sent = list[tuple[int, list[tuple[asyncio.Future, int]]]]
"""The same once sent: each batch's answer to come, and its records."""

# So many chunks may be on their way: what a kill leaves uncertain, and what memory holds.
IN_FLIGHT = 4
_BATCH_BYTES = 512 * 1024
_MOST_RECORD_BYTES = 8 * 2**20


class PushFailed(Retryable):
    """The cluster did not take everything; what it took is noted, and the same command goes on from there."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """`sent` events went out now, `before` lay on the topic already; `stopped` if somebody asked to end."""

    sent: int
    before: int
    stopped: bool
    seconds: float


async def push_file(
    settings: Settings,
    topic: str,
    file: Path,
    console: Console,
    *,
    form: Form = "json",
    compression: Compression = "none",
    from_beginning: bool = False,
) -> Pushed:
    """Push every row of a file as one event, and go on where an earlier push of it stopped.

    NDJSON lines are pushed as they stand, good or bad: what is wrong with one is said by its dead letter.
    SIGINT and SIGTERM end it once what is on its way has arrived; a second signal changes nothing.

    Args:
        form: an event a record, or Arrow frames of some thousand rows.
        compression: of what goes over the wire and lies on the topic.
        from_beginning: forget what an earlier push of the file noted.

    Raises:
        InvalidConfiguration: no cluster, the topic is not a raw one, or the file changed since a part of it
            was pushed.
        FileUnreadable: the file is missing, of no known format, or damaged.
        PushFailed: the cluster is away for longer than the client waits.
    """
    declared = _raw_topic(topic)
    connection = find_cluster(settings)
    if connection is None:
        raise InvalidConfiguration("no broker runs here; start one by `tidemill up`, or name your cluster")
    source = open_source(file, declared.contracts)
    if topic not in await partitions_of(connection):
        raise InvalidConfiguration(
            f"there is no topic {topic} on the cluster; `tidemill topics --create` makes those that are "
            "declared, with --pipeline FILE also those of a pipeline"
        )
    push = _Push(connection, declared, source, form, compression)
    producer = AIOKafkaProducer(
        **connection.client_arguments(),
        enable_idempotence=True,
        acks="all",
        max_request_size=_MOST_RECORD_BYTES,
    )
    await producer.start()
    try:
        await push.begin(producer, settings.paths.home / "push", from_beginning=from_beginning)
        return await push.run(producer, console)
    except KafkaError as error:
        raise PushFailed(
            f"the cluster stopped taking events ({error}); {push.acknowledged:,} are on {topic}"
            + ("" if push.journal is None else ", and the same command goes on from there")
        ) from error
    finally:
        await producer.stop()
        if push.journal is not None:
            push.journal.release()


def _raw_topic(name: str) -> Topic:
    declared = topics.declared(name)
    if declared is None or declared.unknown_fields == "ignore":
        raw = ", ".join(t.name for t in topics.raw_topics())
        raise InvalidConfiguration(
            f"{name} is no raw topic; events can be pushed to {raw}, or to one that the pipeline named by "
            "--pipeline declares"
        )
    return declared


@dataclass
class _Push:
    connection: Connection
    topic: Topic
    source: Source
    form: Form
    compression: Compression
    journal: Journal | None = None
    acknowledged: int = 0
    before: int = 0
    _encoder: Encoder = field(init=False)
    _floors: list[int] = field(default_factory=list)
    _there: list[list[int]] = field(default_factory=list)

    async def begin(self, producer: AIOKafkaProducer, folder: Path, *, from_beginning: bool) -> None:
        """Find out where to go on."""
        partitions = len(await producer.partitions_for(self.topic.name))
        self._encoder = Encoder(self.topic.key, partitions, self.form)
        self._there = [[] for _ in range(partitions)]
        if self.source.file == STDIN:
            return
        cluster = await _cluster_id(self.connection)
        self.journal = Journal(
            folder, self.source.file, topic=self.topic.name, cluster=cluster, form=self.form
        )
        self.journal.hold()
        state = self.journal.state
        if not from_beginning and self.journal.take_up():
            state = self.journal.state
            self.before = self.acknowledged = state.events
            if state.complete:
                return
            if len(state.floors) != partitions:
                raise InvalidConfiguration(
                    f"{self.topic.name} had {len(state.floors)} partitions when this push began and has "
                    f"{partitions} now; push all of the file by --from-beginning"
                )
            await self._look_behind(state.floors)
            return
        state.floors = await ends_of(self.connection, self.topic.name, partitions, quiet=False)
        # On disk before anything is sent: a kill from here on is found out by reading behind these offsets.
        self.journal.write()
        self._floors = list(state.floors)

    async def _look_behind(self, floors: list[int]) -> None:
        """What arrived of chunks that were on their way when an earlier push died."""
        assert self.journal is not None
        self._floors = list(floors)
        ends = await ends_of(self.connection, self.topic.name, len(floors), quiet=True)
        if all(end == floor for end, floor in zip(ends, floors, strict=True)):
            return
        expected: list[list[Records]] = [[] for _ in floors]
        for chunk in itertools.islice(self._chunks(), IN_FLIGHT):
            for own, more in zip(expected, self._encoder.encode(chunk), strict=True):
                own.append(more)
        self._there = await arrived(
            self.connection, self.topic.name, floors=floors, ends=ends, expected=expected
        )

    def _chunks(self) -> Iterator[Chunk]:
        """Chunks that are not acknowledged yet."""
        done = self.journal.state.chunks if self.journal else 0
        return itertools.islice(self.source.chunks(), done, None)

    async def run(self, producer: AIOKafkaProducer, console: Console) -> Pushed:
        """Send what is to be sent, note what is acknowledged."""
        began = time.monotonic()
        if self.journal is not None and self.journal.state.complete:
            return Pushed(0, self.before, stopped=False, seconds=0.0)
        on_their_way: deque[tuple[Chunk, Sent]] = deque()
        with asked_to_stop() as stop, _progress(console) as progress:
            bar = progress.add_task(
                f"pushing to {self.topic.name}", total=self.source.rows, completed=self.acknowledged
            )
            chunks = self._chunks()
            chunk, ready = await asyncio.to_thread(self._next, chunks)
            while chunk is not None and not stop.is_set():
                # The next chunk is read and its batches are written in a thread while this one is on its way.
                following = asyncio.create_task(asyncio.to_thread(self._next, chunks))
                try:
                    on_their_way.append((chunk, await self._send(producer, ready)))
                    if len(on_their_way) == IN_FLIGHT:
                        await self._settle(*on_their_way.popleft())
                        progress.update(bar, completed=self.acknowledged)
                finally:
                    chunk, ready = await following
            while on_their_way:
                await self._settle(*on_their_way.popleft())
                progress.update(bar, completed=self.acknowledged)
        if chunk is None and self.journal is not None:
            self.journal.state.complete = True
            self.journal.write()
        seconds = time.monotonic() - began
        return Pushed(self.acknowledged - self.before, self.before, chunk is not None, seconds)

    def _next(self, chunks: Iterator[Chunk]) -> tuple[Chunk | None, Ready]:
        """The next chunk and its batches, less the records that lie on the topic already."""
        chunk = next(chunks, None)
        if chunk is None:
            return None, []
        headers = [(CONTENT_TYPE_HEADER, ARROW_STREAM.encode())] if self.form == "arrow" else []
        ready: Ready = []
        for number, own in enumerate(self._encoder.encode(chunk)):
            there = self._there[number][: len(own)]
            del self._there[number][: len(own)]
            written = batches(
                own.after(len(there)),
                timestamp_ms=time.time_ns() // 1_000_000,
                most_bytes=_BATCH_BYTES,
                headers=headers,
                compression=self.compression,
            )
            ready.append((there[-1] + 1 if there else 0, list(written)))
        return chunk, ready

    async def _send(self, producer: AIOKafkaProducer, ready: Ready) -> Sent:
        """Hand a chunk's batches to the producer: in order within a partition, all partitions at once."""
        sent = await asyncio.gather(
            *(self._send_to(producer, number, own) for number, (_, own) in enumerate(ready))
        )
        return [(behind, own) for (behind, _), own in zip(ready, sent, strict=True)]

    async def _send_to(
        self, producer: AIOKafkaProducer, number: int, own: list[WholeBatch]
    ) -> list[tuple[asyncio.Future, int]]:
        return [
            (await producer.send_batch(batch, self.topic.name, partition=number), batch.record_count())
            for batch in own
        ]

    async def _settle(self, chunk: Chunk, sent: Sent) -> None:
        """Wait until the cluster holds a chunk, and note it."""
        for number, (behind, own) in enumerate(sent):
            if self._floors:
                self._floors[number] = max(self._floors[number], behind)
            for future, records in own:
                held = await future
                if self._floors:
                    self._floors[number] = max(self._floors[number], held.offset + records)
        self.acknowledged += chunk.rows
        if self.journal is not None:
            state = self.journal.state
            state.chunks += 1
            state.events += chunk.rows
            state.floors = list(self._floors)
            await asyncio.to_thread(self.journal.write)


async def _cluster_id(connection: Connection) -> str:
    admin = AIOKafkaAdminClient(**connection.client_arguments())
    await admin.start()
    try:
        return str((await admin.describe_cluster()).get("cluster_id", ""))
    finally:
        await admin.close()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
