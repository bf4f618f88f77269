"""The fetch thread: what it is asked while it ends, and what has expired behind the worker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import ConsumerStoppedError
from faust.types import TP

from streams.ledger.positions import PositionLost
from streams.transport.fetch import FrameFetchThread
from streams.transport.frame import Frame, column

AT = TP("flights", 0)


class SlowToEnd(FrameFetchThread):
    """Without a cluster, and as slow at its end as one that says goodbye to a cluster that is away."""

    takes_no_more: asyncio.Event

    async def on_start(self) -> None:
        """There is no cluster to join."""

    async def on_thread_stop(self) -> None:
        await super().on_thread_stop()
        self.parent_loop.call_soon_threadsafe(self.takes_no_more.set)
        await asyncio.sleep(0.5)


def thread(*, taken: int | None = None) -> SlowToEnd:
    # Of Faust's consumer and app it is given what its constructor asks for; a race needs no more of them.
    conf = SimpleNamespace(
        producer_partitioner=None, stream_processing_timeout=60.0, broker_commit_livelock_soft_timeout=60.0
    )
    app = SimpleNamespace(conf=conf, taken_up_to=lambda _tp: taken)
    transport = SimpleNamespace(app=app)
    consumer = SimpleNamespace(app=app, transport=transport, RebalanceListener=lambda _thread: None)
    made = SlowToEnd(consumer)
    made.takes_no_more = asyncio.Event()
    return made


async def seven() -> int:
    return 7


async def test_a_question_to_a_thread_that_ends_gets_an_end_instead_of_waiting_for_ever() -> None:
    fetching = thread()
    await fetching.start()
    assert await fetching.call_thread(seven) == 7
    ending = asyncio.create_task(fetching.stop())
    await fetching.takes_no_more.wait()
    async with asyncio.timeout(20):
        with pytest.raises(ConsumerStoppedError):
            await fetching.call_thread(seven)
        await ending
        with pytest.raises(ConsumerStoppedError):
            await fetching.call_thread(seven)
        assert await fetching.commit({AT: 3}) is False


def frame(first: int, after: int) -> Frame:
    return Frame(
        topic=AT.topic,
        partition=AT.partition,
        first=first,
        next=after,
        offsets=list(range(first, after)),
        keys=column([None] * (after - first)),
        values=column([b"{}"] * (after - first)),
    )


async def test_what_expired_is_lost_unless_the_worker_has_taken_it_already() -> None:
    behind, level, anew = thread(taken=120), thread(taken=130), thread(taken=130)
    behind.next_offsets[AT] = 30
    with pytest.raises(PositionLost, match="100 records expired unread"):
        behind._goes_on(AT, [frame(130, 140)])
    level.next_offsets[AT] = 30
    assert level._goes_on(AT, [frame(130, 140), frame(140, 150)])
    assert level.next_offsets[AT] == 150
    anew.next_offsets[AT] = 130
    with pytest.raises(PositionLost, match=r"made anew|deleted"):
        anew._goes_on(AT, [frame(0, 10)])
    for each in (behind, level, anew):
        each.thread_loop.close()
