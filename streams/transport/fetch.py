"""The fetch thread: drains aiokafka's fetcher in frames.

Reaches into private members of aiokafka 0.14 and Faust 0.15.3, both pinned exactly; the kill, rebalance
and seek tests run whenever a pin moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import aiokafka
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import ConsumerStoppedError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import (
    AIOKafkaConsumerThread,
    credentials_to_aiokafka_auth,
    server_list,
)
from faust.types import TP

from infra.kafka.reach import patiently
from streams.ledger.commit import Partition
from streams.ledger.positions import PositionLost, expired, made_anew
from streams.transport.frame import Frame, read_frame
from streams.transport.pace import IDLE_MS, Pace
from streams.transport.receive import receive_in_place

_FETCHED_BYTES = 32 * 2**20
_LEAST_FETCH_BYTES, MOST_FETCH_BYTES = 256 * 2**10, 4 * 2**20
_COMMIT_S = 5.0
_STOP_S = 10.0
_ASK_S = 5.0
_LOOK_S = 1.0


def fetch_bytes(partitions: int) -> int:
    """How much one fetch may bring of each of so many partitions: of all together about the same.

    What was fetched lies in memory until the pipeline has room for it. Kafka sends a batch of records that is
    larger all the same.
    """
    return min(MOST_FETCH_BYTES, max(_LEAST_FETCH_BYTES, _FETCHED_BYTES // max(partitions, 1)))


class FrameFetchThread(AIOKafkaConsumerThread):
    """Faust's consumer thread, handing out frames.

    `next_offsets` says where each partition is read on: moved by seeks and by what is fetched, and by
    nothing else.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.next_offsets: dict[TP, int] = {}
        self._was_assigned = False
        self._pace = Pace(time.monotonic())
        self._mixed: dict[Partition, int] = {}

    def _create_worker_consumer(self, transport) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = RoundRobinPartitionAssignor
        receive_in_place()
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=",".join(server_list(transport.url, transport.default_port)),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            # Positions come from the ledger. Where a position has expired the fetcher goes to the
            # earliest record, and the ledger notices the gap: never a silent reset.
            auto_offset_reset="earliest",
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 0) * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=IDLE_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level="read_committed",
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
            **credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )

    async def on_start(self) -> None:
        """Connect, also to a cluster that went away since the worker began."""
        consumer = self._consumer = self._create_consumer(loop=self.thread_loop)
        self.time_started = time.monotonic()
        await patiently(consumer.start, patience_s=self.app.patience_s)  # type: ignore[attr-defined]

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Until they are sought anew, nothing is read of any partition."""
        self.next_offsets.clear()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """See `on_partitions_revoked`."""
        self.next_offsets.clear()
        await super().on_partitions_assigned(assigned, generation_id)
        consumer = self._ensure_consumer()
        if consumer._fetcher is not None:
            consumer._fetcher._max_partition_fetch_bytes = fetch_bytes(len(consumer.assignment()))
        if not assigned and not self._was_assigned and self.app.conf.consumer_group_instance_id:
            # A static member that comes back gets what its name had. That is nothing, for ever, if its last
            # life shared out while a broker that had just begun told of no partition: ask for it to be done
            # anew.
            self.log.info("Nothing is assigned to this member's name: joining again")
            coordinator = consumer._coordinator
            if isinstance(coordinator, GroupCoordinator):
                coordinator.request_rejoin()
        self._was_assigned = True

    async def on_thread_stop(self) -> None:
        """End, also while the cluster is away.

        aiokafka then lets the cancellation of its own fetch out of its stop: the thread would be gone without
        having said so, and the worker would wait for it for ever.
        """
        try:
            async with asyncio.timeout(_STOP_S):
                await super().on_thread_stop()
        except (asyncio.CancelledError, TimeoutError, KafkaError) as error:
            self.log.info("The consumer did not say goodbye to the cluster: %r", error)

    async def call_thread(self, fun: Callable[..., Awaitable], *args: Any, **kwargs: Any) -> Any:
        """Ask the thread. One that is ending takes no more questions; stock waits for its answer for ever.

        Raises:
            ConsumerStoppedError: the thread has ended without an answer.
        """
        asked = asyncio.ensure_future(super().call_thread(fun, *args, **kwargs))
        try:
            while not asked.done():
                had_ended = self.thread_loop.is_closed()
                await asyncio.wait({asked}, timeout=_LOOK_S)
                if had_ended and not asked.done():
                    raise ConsumerStoppedError
            return asked.result()
        except RuntimeError as error:
            if self.thread_loop.is_closed():
                raise ConsumerStoppedError from error
            raise
        finally:
            asked.cancel()

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """See `_commit`; whoever ends commits once more, also when the thread has ended before him."""
        try:
            return await super().commit(offsets)
        except ConsumerStoppedError:
            return False

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Kafka's committed offsets decide nothing here: where they cannot be written, nothing ends."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        try:
            # aiokafka looks for the group's coordinator for ever: a worker could not end without a cluster.
            async with asyncio.timeout(_COMMIT_S):
                await consumer.commit({tp: at for tp, at in wanted.items() if tp in assigned})
        except (KafkaError, TimeoutError) as error:
            self.log.info("Offsets for lag tools were not committed: %r", error)
            return False
        return True

    async def seek_all(self, positions: Mapping[TP, int]) -> None:
        """Move the fetch positions of assigned partitions; what was fetched for them is thrown away."""
        await self.call_thread(self._seek_all, positions)

    async def _seek_all(self, positions: Mapping[TP, int]) -> None:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        self.next_offsets = {tp: n for tp, n in self.next_offsets.items() if TopicPartition(*tp) in assigned}
        for tp, offset in positions.items():
            if TopicPartition(*tp) in assigned:
                consumer.seek(TopicPartition(*tp), offset)
                self.next_offsets[TP(*tp)] = offset

    async def bounds(self, partitions: set[TP]) -> dict[TP, tuple[int, int]]:
        """First and end offset of each partition that there is, as the broker has them now."""
        return await self.call_thread(self._bounds, partitions)

    async def _bounds(self, partitions: set[TP]) -> dict[TP, tuple[int, int]]:
        consumer = self._ensure_consumer()
        wanted = [TopicPartition(*tp) for tp in partitions]
        while wanted:
            # Of a topic that was deleted aiokafka asks until its request times out, and whoever waits for the
            # ledger meanwhile waits with it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_S):
                    first, end = await asyncio.gather(
                        consumer.beginning_offsets(wanted), consumer.end_offsets(wanted)
                    )
                    return {TP(tp.topic, tp.partition): (first[tp], end[tp]) for tp in wanted}
            wanted = [tp for tp in wanted if tp.partition in (consumer.partitions_for_topic(tp.topic) or ())]
        return {}

    async def _fetch_records(self, consumer, active_partitions, timeout=None, max_records=None):  # noqa: ARG002, ASYNC109
        if not self.consumer.flow_active:
            return {}
        fetcher: Fetcher | None = consumer._fetcher
        if consumer._closed or fetcher is None or fetcher._closed:
            raise ConsumerStoppedError
        # A copy: Faust empties the live set while it rebalances, and an empty set reads as "all".
        wanted = frozenset(active_partitions)
        if not wanted:
            return {}
        with fetcher._subscriptions.fetch_context():
            drained = await _drain(fetcher, wanted, timeout or 0.0, self._mixed)
        sent_bytes = sum(frame.sent_bytes for frames in drained.values() for frame in frames)
        least_bytes, wait_ms = self._pace.after(sent_bytes, time.monotonic())
        # Each broker is asked by itself, and has its share.
        brokers = max(1, len(consumer._client.cluster.brokers()))
        fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = max(1, least_bytes // brokers), wait_ms
        try:
            return {tp: frames for tp, frames in drained.items() if self._goes_on(tp, frames)}
        except PositionLost as lost:
            # The producer that says so lives on the other loop.
            say: Coroutine[Any, Any, None] = self.app.position_lost(lost)  # type: ignore[attr-defined]
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(say, self.parent_loop))
            raise

    def _goes_on(self, tp: TP, frames: list[Frame]) -> bool:
        """Whether these frames are where reading stood; what comes before the first seek is nobody's.

        Raises:
            PositionLost: reading stood elsewhere: the fetcher found nothing there and went to the beginning.
        """
        for frame in frames:
            at = self.next_offsets.get(tp)
            if at is None:
                return False
            if frame.first > at and (self.app.taken_up_to(tp) or 0) >= frame.first:  # type: ignore[attr-defined]
                # What was late on its way was asked for again, came, and has expired since.
                self.log.info("%s/%s: all that expired before %s is taken", *tp, frame.first)
            elif frame.first != at:
                what = expired if frame.first > at else made_anew
                raise what(tp.topic, tp.partition, at, first=frame.first, end=frame.next)
            self.next_offsets[tp] = frame.next
        return True


async def _drain(
    fetcher: Fetcher, wanted: frozenset[TP], timeout_s: float, mixed: dict[Partition, int] | None = None
) -> dict[TP, list[Frame]]:
    """Frames of all wanted partitions that have some, waiting up to `timeout_s` for the first."""
    deadline = time.monotonic() + timeout_s
    while True:
        if fetcher._subscriptions.reassignment_in_progress:
            await fetcher._subscriptions.wait_for_assignment()
        drained = _take_fetched(fetcher, wanted, mixed)
        left_s = deadline - time.monotonic()
        if drained or left_s <= 0:
            return drained
        waiter = fetcher._create_fetch_waiter()
        done, _ = await asyncio.wait([waiter], timeout=left_s)
        if not done or fetcher._closed:
            waiter.cancel()
            return {}
        waiter.result()  # raises what the fetcher met, such as a refused authorisation


def _take_fetched(
    fetcher: Fetcher, wanted: frozenset[TP], mixed: dict[Partition, int] | None
) -> dict[TP, list[Frame]]:
    drained: dict[TP, list[Frame]] = {}
    for tp in list(fetcher._records):
        if tp not in wanted:
            if not fetcher._subscriptions.is_assigned(tp):
                del fetcher._records[tp]
            continue
        fetched = fetcher._records[tp]
        if type(fetched) is not FetchResult:
            if drained:
                return drained  # the error is raised by the next call
            del fetcher._records[tp]
            fetcher._notify(fetcher._wait_consume_future)
            fetched.check_raise()
            continue
        frame = _take(fetched, tp, mixed)
        del fetcher._records[tp]
        fetcher._notify(fetcher._wait_consume_future)
        if frame is not None:
            drained[TP(tp.topic, tp.partition)] = [frame]
    return drained


def _take(fetched: FetchResult, tp: TopicPartition, mixed: dict[Partition, int] | None) -> Frame | None:
    if not fetched.check_assignment(tp):
        return None
    records = fetched._partition_records
    if records is None:  # read to its end
        return None
    # A generator that is never begun and holds the records that hold it: with it the whole response of the
    # broker would stay until the garbage collector's next full round, hundreds of megabytes later.
    records._records_iterator = None
    frame = read_frame(records, topic=tp.topic, partition=tp.partition, mixed=mixed)
    fetched._update_position()
    fetched._partition_records = None
    return frame
