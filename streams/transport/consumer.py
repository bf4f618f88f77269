"""Faust's consumer with the ledger as the one owner of positions.

Faust keeps acks so that a rebalance waits for work in flight; what it would seek to and commit is
replaced: positions are asked of the ledger, and Kafka's committed offsets only follow it, for lag tools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from typing import Any

from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.transport.fetch import FrameFetchThread
from streams.transport.frame import Frame

Positions = Callable[[Set[TP]], Awaitable[Mapping[TP, int]]]
"""Where reading of newly assigned partitions starts."""


class _NothingRead(defaultdict):
    """Faust's note of what it read last, always empty.

    Stock Faust silently drops a message below the last offset it read. After a seek back that would be
    the very frame that is needed; whether a frame is a repeat is the ledger's to say.
    """

    def __missing__(self, key: TP) -> None:
        return None

    def __getitem__(self, key: TP) -> None:
        return None


class FrameConsumer(Consumer):
    """Consumer whose messages are frames."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _NothingRead()
        self._durable: dict[TP, int] = {}

    def _new_consumer_thread(self) -> FrameFetchThread:
        return FrameFetchThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        frame: Frame = record
        return ConsumerMessage(
            frame.topic,
            frame.partition,
            frame.first,
            frame.timestamp_ms / 1000,
            0,
            [],
            None,
            frame,  # type: ignore[arg-type]
            None,
            0,
            frame.size_bytes,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Faust seeks, and so asks for positions, only where there is something assigned."""
        await super().on_partitions_assigned(assigned, generation_id)
        if not assigned:
            self.app.nothing_assigned()  # type: ignore[attr-defined]

    async def perform_seek(self) -> None:
        """Seek every assigned partition to where the ledger says."""
        assigned = set(self.assignment())
        if not assigned:
            return
        self._durable = {tp: n for tp, n in self._durable.items() if tp in assigned}
        thread: FrameFetchThread = self._thread  # type: ignore[assignment]
        decide: Positions = self.app.positions  # type: ignore[attr-defined]
        await thread.seek_all(await decide(assigned))

    async def bounds(self, partitions: set[TP]) -> dict[TP, tuple[int, int]]:
        """First and end offset of each partition, as the broker has them now."""
        thread: FrameFetchThread = self._thread  # type: ignore[assignment]
        return await thread.bounds(partitions)

    def fetched_up_to(self, tp: TP) -> int | None:
        """Offset that is fetched next; None where the partition is not assigned or nothing was sought yet."""
        thread: FrameFetchThread = self._thread  # type: ignore[assignment]
        return thread.next_offsets.get(tp)

    async def seek_back(self, positions: Mapping[TP, int]) -> None:
        """Fetch again from these offsets: a frame between them and what came last was lost on the way."""
        thread: FrameFetchThread = self._thread  # type: ignore[assignment]
        await thread.seek_all(positions)

    def mark_durable(self, tp: TP, next_offset: int) -> None:
        """The dataset holds all below `next_offset`: Kafka's committed offset may follow."""
        self._durable[tp] = next_offset

    # What stock Faust would commit is derived from single acks; here it is what the ledger holds.

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self._durable if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return self._durable.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Frames have no gaps: stock would mark a frame's own offsets as done."""

    def on_buffer_full(self, tp: TP) -> None:
        """The bounded queue gives the backpressure; stock would sleep a second when all are full."""

    def on_buffer_drop(self, tp: TP) -> None:
        """See `on_buffer_full`."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Stock warns by single offsets, which frames do not have; lag is on the monitor."""
