"""What is on its way to the cluster: bounded in records and bytes, and each request answered in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

from aiokafka.errors import KafkaError

from infra.door.lane import Answer, Lane, Parcel
from infra.door.stream import UNPROCESSABLE, Record, Refusal
from infra.door.telegraph import Telegraph
from infra.kafka.batches import partition_for
from infra.logging import logger
from schemas.producer.partitions import partitions_for

log = logger(__name__)

_LOOK_S = 0.25
_REFRESH_S = 10.0
_FEW = 64
"""So many keys are faster looked up or hashed one by one than hashed all at once."""
_SHORT = 64
"""Bytes of a key that is worth remembering."""
_remembered = lru_cache(maxsize=16_384)(partition_for)


class Full(Exception):
    """There is no room in flight; `reason` says of what."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Intake:
    """Takes records of requests and gives each its answer.

    Args:
        topics: their names.
        most_records: in flight, of all requests.
        most_bytes: of bodies in flight.
        answer_within_s: after that a record that is still on its way is answered as not confirmed.
        confirmed: told of each volley how many seconds the cluster took to answer.
    """

    def __init__(
        self,
        telegraph: Telegraph,
        topics: Sequence[str],
        *,
        most_records: int,
        most_bytes: int,
        answer_within_s: float,
        confirmed: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.telegraph = telegraph
        self.most_records, self.most_bytes = most_records, most_bytes
        self._answer_within_s, self._confirmed = answer_within_s, confirmed
        self._topics = tuple(topics)
        self._lanes: dict[str, list[Lane]] = {}
        self._open: dict[Parcel, None] = {}
        self._fresh: list[tuple[str, Parcel]] = []
        self._turn = 0
        self.records = self.size_bytes = 0
        self._watching: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Learn the topics' partitions.

        Raises:
            KafkaError: the cluster does not answer, or lacks one of them.
        """
        await self._look()
        self._watching = [asyncio.create_task(self._refresh()), asyncio.create_task(self._give_up())]

    def enter(self, size_bytes: int) -> None:
        """A body of that size is about to be read; `leave` gives its room back, or its parcel does.

        Raises:
            Full: there is no room for it now.
        """
        if self.size_bytes + size_bytes > self.most_bytes:
            raise Full(f"{self.size_bytes} of at most {self.most_bytes} bytes are on their way")
        self.size_bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """A body of that size is done with."""
        self.size_bytes -= size_bytes

    def submit(
        self, topic: str, taken: Sequence[Record | Refusal], *, size_bytes: int
    ) -> asyncio.Future[list[Answer]]:
        """Send a request's records; the answers come in its order, those of refused events among them.

        The room of its body, `size_bytes`, is given back when the last record has landed.

        Raises:
            Full: there is no room for so many records now.
        """
        lanes = self._lanes[topic]
        records: list[Record | None] = []
        answers: list[Answer | None] = []
        for one in taken:
            if isinstance(one, Refusal):
                records.append(None)
                answers.append(one)
            elif one.partition is not None and one.partition >= len(lanes):
                records.append(None)
                answers.append(
                    Refusal(UNPROCESSABLE, f"{topic} has no partition {one.partition}; it has {len(lanes)}")
                )
            else:
                records.append(one)
                answers.append(None)
        said: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        parcel = Parcel(
            records,
            answers,
            size_bytes=size_bytes,
            deadline_s=time.monotonic() + self._answer_within_s,
            said=said,
            landed=self._landed,
        )
        if self.records + parcel.left > self.most_records:
            raise Full(f"{self.records} of at most {self.most_records} records are on their way")
        if parcel.left == 0:
            self.size_bytes -= size_bytes
            said.set_result(answers)  # type: ignore[arg-type]  (every place is a refusal)
            return said
        self.records += parcel.left
        self._open[parcel] = None
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._sort)
        self._fresh.append((topic, parcel))
        return said

    async def stop(self) -> None:
        """Send everything that was taken, wait for its answers, disconnect."""
        await self.telegraph.stop()
        for task in self._watching:
            task.cancel()
        if self._watching:
            await asyncio.wait(self._watching)

    def _sort(self) -> None:
        """Everything that came since the last turn of the loop, to the lanes of its partitions."""
        fresh, self._fresh = self._fresh, []
        by_topic: dict[str, list[tuple[Parcel, int]]] = {}
        for topic, parcel in fresh:
            places = by_topic.setdefault(topic, [])
            places += [(parcel, at) for at, record in enumerate(parcel.records) if record is not None]
        for topic, places in by_topic.items():
            lanes = self._lanes[topic]
            records: list[Record] = [parcel.records[at] for parcel, at in places]  # type: ignore[misc]
            keys = [record.key or b"" for record in records]
            if len(keys) > _FEW:
                of = partitions_for(keys, len(lanes)).tolist()
            else:
                of = [(_remembered if len(key) <= _SHORT else partition_for)(key, len(lanes)) for key in keys]
            for (parcel, at), record, number in zip(places, records, of, strict=True):
                if record.partition is not None:
                    chosen = record.partition
                elif record.key is None:
                    self._turn = chosen = (self._turn + 1) % len(lanes)
                else:
                    chosen = number
                lanes[chosen].put(parcel, at)
            for lane in lanes:
                lane.wake()

    def _landed(self, parcel: Parcel) -> None:
        self._open.pop(parcel, None)
        self.records -= len(parcel.records) - parcel.records.count(None)
        self.size_bytes -= parcel.size_bytes
        if not parcel.said.done():
            parcel.said.set_result(parcel.answers)  # type: ignore[arg-type]  (none is left open)

    async def _give_up(self) -> None:
        """Answer requests whose records are on their way for too long. Their room stays taken."""
        why = Refusal(
            503,
            f"the cluster has not confirmed it within {self._answer_within_s:g} s: it may still arrive; "
            "send it again",
        )
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            for parcel in self._open:
                if parcel.deadline_s > now_s:
                    break  # the others came later
                if not parcel.said.done():
                    parcel.said.set_result([why if one is None else one for one in parcel.answers])

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self.telegraph.ask()
                await self._look()
            except KafkaError as error:
                log.warning("partitions are not known anew", error=str(error) or type(error).__name__)

    async def _look(self) -> None:
        for topic in self._topics:
            lanes = self._lanes.setdefault(topic, [])
            for number in range(len(lanes), await self.telegraph.partitions(topic)):
                lanes.append(Lane(self.telegraph, topic, number, confirmed=self._confirmed))
