"""What a worker takes in: whatever happens to frames on the way, each record once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from infra.observe.instruments import Instruments
from streams import intake as module
from streams.intake import Intake
from streams.observed import WorkerMetrics
from streams.pipelines.flights import flights
from streams.queue import FrameQueue
from streams.transport.frame import Frame
from tests.stream_fixtures import frame_of

RECORDS = 20
TOPIC, NUMBER = "readings", 0
MINE = TP(TOPIC, NUMBER)


class Reader:
    """Faust's consumer, as far as an intake asks it: it remembers where it was sent back to."""

    def __init__(self) -> None:
        self.back: list[int] = []
        self.fetched: int | None = None
        self.fails = False

    async def seek_back(self, positions: Mapping[TP, int]) -> None:
        self.back.append(positions[MINE])
        if self.fails:
            raise ConnectionError("the group is being shared out")

    def fetched_up_to(self, tp: TP) -> int | None:
        assert tp == MINE
        return self.fetched


def intake_of(most_rows: int = 1_000) -> tuple[Intake, FrameQueue, Reader]:
    queue, reader = FrameQueue(most_rows, 2**30), Reader()
    observed = WorkerMetrics(flights, queue, Instruments("worker"), contact_age_s=lambda: 0.0)
    intake = Intake(queue, observed)
    intake.consumer = reader  # type: ignore[assignment]
    return intake, queue, reader


def frame(first: int, count: int) -> Frame:
    return frame_of([b"%d" % offset for offset in range(first, first + count)], first=first)


def offsets_of(queue: FrameQueue) -> list[int]:
    return [offset for arrived in queue.frames for offset in arrived.frame.offsets]


@given(st.lists(st.tuples(st.integers(0, RECORDS - 1), st.integers(1, 6)), max_size=60))
def test_whatever_frames_come_each_record_is_taken_once_and_in_order(
    frames: list[tuple[int, int]],
) -> None:
    async def come() -> None:
        intake, queue, reader = intake_of()
        intake.begin({(TOPIC, NUMBER): 3})
        told: list[int] = []
        for number, (first, count) in enumerate(frames):
            had = intake.expected[TOPIC, NUMBER]
            await intake.accept(MINE, frame(first, count), lambda n=number: told.append(n))
            taken, is_lost = intake.expected[TOPIC, NUMBER] > had, first > had
            # Nobody waits for a repeat, or for what will be read again; for what is taken, till the commit.
            assert (told[-1:] == [number]) == (not taken)
            assert not (taken and is_lost)
            assert reader.back or not is_lost
        assert offsets_of(queue) == list(range(3, intake.expected[TOPIC, NUMBER]))

    asyncio.run(come())


async def test_another_workers_partition_is_not_taken() -> None:
    intake, queue, _ = intake_of()
    intake.begin({(TOPIC, NUMBER): 0})
    intake.release()
    told = []
    await intake.accept(MINE, frame(0, 5), lambda: told.append(0))
    assert told == [0]
    assert offsets_of(queue) == []


async def test_a_gap_is_read_again_once_in_a_while_also_where_seeking_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    intake, queue, reader = intake_of()
    intake.begin({(TOPIC, NUMBER): 0})
    reader.fails = True
    for first in (5, 7, 9):
        await intake.accept(MINE, frame(first, 2), lambda: None)
    assert reader.back == [0], "the frames that were fetched before still come"
    monkeypatch.setattr(module, "_SEEK_AGAIN_S", 0.0)
    reader.fails = False
    await intake.accept(MINE, frame(11, 2), lambda: None)
    assert reader.back == [0, 0]
    await intake.accept(MINE, frame(0, 5), lambda: None)
    assert offsets_of(queue) == [0, 1, 2, 3, 4]


async def test_a_frame_that_got_lost_is_missed_though_none_comes_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    intake, _, reader = intake_of()
    intake.begin({(TOPIC, NUMBER): 0})
    await intake.accept(MINE, frame(0, 5), lambda: None)
    reader.fetched = 9
    await intake.find_lost()
    assert reader.back == [], "it may be on its way"
    monkeypatch.setattr(module, "_STALLED_S", 0.0)
    await intake.find_lost()
    assert reader.back == [5]
    reader.fetched = 5
    monkeypatch.setattr(module, "_SEEK_AGAIN_S", 0.0)
    await intake.find_lost()
    assert reader.back == [5], "all that was fetched has come"


async def test_who_waits_for_room_when_it_ends_waits_no_more() -> None:
    intake, queue, _ = intake_of(most_rows=2)
    intake.begin({(TOPIC, NUMBER): 0})
    told: list[int] = []
    await intake.accept(MINE, frame(0, 4), lambda: told.append(0))
    waiting = asyncio.create_task(intake.accept(MINE, frame(4, 4), lambda: told.append(4)))
    await asyncio.sleep(0)
    assert not waiting.done()
    intake.end()
    await waiting
    assert sorted(told) == [0, 4]
    await intake.accept(MINE, frame(8, 4), lambda: told.append(8))
    assert sorted(told) == [0, 4, 8]
    assert offsets_of(queue) == []
