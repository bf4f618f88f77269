"""The queue of frames: batches of so many rows, whatever a record holds, and nobody told too early."""

from __future__ import annotations

import asyncio
import io
import time
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from infra.kafka.topics import ensure
from infra.settings_model import Kafka, Worker
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.envelope import ARROW_STREAM, open_record, unwrap
from schemas.topics import CONTENT_TYPE_HEADER
from streams.announce.outbox import Outbox
from streams.letters import AT_A_TIME, Letters
from streams.pipelines.flights import flights
from streams.queue import Arrived, FrameQueue
from streams.transport.frame import Frame, Headers
from streams.worker import StreamWorker
from tests.stream_fixtures import frame_of

ARROW: Headers = ((CONTENT_TYPE_HEADER, ARROW_STREAM.encode()),)
MOST_ROWS = 10


def arrow_of(rows: int) -> bytes:
    sink = io.BytesIO()
    pl.DataFrame({"id": [str(n) for n in range(rows)]}).write_ipc_stream(sink)
    return sink.getvalue()


def frame(rows: list[int | None], *, first: int = 0) -> Frame:
    """A record for each: an Arrow record of so many rows; None: one of JSON."""
    values = [b"{}" if count is None else arrow_of(count) for count in rows]
    headers = {index: ARROW for index, count in enumerate(rows) if count is not None}
    return frame_of(values, first=first, headers=headers)


@given(sizes=st.lists(st.lists(st.none() | st.integers(0, 15), min_size=1, max_size=12), max_size=5))
@settings(deadline=None)
def test_batches_hold_every_record_in_order_and_no_more_rows_than_they_may(
    sizes: list[list[int | None]],
) -> None:
    async def drained() -> None:
        queue = FrameQueue(MOST_ROWS, 2**30)
        told: list[int] = []
        sent: list[tuple[int, bytes | None]] = []
        frames: list[Frame] = []
        for rows in sizes:
            frames.append(own := frame(rows, first=len(sent)))
            sent += zip(own.offsets, own.values, strict=True)

        async def fill() -> None:
            for number, own in enumerate(frames):
                await queue.put(Arrived(own, lambda number=number: told.append(number)))

        filling = asyncio.create_task(fill())
        heights = [max(1, rows or 1) for own in sizes for rows in own]
        got: list[tuple[int, bytes | None]] = []
        while len(got) < len(sent):
            await asyncio.sleep(0)
            batch = queue.take()
            records = sum(len(each.frame) for each in batch)
            assert records == 1 or sum(heights[len(got) : len(got) + records]) <= MOST_ROWS
            for each in batch:
                assert each.frame.first == len(got)
                got += zip(each.frame.offsets, each.frame.values, strict=True)
                assert each.frame.next == len(got)
                each.done()
            ends = [sum(map(len, sizes[: n + 1])) for n in range(len(sizes))]
            assert told == [n for n, end in enumerate(ends) if end <= len(got)]
        await filling
        assert got == sent
        assert (queue.rows, queue.size_bytes) == (0, 0)

    asyncio.run(drained())


def test_a_parted_frame_keeps_what_belongs_to_each_record() -> None:
    whole = frame([3, None, 2, None], first=7)
    whole.stamps, whole.unread = [(0, 100), (2, 200)], {3: "too large"}
    head, rest = whole.parted(3)
    assert [head.timestamp_of(n) for n in range(3)] + [rest.timestamp_of(0)] == [100, 100, 200, 200]
    assert (set(head.headers), set(rest.headers), rest.unread) == ({0, 2}, set(), {0: "too large"})
    assert (head.first, head.next, rest.first, rest.next) == (7, 10, 10, 11)
    assert head.size_bytes + rest.size_bytes == whole.size_bytes


def test_rows_of_arrow_records_fill_the_queue() -> None:
    async def filled() -> None:
        queue = FrameQueue(MOST_ROWS, 2**30)
        await queue.put(Arrived(frame([15]), lambda: None))
        assert not queue.is_full()
        await queue.put(Arrived(frame([5], first=1), lambda: None))
        assert (queue.rows, queue.is_full()) == (20, True)
        queue.drop()
        assert (queue.rows, queue.is_full()) == (0, False)

    asyncio.run(filled())


