"""One partition's records on their way: sent in the order in which they came, acknowledged one by one.

While one volley is on its way the next gathers, so events that come singly travel as batches under load, and
alone when it is quiet.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from aiokafka.errors import KafkaError, MessageSizeTooLargeError, TopicAuthorizationFailedError

from infra.door.stream import TOO_LARGE, Record, Refusal
from infra.door.telegraph import Telegraph
from infra.kafka.batches import send_headed_batches

_VOLLEY_RECORDS = 5_000
_FORBIDDEN, _UNAVAILABLE = 403, 503


class Held(NamedTuple):
    """The cluster has it. `offset` is -1 where a repeated request hid it."""

    partition: int
    offset: int
    stamped_ms: int


Answer = Held | Refusal


class Parcel:
    """The records of one request and what became of each, in the request's order.

    Args:
        records: None at the places of events that were refused before; `answers` says why.
        size_bytes: what it holds of the room in flight.
        landed: called once every record has its answer from the cluster.
    """

    __slots__ = ("answers", "deadline_s", "landed", "left", "records", "said", "size_bytes")

    def __init__(
        self,
        records: list[Record | None],
        answers: list[Answer | None],
        *,
        size_bytes: int,
        deadline_s: float,
        said: asyncio.Future[list[Answer]],
        landed: Callable[[Parcel], None],
    ) -> None:
        self.records, self.answers = records, answers
        self.size_bytes, self.deadline_s = size_bytes, deadline_s
        self.said, self.landed = said, landed
        self.left = len(records) - records.count(None)

    def answer(self, index: int, answer: Answer) -> None:
        """What became of one record."""
        self.answers[index] = answer
        self.left -= 1
        if self.left == 0:
            self.landed(self)


class Lane:
    """One partition of one topic; `confirmed` is told how many seconds each answer of the cluster took."""

    def __init__(
        self, telegraph: Telegraph, topic: str, partition: int, *, confirmed: Callable[[float], None]
    ) -> None:
        self._confirmed = confirmed
        self._telegraph, self._topic, self._partition = telegraph, topic, partition
        self._waiting: deque[tuple[Parcel, int]] = deque()
        self._sending: asyncio.Task[None] | None = None

    def put(self, parcel: Parcel, index: int) -> None:
        """Send that record of the parcel behind all others."""
        self._waiting.append((parcel, index))

    def wake(self) -> None:
        """Send what waits, if nobody does."""
        if self._sending is None and self._waiting:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while waiting := self._waiting:
                some = [waiting.popleft() for _ in range(min(len(waiting), _VOLLEY_RECORDS))]
                await self._volley(some)
        finally:
            self._sending = None

    async def _volley(self, some: list[tuple[Parcel, int]]) -> None:
        records: list[Record] = [parcel.records[index] for parcel, index in some]  # type: ignore[misc]
        producer = await self._telegraph.producer()
        done, began_s = 0, time.monotonic()
        try:
            sent = await send_headed_batches(
                producer, self._topic, self._partition, ((*record[:3], None) for record in records)
            )
            for future, count in sent:
                await asyncio.wait([future])
                self._confirmed(time.monotonic() - began_s)
                if (error := future.exception()) is not None:
                    self._telegraph.failed(producer, error)
                    self._refuse(some[done : done + count], error)
                else:
                    self._telegraph.heard()
                    _, partition, _, offset, stamped_ms, *_ = future.result()
                    step = 1 if offset >= 0 else 0  # an unknown offset stays one
                    for at, (parcel, index) in enumerate(some[done : done + count]):
                        parcel.answer(index, Held(partition, offset + at * step, stamped_ms))
                done += count
        except (KafkaError, AssertionError) as error:  # it could not even be queued
            self._telegraph.failed(producer, error)
            self._refuse(some[done:], error)

    def _refuse(self, some: list[tuple[Parcel, int]], error: BaseException) -> None:
        match error:
            case MessageSizeTooLargeError():
                why = Refusal(TOO_LARGE, f"the cluster takes no record that large on {self._topic}")
            case TopicAuthorizationFailedError():
                why = Refusal(_FORBIDDEN, f"the cluster does not let the door write to {self._topic}")
            case _:
                why = Refusal(
                    _UNAVAILABLE,
                    f"the cluster did not confirm ({type(error).__name__}): it may be there, send it again",
                )
        for parcel, index in some:
            parcel.answer(index, why)
