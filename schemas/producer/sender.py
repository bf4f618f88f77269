"""What a producer calls: files, frames and Arrow data to one raw topic, as `tidemill push` sends them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import polars as pl
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from ..errors import InvalidConfiguration, Rejected
from ..topics import Topic, declared, raw_topics
from .encode import Form
from .push import Progress, Push, Pushed, PushFailed
from .record_batch import Compression, Records
from .source import Source, Tables, open_source

_MOST_RECORD_BYTES = 8 * 2**20


class EventUnfit(Rejected):
    """An event breaks its topic's contract. Of its chunk nothing was sent."""


class EventSender:
    """Sends events to one topic by one idempotent producer; use it as an async context manager.

    Args:
        topic: a raw topic: its name, or its declaration.
        client: keyword arguments for aiokafka's clients, at least `bootstrap_servers`.
        journal_dir: where it is noted how far each file has come; without it a file begins anew each time.
        form: an event a record, or Arrow frames of some thousand rows.
        compression: of what goes over the wire and lies on the topic.
        checked: hold each event to the topic's contract before its chunk is sent. Of Arrow frames nothing is
            checked; what is not checked and breaks the contract becomes a dead letter.

    Raises:
        InvalidConfiguration: the topic is no raw one.
    """

    def __init__(
        self,
        topic: str | Topic,
        *,
        client: Mapping[str, Any],
        journal_dir: Path | str | None = None,
        form: Form = "json",
        compression: Compression = "none",
        checked: bool = True,
    ) -> None:
        self._topic = raw_topic(topic) if isinstance(topic, str) else topic
        self._client = client
        self._form: Form = form
        self._compression: Compression = compression
        self._folder = None if journal_dir is None else Path(journal_dir)
        self._check = _Contract(self._topic) if checked and form == "json" else None
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> EventSender:
        self._producer = AIOKafkaProducer(
            **self._client, enable_idempotence=True, acks="all", max_request_size=_MOST_RECORD_BYTES
        )
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def send_file(
        self,
        file: Path | str,
        *,
        from_beginning: bool = False,
        progress: Progress | None = None,
        stop: asyncio.Event | None = None,
    ) -> Pushed:
        """Send every event of a Parquet, CSV, NDJSON or Arrow file; go on where an earlier call stopped.

        Whatever ended that call, a kill included: with `journal_dir` no event is left out or sent twice.

        Args:
            from_beginning: forget what an earlier call noted.
            progress: hears how many events the cluster holds, and of how many, where that is known.
            stop: once it is set, what is on its way arrives and nothing more goes out.

        Raises:
            InvalidConfiguration: there is no such topic on the cluster, another call sends the same file, or
                the file has changed since a part of it was sent.
            FileUnreadable: the file is missing, of no known format, or damaged.
            EventUnfit: an event breaks the contract.
            PushFailed: the cluster is away for longer than the client waits.
        """
        source = open_source(Path(file), self._topic.contracts)
        return await self._send(source, self._folder, from_beginning, progress, stop)

    async def send_frame(
        self,
        frame: Any,
        *,
        progress: Progress | None = None,
        stop: asyncio.Event | None = None,
    ) -> Pushed:
        """Send every row of a Polars frame, of an Arrow table or batch, or of an iterable of them.

        Nothing is noted of it: what a broken call sent is sent again by the next.

        Raises:
            InvalidConfiguration: there is no such topic on the cluster.
            EventUnfit: an event breaks the contract.
            PushFailed: the cluster is away for longer than the client waits.
        """
        if any(hasattr(frame, way) for way in ("__arrow_c_stream__", "__arrow_c_array__")):
            table = _table(frame)
            return await self._send(Tables([table], table.height), None, False, progress, stop)
        frames: Iterable[Any] = frame
        return await self._send(Tables(map(_table, frames), None), None, False, progress, stop)

    async def _send(
        self,
        source: Source | Tables,
        folder: Path | None,
        from_beginning: bool,
        progress: Progress | None,
        stop: asyncio.Event | None,
    ) -> Pushed:
        if self._producer is None:
            raise InvalidConfiguration("this sender is not open: write `async with EventSender(…) as sender`")
        push = Push(self._client, self._topic, source, self._form, self._compression, self._check)
        try:
            await push.begin(folder, from_beginning=from_beginning)
            return await push.run(self._producer, progress=progress, stop=stop or asyncio.Event())
        except KafkaError as error:
            raise PushFailed(
                f"the cluster stopped taking events ({error}); {push.acknowledged:,} are on "
                f"{self._topic.name}"
                + ("" if push.journal is None else ", and the same call goes on from there")
            ) from error
        finally:
            if push.journal is not None:
                push.journal.release()


class _Contract:
    """Holds records to a topic's contracts, by what the worker decodes them with."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._decoders = [msgspec.json.Decoder(contract) for contract in topic.contracts]

    def __call__(self, records: Sequence[Records]) -> None:
        """Raises EventUnfit if one breaks them."""
        for own in records:
            for value in own.values.to_list():
                self._hold(value)

    def _hold(self, value: bytes) -> None:
        said: Exception | None = None
        for decoder in self._decoders:
            try:
                decoder.decode(value)
            except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
                said = error
            else:
                return
        raise EventUnfit(
            f"{value[:200]!r} breaks the contract of {self._topic.name}: {said}; mend it, or send it by "
            "checked=False, and it becomes a dead letter"
        )


def raw_topic(name: str) -> Topic:
    """The declaration of a topic that producers may send to.

    Raises:
        InvalidConfiguration: it is none.
    """
    found = declared(name)
    if found is None or found.unknown_fields == "ignore":
        raw = ", ".join(each.name for each in raw_topics())
        raise InvalidConfiguration(
            f"{name} is no raw topic; events can be pushed to {raw}, or to one that the pipeline named by "
            "--pipeline, or your own `topics.declare`, declares"
        )
    return found


def _table(data: Any) -> pl.DataFrame:
    return data if isinstance(data, pl.DataFrame) else pl.DataFrame(data)
