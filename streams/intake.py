"""What a worker takes in: its partitions, how far each is, and the frames in the order of their offsets.

A frame is a repeat (dropped), the next one (taken), or one too far ahead because something between got lost
on the way (read again), whatever Kafka's group, Faust's buffers or a crash do to frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog
from faust.types import TP

from infra.observe import metrics
from streams.ledger.commit import Partition
from streams.observed import WorkerMetrics
from streams.queue import Arrived, FrameQueue
from streams.transport.frame import Frame

log = structlog.get_logger(__name__)

# Frames that were fetched before a seek may still come for so long.
_SEEK_AGAIN_S = 2.0
# A partition of which more was fetched than came has lost a frame on the way.
_STALLED_S = 3.0


class Consumer(Protocol):
    """What the worker asks of Faust's consumer."""

    async def perform_seek(self) -> None: ...

    async def seek_back(self, positions: Mapping[TP, int]) -> None: ...

    async def bounds(self, partitions: set[TP]) -> dict[TP, tuple[int, int]]: ...

    def fetched_up_to(self, tp: TP) -> int | None: ...

    def mark_durable(self, tp: TP, next_offset: int) -> None: ...


class Intake:
    """Brings frames to the queue. `expected` has the next offset of each partition that the worker reads."""

    consumer: Consumer

    def __init__(self, queue: FrameQueue, observed: WorkerMetrics) -> None:
        self.expected: dict[Partition, int] = {}
        self._queue = queue
        self._observed = observed
        self._sought_at: dict[Partition, float] = {}
        self._heard_at: dict[Partition, float] = {}
        self._takes_any = True

    def release(self) -> None:
        """No partition is read any more: a frame that still comes is another's."""
        self.expected.clear()

    def begin(self, starts: Mapping[Partition, int]) -> None:
        """From now on these partitions are read, each from its offset."""
        self.expected.update(starts)
        self._heard_at |= dict.fromkeys(starts, time.monotonic())

    def end(self) -> None:
        """Nothing is taken any more, and nobody waits for what was."""
        self._takes_any = False
        self._queue.drop()

    async def accept(self, tp: TP, frame: Frame, done: Callable[[], object]) -> None:
        """Take a frame in; `done` is called once its rows are in the dataset, or it is known to be a repeat.

        Waits while too much is queued: that is the backpressure on the fetch.
        """
        partition = (frame.topic, frame.partition)
        self._heard_at[partition] = time.monotonic()
        expected = self.expected.get(partition)
        if not self._takes_any or expected is None or frame.next <= expected:
            done()
        elif frame.first > expected:
            done()
            await self._read_again(tp, expected)
        else:
            self.expected[partition] = frame.next
            await self._queue.put(Arrived(frame.since(expected), done))
            if not self._takes_any:
                self._queue.drop()  # it came while there was no room, and nobody takes it any more

    def silent_s(self) -> dict[Partition, float]:
        """For how long nothing has come of each partition."""
        now = time.monotonic()
        return {partition: now - self._heard_at.get(partition, now) for partition in self.expected}

    async def find_lost(self) -> None:
        """Read again where a frame got lost on the way and none came after it."""
        if self._queue.is_full():
            return
        for partition, silent_s in self.silent_s().items():
            fetched = self.consumer.fetched_up_to(TP(*partition)) if silent_s > _STALLED_S else None
            expected = self.expected.get(partition)
            if fetched is not None and expected is not None and fetched > expected:
                await self._read_again(TP(*partition), expected)

    async def _read_again(self, tp: TP, expected: int) -> None:
        """What lies at the expected offset was lost between fetch and agent."""
        now, partition = time.monotonic(), (tp.topic, tp.partition)
        if now - self._sought_at.get(partition, -_SEEK_AGAIN_S) < _SEEK_AGAIN_S:
            return
        self._sought_at[partition] = now
        self._observed.count(metrics.REWINDS)
        log.info("reading again", topic=tp.topic, partition=tp.partition, at=expected)
        try:
            await self.consumer.seek_back({tp: expected})
        except Exception as error:
            log.warning("could not seek, will try again", partition=partition, error=str(error))
