"""The push itself: chunks are encoded in a thread, sent as whole batches, and noted once they are held."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from ..envelope import ARROW_STREAM
from ..errors import InvalidConfiguration, Retryable
from ..topics import CONTENT_TYPE_HEADER, Topic
from .encode import Encoder, Form
from .journal import Journal
from .record_batch import Compression, Records, WholeBatch, batches
from .resume import arrived, ends_of
from .source import STDIN, Chunk, Source, Tables

Ready = list[tuple[int, list[WholeBatch]]]
"""Of each partition: the offset behind what was there before, and the batches to be sent."""

Sent = list[tuple[int, list[tuple[asyncio.Future, int]]]]
"""The same once sent: each batch's answer to come, and its records."""

# So many chunks may be on their way: what a kill leaves uncertain, and what memory holds.
IN_FLIGHT = 4
_BATCH_BYTES = 512 * 1024


class PushFailed(Retryable):
    """The cluster did not take everything; what it took is noted, and the same command goes on from there."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """`sent` events went out now, `before` lay on the topic already; `stopped` if somebody asked to end."""

    sent: int
    before: int
    stopped: bool
    seconds: float


Check = Callable[[Sequence[Records]], None]
"""Raises if a chunk's records are not to be sent."""

Progress = Callable[[int, int | None], None]
"""Hears how many events the cluster holds, and of how many; None where only reading would tell."""


@dataclass
class Push:
    """One source on its way to one topic."""

    client: Mapping[str, Any]
    topic: Topic
    source: Source | Tables
    form: Form
    compression: Compression
    check: Check | None = None
    journal: Journal | None = None
    acknowledged: int = 0
    before: int = 0
    _encoder: Encoder = field(init=False)
    _floors: list[int] = field(default_factory=list)
    _there: list[list[int]] = field(default_factory=list)

    async def begin(self, folder: Path | None, *, from_beginning: bool) -> None:
        """Find out where to go on."""
        cluster, partitions = await _whereabouts(self.client, self.topic.name)
        self._encoder = Encoder(self.topic.key, partitions, self.form)
        self._there = [[] for _ in range(partitions)]
        if folder is None or self.source.file == STDIN:
            return
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
        state.floors = await ends_of(self.client, self.topic.name, partitions, quiet=False)
        # On disk before anything is sent: a kill from here on is found out by reading behind these offsets.
        self.journal.write()
        self._floors = list(state.floors)

    async def _look_behind(self, floors: list[int]) -> None:
        """What arrived of chunks that were on their way when an earlier push died."""
        assert self.journal is not None
        self._floors = list(floors)
        ends = await ends_of(self.client, self.topic.name, len(floors), quiet=True)
        if all(end == floor for end, floor in zip(ends, floors, strict=True)):
            return
        expected: list[list[Records]] = [[] for _ in floors]
        for chunk in itertools.islice(self._chunks(), IN_FLIGHT):
            for own, more in zip(expected, self._encoder.encode(chunk), strict=True):
                own.append(more)
        self._there = await arrived(self.client, self.topic.name, floors=floors, ends=ends, expected=expected)

    def _chunks(self) -> Iterator[Chunk]:
        """Chunks that are not acknowledged yet."""
        done = self.journal.state.chunks if self.journal else 0
        return itertools.islice(self.source.chunks(), done, None)

    async def run(
        self, producer: AIOKafkaProducer, *, progress: Progress | None, stop: asyncio.Event
    ) -> Pushed:
        """Send what is to be sent, note what is acknowledged; once `stop` is set, only what is on its way."""
        began = time.monotonic()
        if self.journal is not None and self.journal.state.complete:
            return Pushed(0, self.before, stopped=False, seconds=0.0)
        on_their_way: deque[tuple[Chunk, Sent]] = deque()
        chunks = self._chunks()
        chunk, ready = await asyncio.to_thread(self._next, chunks)
        while chunk is not None and not stop.is_set():
            # The next chunk is read and its batches are written in a thread while this one is on its way.
            following = asyncio.create_task(asyncio.to_thread(self._next, chunks))
            try:
                on_their_way.append((chunk, await self._send(producer, ready)))
                if len(on_their_way) == IN_FLIGHT:
                    await self._settle(*on_their_way.popleft())
                    self._say(progress)
            finally:
                chunk, ready = await following
        while on_their_way:
            await self._settle(*on_their_way.popleft())
            self._say(progress)
        if chunk is None and self.journal is not None:
            self.journal.state.complete = True
            self.journal.write()
        seconds = time.monotonic() - began
        return Pushed(self.acknowledged - self.before, self.before, chunk is not None, seconds)

    def _say(self, progress: Progress | None) -> None:
        if progress is not None:
            progress(self.acknowledged, self.source.rows)

    def _next(self, chunks: Iterator[Chunk]) -> tuple[Chunk | None, Ready]:
        """The next chunk and its batches, less the records that lie on the topic already."""
        chunk = next(chunks, None)
        if chunk is None:
            return None, []
        headers = [(CONTENT_TYPE_HEADER, ARROW_STREAM.encode())] if self.form == "arrow" else []
        ready: Ready = []
        for number, own in enumerate(self._encoded(chunk)):
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

    def _encoded(self, chunk: Chunk) -> list[Records]:
        encoded = self._encoder.encode(chunk)
        if self.check is not None:
            self.check(encoded)
        return encoded

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


async def _whereabouts(client: Mapping[str, Any], topic: str) -> tuple[str, int]:
    """The cluster's id, and how many partitions the topic has on it."""
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic])
        if described["error_code"]:
            raise InvalidConfiguration(f"there is no topic {topic} on the cluster; create it first")
        return str((await admin.describe_cluster()).get("cluster_id", "")), len(described["partitions"])
    finally:
        await admin.close()