def test_a_damaged_arrow_record_counts_as_one_row() -> None:
    damaged = frame_of([arrow_of(9)[:-4]], headers={0: ARROW})
    assert Arrived(damaged, lambda: None).rows == 1


def test_a_queue_is_as_full_as_its_rows_or_its_bytes_say() -> None:
    async def filled() -> None:
        by_rows, by_bytes = FrameQueue(MOST_ROWS, 2**30), FrameQueue(2**30, 8)
        for queue in (by_rows, by_bytes):
            await queue.put(Arrived(frame([None, None, None]), lambda: None))
        assert by_rows.fullness() == 3 / MOST_ROWS
        assert by_bytes.fullness() == 6 / 8
        await by_bytes.put(Arrived(frame([None] * 5, first=3), lambda: None))
        assert by_bytes.is_full()

    asyncio.run(filled())


async def test_a_worker_sifts_ahead_what_is_full_by_its_bytes(tmp_path: Path) -> None:
    nowhere = Connection(bootstrap_servers="127.0.0.1:1")
    options = Worker(batch_bytes=8, coalesce_ms=1)
    worker = StreamWorker(flights, dataset_dir=tmp_path, connection=nowhere, options=options)
    worker._nothing_in_hand.clear()
    await worker._queue.put(Arrived(frame([None] * 3), lambda: None))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await worker._worth_taking()
    await worker._queue.put(Arrived(frame([None], first=3), lambda: None))
    async with asyncio.timeout(10):
        await worker._worth_taking()


async def test_what_is_not_full_waits_for_more_after_the_batch_before_but_not_after_a_rest(
    tmp_path: Path,
) -> None:
    nowhere = Connection(bootstrap_servers="127.0.0.1:1")
    options = Worker(batch_rows=3, coalesce_ms=60_000)
    worker = StreamWorker(flights, dataset_dir=tmp_path, connection=nowhere, options=options)
    await worker._queue.put(Arrived(frame([None]), lambda: None))
    async with asyncio.timeout(10):
        await worker._worth_taking()
    worker._queue.take()
    worker._took_at = time.monotonic()
    await worker._queue.put(Arrived(frame([None], first=1), lambda: None))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await worker._worth_taking()
    await worker._queue.put(Arrived(frame([None] * 2, first=2), lambda: None))
    async with asyncio.timeout(10):
        await worker._worth_taking()


async def test_a_batch_of_nothing_but_dead_letters_leaves_the_event_loop_to_others_between(
    kafka: EmbeddedBroker, tmp_path: Path
) -> None:
    cluster = connect_to(Kafka(), kafka.bootstrap_servers)
    await ensure(topics.TOPICS, cluster)
    letters = Letters(flights.name, "/tidemill/flights")
    refused = [
        DeadLetter(
            pipeline="in-pieces",
            topic="raw",
            partition=0,
            offset=offset,
            reason="malformed",
            rule="value",
            detail="no JSON",
        )
        for offset in range(2 * AT_A_TIME + 5_000)
    ]
    out = [0]

    async def look() -> None:
        while True:
            out.append(len(letters.known))
            await asyncio.sleep(0)

    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, max_request_size=2**24
    ) as producer:
        letters.outbox = Outbox(producer)
        looking = asyncio.create_task(look())
        await letters.publish(refused)
        looking.cancel()
        # As after a commit that failed: they are out, and not said again.
        await letters.publish(refused)
    assert max(after - before for before, after in pairwise(out)) <= AT_A_TIME
    said = [
        letter.event_id()
        async for record in read_to_end(cluster, {topics.DEAD_LETTERS.name: None})
        if isinstance(letter := unwrap(open_record(record.key, record.value, record.headers)), DeadLetter)
        and letter.pipeline == "in-pieces"
    ]
    assert said == [letter.event_id() for letter in refused]
