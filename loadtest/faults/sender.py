"""Sends events and keeps an account of its own: what the cluster acknowledged, at which offsets.

Event number n is made from n alone. Some records are bad and some events are sent a second time, so that dead
letters and `dedupe` have their part.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

import polars as pl
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from infra.kafka.connection import Connection
from schemas.topics import FLIGHTS_SCHEDULED, WATERMARK_HEADER

TOPIC = FLIGHTS_SCHEDULED.name
WINDOW_MS = 60_000
START_MS = 1_700_000_040_000
"""Event time of the first event: a whole minute."""
_BAD_EVERY, _TWICE_EVERY = 997, 499
_BATCH = 400
_IN_FLIGHT = 64
_BAD = (b"{", b"[]", b'{"flight_id": null}', b"\xff\xfe", b'{"flight_id": "x", "scheduled": 1e400}')


@dataclass(frozen=True, slots=True)
class Plan:
    """How many events, over how many minutes of event time, on how many partitions."""

    events: int
    windows: int
    partitions: int

    def time_ms(self, number: int) -> int:
        """Event time of an event: even over all windows."""
        return START_MS + number * self.windows * WINDOW_MS // self.events

    @property
    def end_ms(self) -> int:
        """End of the last window."""
        return START_MS + self.windows * WINDOW_MS

    def value(self, number: int) -> bytes:
        """The record of an event."""
        return (
            f'{{"flight_id":"f-{number}","scheduled":{self.time_ms(number)},"carrier":"C{number % 7}",'
            f'"flight":{number % 9973},"tailnum":null,"origin":"O{number % 3}","dest":"D{number % 11}",'
            f'"distance":{float(number * 7 % 12_000)},"scheduled_arrival_hhmm":{number % 2400}}}'
        ).encode()


def bad_value(number: int) -> bytes:
    """A record that can be no event; each is its own."""
    return _BAD[number % len(_BAD)] + b" " * (number % 13)


@dataclass
class Account:
    """What was sent: `records` by partition and offset, once the cluster said that it has them.

    Columns: partition, offset, number (of the event), kind ("event", "twice" for its repeat, "bad").
    """

    plan: Plan
    unacknowledged: int = 0
    _batches: list[tuple[int, int, list[int], list[str]]] = field(default_factory=list)

    def add(self, partition: int, base_offset: int, numbers: list[int], kinds: list[str]) -> None:
        """A batch is acknowledged, at consecutive offsets."""
        self._batches.append((partition, base_offset, numbers, kinds))

    @property
    def acknowledged(self) -> int:
        return sum(len(numbers) for _, _, numbers, _ in self._batches)

    def ends(self) -> dict[int, int]:
        """Offset behind the last acknowledged record, by partition."""
        ends: dict[int, int] = {}
        for partition, base, numbers, _ in self._batches:
            ends[partition] = max(ends.get(partition, 0), base + len(numbers))
        return ends

    def records(self) -> pl.DataFrame:
        """All acknowledged records."""
        frames = [
            pl.DataFrame(
                {
                    "partition": partition,
                    "offset": range(base, base + len(numbers)),
                    "number": numbers,
                    "kind": kinds,
                },
                schema={"partition": pl.Int32, "offset": pl.Int64, "number": pl.Int64, "kind": pl.String},
            ).cast({"kind": pl.Categorical})
            for partition, base, numbers, kinds in self._batches
        ]
        return pl.concat(frames)


class Sender(threading.Thread):
    """Sends all events of a plan in `seconds`, in the background, and waits out a cluster that is away."""

    def __init__(self, plan: Plan, connection: Connection, *, seconds: float) -> None:
        super().__init__(name="sender", daemon=True)
        self.account = Account(plan)
        self.failure: BaseException | None = None
        self.sent = 0
        self._connection, self._seconds = connection, seconds
        self.begun = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:  # handed to whoever waits for it
            self.failure = error
        finally:
            self.begun.set()

    async def _send(self) -> None:
        producer = AIOKafkaProducer(
            # Longer than any outage that a fault makes: the client's own retries wait it out.
            **{**self._connection.client_arguments(), "request_timeout_ms": 180_000},
            enable_idempotence=True,
            acks="all",
            max_batch_size=262_144,
        )
        await producer.start()
        try:
            room = asyncio.Semaphore(_IN_FLIGHT)
            pending: set[asyncio.Task[None]] = set()
            began = time.monotonic()
            plan = self.account.plan
            step = _BATCH * plan.partitions
            for first in range(0, plan.events, step):
                for partition in range(plan.partitions):
                    numbers = range(first + partition, min(first + step, plan.events), plan.partitions)
                    if numbers:
                        await room.acquire()
                        future = await self._batch(producer, partition, numbers)
                        task = asyncio.create_task(self._acknowledged(*future, room))
                        pending.add(task)
                        task.add_done_callback(pending.discard)
                self.sent = min(first + step, plan.events)
                self.begun.set()
                ahead_s = self.sent / plan.events * self._seconds - (time.monotonic() - began)
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
            if pending:
                await asyncio.wait(pending)
            await self._close_windows(producer)
        finally:
            await producer.stop()

    async def _batch(
        self, producer: AIOKafkaProducer, partition: int, numbers: range
    ) -> tuple[asyncio.Future, int, list[int], list[str]]:
        plan = self.account.plan
        batch = producer.create_batch()
        sent: list[int] = []
        kinds: list[str] = []
        for number in numbers:
            bad = number % _BAD_EVERY == 5
            for kind in ("bad",) if bad else ("event", "twice") if number % _TWICE_EVERY == 7 else ("event",):
                value = bad_value(number) if kind == "bad" else plan.value(number)
                if batch.append(key=None, value=value, timestamp=None) is None:
                    raise AssertionError("a batch of the sender's does not fit the producer's")
                sent.append(number)
                kinds.append(kind)
        batch.close()
        return await producer.send_batch(batch, TOPIC, partition=partition), partition, sent, kinds

    async def _acknowledged(
        self,
        future: asyncio.Future,
        partition: int,
        numbers: list[int],
        kinds: list[str],
        room: asyncio.Semaphore,
    ) -> None:
        try:
            said = await future
        except KafkaError:
            # Whether the cluster has them is not known: they may be in the dataset, and need not be.
            self.account.unacknowledged += len(numbers)
        else:
            self.account.add(partition, said.offset, numbers, kinds)
        finally:
            room.release()

    async def _close_windows(self, producer: AIOKafkaProducer) -> None:
        """A last heartbeat to each partition: nothing earlier follows."""
        until_ms = self.account.plan.end_ms + 2 * WINDOW_MS
        for partition in range(self.account.plan.partitions):
            await producer.send_and_wait(
                TOPIC, b"", partition=partition, headers=[(WATERMARK_HEADER, str(until_ms).encode())]
            )
