"""Frames off a real broker: contiguous, complete, and byte for byte what was produced.

Beside the frames stands aiokafka's own iterator over the same records, as the judge.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from faust.types import TP

from infra.kafka import EmbeddedBroker
from infra.kafka.storage import NODE_ID
from streams.dead_letter import dead_letter
from streams.decode.records import Decoder
from streams.transport import fetch
from streams.transport.fetch import MOST_FETCH_BYTES, _drain, fetch_bytes
from streams.transport.frame import Frame, read_frame
from streams.transport.inflate import MAX_BATCH_BYTES, Batches
from streams.transport.pace import IDLE_MS, PACE_MS, Pace
from tests.stream_fixtures import Reading

Create = Callable[..., Awaitable[str]]
Record = tuple[int, bytes | None, bytes | None, tuple]


@asynccontextmanager
async def reader(kafka: EmbeddedBroker, topic: str, **changes: Any) -> AsyncIterator[AIOKafkaConsumer]:
    arguments = {"isolation_level": "read_committed", "enable_auto_commit": False, "fetch_max_wait_ms": 100}
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, **{**arguments, **changes})
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def writer(kafka: EmbeddedBroker, **changes: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, **changes)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def frames_from(consumer: AIOKafkaConsumer, topic: str, start: int, end: int) -> list[Frame]:
    """Frames as the fetch thread drains them, from one offset until another is reached."""
    fetcher = consumer._fetcher
    assert fetcher is not None
    consumer.seek(TopicPartition(topic, 0), start)
    return await frames_on(fetcher, topic, end)


async def frames_on(fetcher: Fetcher, topic: str, end: int) -> list[Frame]:
    """Frames from where the fetcher stands."""
    frames: list[Frame] = []
    while not frames or frames[-1].next < end:
        with fetcher._subscriptions.fetch_context():
            async with asyncio.timeout(30):
                drained = await _drain(fetcher, frozenset({TP(topic, 0)}), 5.0)
        frames += drained.get(TP(topic, 0), [])
    return frames


async def judged(consumer: AIOKafkaConsumer, topic: str, start: int, end: int) -> list[Record]:
    tp = TopicPartition(topic, 0)
    consumer.seek(tp, start)
    records: list[Record] = []
    while await consumer.position(tp) < end:
        fetched = (await consumer.getmany(tp, timeout_ms=1000)).get(tp, ())
        records += [(r.offset, r.key, r.value, tuple(r.headers)) for r in fetched]
    return records


def told(frames: list[Frame]) -> list[Record]:
    return [
        (frame.offsets[i], frame.keys[i], frame.values[i], tuple(frame.headers.get(i, ())))
        for frame in frames
        for i in range(len(frame))
    ]


def assert_contiguous(frames: list[Frame], start: int, end: int) -> None:
    assert frames[0].first == start
    assert frames[-1].next == end
    for earlier, later in itertools.pairwise(frames):
        assert earlier.next == later.first
    for frame in frames:
        assert len(frame.values) == len(frame.keys) == len(frame.offsets)
        assert all(frame.first <= offset < frame.next for offset in frame.offsets)
        assert frame.size_bytes >= sum(len(v) for v in frame.values if v)


async def end_of(consumer: AIOKafkaConsumer, topic: str) -> int:
    tp = TopicPartition(topic, 0)
    return (await consumer.end_offsets([tp]))[tp]


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_frames_hold_what_was_produced_whatever_its_compression(
    kafka: EmbeddedBroker, create_topic: Create, codec: str | None
) -> None:
    topic, rng = await create_topic("frames"), random.Random(codec)
    sent: list[Record] = []
    async with writer(kafka, compression_type=codec, linger_ms=3, max_batch_size=4_000) as producer:
        pending = []
        for number in range(3_000):
            key = rng.choice([None, b"", str(number).encode()])
            value = rng.choice([None, b"", rng.randbytes(40), b'{"n": %d}' % number])
            headers = [("a", b"1"), ("b", b"")] if rng.random() < 0.05 else []
            if key is None and value is None:
                key = b"k"
            if number % 500 == 0:
                value, headers = bytes(200_000), [("large", b"x" * 1_000)]
            pending.append(await producer.send(topic, value, key=key, partition=0, headers=headers))
            sent.append((number, key, value, tuple(headers)))
        for each in pending:
            await each
    async with reader(kafka, topic, max_partition_fetch_bytes=2_000) as consumer:
        frames = await frames_from(consumer, topic, 0, 3_000)
        assert len(frames) > 3, "several fetches are needed to show that they join"
        assert_contiguous(frames, 0, 3_000)
        assert told(frames) == sent
        assert all(isinstance(frame.offsets, range) for frame in frames)
        assert all(frame.timestamp_of(i) > 1_700_000_000_000 for frame in frames for i in range(len(frame)))


def test_what_is_fetched_of_all_partitions_together_is_bounded() -> None:
    mib = 2**20
    assert [fetch_bytes(partitions) / mib for partitions in (0, 1, 8, 16, 64, 1_000)] == [
        4,
        4,
        4,
        2,
        0.5,
        0.25,
    ]


async def test_a_running_consumer_takes_another_bound_of_its_fetches(
    kafka: EmbeddedBroker, create_topic: Create
) -> None:
    # What the fetch thread sets once it knows its partitions is a private member of a pinned version.
    topic = await create_topic("bounded")
    async with writer(kafka, max_batch_size=2_000) as producer:
        for _ in range(300):
            await producer.send(topic, bytes(100), partition=0)
        await producer.flush()
    counts = []
    for bound in (MOST_FETCH_BYTES, 4_000):
        async with reader(kafka, topic) as consumer:
            assert consumer._fetcher is not None
            consumer._fetcher._max_partition_fetch_bytes = bound
            counts.append(len(await frames_from(consumer, topic, 0, 300)))
    assert counts[0] == 1
    assert counts[1] > 5


async def test_what_was_read_is_let_go_of_at_once_and_not_by_the_garbage_collector(
    kafka: EmbeddedBroker, create_topic: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await create_topic("let-go")
    read: list[weakref.ref[PartitionRecords]] = []

    def noted(records: PartitionRecords, **where: Any) -> Frame | None:
        read.append(weakref.ref(records))
        return read_frame(records, **where)

    monkeypatch.setattr(fetch, "read_frame", noted)
    async with reader(kafka, topic) as consumer, writer(kafka) as producer:
        await producer.send_and_wait(topic, bytes(200_000), partition=0)
        gc.disable()
        try:
            await frames_from(consumer, topic, 0, 1)
            assert [each() for each in read] == [None] * len(read) != []
        finally:
            gc.enable()


async def test_a_running_consumer_takes_other_least_bytes_of_its_fetches(
    kafka: EmbeddedBroker, create_topic: Create
) -> None:
    topic = await create_topic("paced")
    async with reader(kafka, topic) as consumer, writer(kafka) as producer:
        fetcher = consumer._fetcher
        assert fetcher is not None
        await producer.send_and_wait(topic, bytes(10), partition=0)
        await frames_from(consumer, topic, 0, 1)  # the fetch after it was asked for by the bytes before
        fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = 20_000, 8_000
        await producer.send_and_wait(topic, bytes(10), partition=0)
        frames = await frames_on(fetcher, topic, 2)
        sending = asyncio.create_task(_send_one_by_one(producer, topic, 40, 1_000))
        frames += await frames_on(fetcher, topic, 20)
        await sending
        assert len(frames) <= 3, "twenty came one by one, and were fetched so"


async def _send_one_by_one(producer: AIOKafkaProducer, topic: str, count: int, size_bytes: int) -> None:
    for _ in range(count):
        await producer.send_and_wait(topic, bytes(size_bytes), partition=0)


def test_a_lone_record_does_not_wait_and_a_flood_is_fetched_in_spans() -> None:
    pace = Pace(now_s=10.0)
    assert pace.after(0, now_s=10.5) == (1, IDLE_MS), "nothing came"
    assert pace.after(130, now_s=15.5) == (1, IDLE_MS), "a record in five seconds"
    least_bytes, wait_ms = pace.after(16_000, now_s=15.502)
    assert (least_bytes, wait_ms) == (pytest.approx(8_000_000 * PACE_MS / 1000, abs=1), PACE_MS)
    assert pace.after(10_000, now_s=16.502) == (pytest.approx(10_000 * PACE_MS / 1000, abs=1), PACE_MS)
    assert pace.after(400_000_000, now_s=17.0) == (2**20, PACE_MS), "no fetch waits for more"
    assert pace.after(5_000_000, now_s=17.0) == (2**20, PACE_MS), "no time has passed"
    assert pace.after(0, now_s=17.1) == (1, IDLE_MS), "the flood has ended"


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_batch_that_is_a_thousand_times_larger_than_it_looks_is_set_aside(
    kafka: EmbeddedBroker, create_topic: Create, codec: str
) -> None:
    topic = await create_topic("bomb", settings={"max.message.bytes": str(8 << 20)})
    large = MAX_BATCH_BYTES + 1
    async with writer(
        kafka, compression_type=codec, max_request_size=2 * large, max_batch_size=2 * large
    ) as producer:
        await producer.send_and_wait(topic, b"before", partition=0)
        await producer.send_and_wait(topic, bytes(large), partition=0)
        await producer.send_and_wait(topic, b"after", partition=0)
    async with reader(kafka, topic) as consumer:
        frames = await frames_from(consumer, topic, 0, 3)
        assert_contiguous(frames, 0, 3)
        assert [v for frame in frames for v in frame.values] == [b"before", None, b"after"]
        (why,) = [why for frame in frames for why in frame.unread.values()]
        assert "a batch of 1 records" in why
        refused = [r for frame in frames for r in Decoder(Reading).decode([frame]).refused]
        assert [(r.reason, dead_letter("p", r).offset) for r in refused if r.rule == "batch"] == [
            ("too_large", 1)
        ]


async def test_a_frame_ends_before_it_fills_the_memory(kafka: EmbeddedBroker, create_topic: Create) -> None:
    topic = await create_topic("many", settings={"max.message.bytes": str(8 << 20)})
    size = MAX_BATCH_BYTES // 3
    async with writer(kafka, compression_type="zstd", max_request_size=2 * size) as producer:
        for number in range(8):
            await producer.send_and_wait(topic, bytes([number]) * size, partition=0)
    async with reader(kafka, topic) as consumer:
        frames = await frames_from(consumer, topic, 0, 8)
        assert_contiguous(frames, 0, 8)
        assert max(frame.size_bytes for frame in frames) <= MAX_BATCH_BYTES + size
        assert [v[0] for frame in frames for v in frame.values if v] == list(range(8))


async def test_reading_from_inside_a_batch_and_back_again(
    kafka: EmbeddedBroker, create_topic: Create
) -> None:
    topic = await create_topic("inside")
    async with writer(kafka, compression_type="lz4") as producer:
        for start in range(0, 90, 30):
            batch = producer.create_batch()
            for number in range(start, start + 30):
                batch.append(key=None, value=str(number).encode(), timestamp=None)
            batch.close()
            await (await producer.send_batch(batch, topic, partition=0))
    async with reader(kafka, topic) as consumer:
        for start in (37, 89, 0, 30, 29):
            frames = await frames_from(consumer, topic, start, 90)
            assert_contiguous(frames, start, 90)
            assert [int(v or b"") for frame in frames for v in frame.values] == list(range(start, 90))


async def test_aborted_transactions_and_markers_move_the_position_and_give_nothing(
    kafka: EmbeddedBroker, create_topic: Create
) -> None:
    topic = await create_topic("transactions")
    committed: list[bytes] = []
    async with (
        writer(kafka, transactional_id=topic) as one,
        writer(kafka, transactional_id=topic + "b") as other,
    ):
        for number in range(12):
            await one.begin_transaction()
            await other.begin_transaction()
            value = b"one %d" % number
            for producer in (one, other, one):
                await producer.send_and_wait(
                    topic, value if producer is one else b"other %d" % number, partition=0
                )
            if number % 3 == 2:
                await one.commit_transaction()
                committed += [value, value]
            else:
                await one.abort_transaction()
            await other.abort_transaction()
    async with reader(kafka, topic) as consumer:
        async with asyncio.timeout(30):
            # A transaction is answered for before its marker stands in the topic.
            while (end := await end_of(consumer, topic)) < 12 * 5:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert end == 12 * 5
        frames = await frames_from(consumer, topic, 0, end)
        assert_contiguous(frames, 0, end)
        assert [v for frame in frames for v in frame.values] == committed
        assert told(frames) == await judged(consumer, topic, 0, end)
    async with reader(kafka, topic) as consumer:
        # From within: what was aborted before stays hidden.
        for start in (1, 7, 13, end - 1):
            frames = await frames_from(consumer, topic, start, end)
            assert_contiguous(frames, start, end)
            assert told(frames) == [r for r in told(frames) if r[0] >= start]
            assert told(frames) == await judged(consumer, topic, start, end)


async def test_an_aborted_end_alone_still_moves_the_position(
    kafka: EmbeddedBroker, create_topic: Create
) -> None:
    topic = await create_topic("aborted")
    async with writer(kafka, transactional_id=topic) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"x", partition=0)
        await producer.abort_transaction()
    async with reader(kafka, topic) as consumer:
        (frame,) = await frames_from(consumer, topic, 0, 2)
        assert (frame.first, frame.next, len(frame)) == (0, 2, 0)


async def test_a_compacted_topic_is_read_with_its_holes(kafka: EmbeddedBroker, create_topic: Create) -> None:
    settings = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.01",
        "segment.ms": "100",
        "min.compaction.lag.ms": "0",
        "max.compaction.lag.ms": "100",
    }
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:  # the cleaner looks every 15 s by default
        every = ConfigResource(ConfigResourceType.BROKER, str(NODE_ID), {"log.cleaner.backoff.ms": "100"})
        await admin.alter_configs([every])
        topic = await create_topic("compacted", settings=settings)
        async with writer(kafka, linger_ms=5) as producer:
            for _ in range(3):
                pending = [
                    await producer.send(topic, b"v%d" % n, key=b"k%d" % (n % 7 if n % 3 else n), partition=0)
                    for n in range(60)
                ]
                for each in pending:
                    await each
                await asyncio.sleep(0.15)  # a segment's age: only closed segments are compacted
            await producer.send_and_wait(topic, b"last", key=b"last", partition=0)
        async with reader(kafka, topic) as consumer:
            end = await end_of(consumer, topic)
            for _ in range(100):
                expected = await judged(consumer, topic, 0, end)
                if len(expected) < end / 2:
                    break
                await asyncio.sleep(0.2)
            else:
                pytest.fail("the cleaner did not run")
            for start in (0, end // 2):
                # It may run once more between two readings: what stands still is compared.
                async with asyncio.timeout(60):
                    while True:
                        frames = await frames_from(consumer, topic, start, end)
                        if told(frames) == await judged(consumer, topic, start, end):
                            break
                assert_contiguous(frames, start, end)
                assert start or any(not isinstance(frame.offsets, range) for frame in frames)
    finally:
        await admin.close()


# ── without a broker ────────────────────────────────────────────────────────────────────────────────


def batch_of(base: int, values: list[bytes]) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1_000_000,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, 1_000 + base, None, value, [])
    batch = bytearray(builder.build())
    batch[0:8] = base.to_bytes(8, "big")
    return bytes(batch)


def records_of(data: bytes, fetch_offset: int) -> PartitionRecords:
    tp = TopicPartition("t", 0)
    return PartitionRecords(tp, Batches(data), [], fetch_offset, None, None, True, 1)


def test_a_corrupt_batch_stops_reading_before_it_and_never_hands_it_over() -> None:
    good, bad = batch_of(0, [b"a", b"b"]), bytearray(batch_of(2, [b"c"]))
    bad[-1] ^= 1
    records = records_of(good + bytes(bad), 0)
    frame = read_frame(records, topic="t", partition=0)
    assert frame is not None
    assert (frame.values.to_list(), frame.first, frame.next) == ([b"a", b"b"], 0, 2)
    with pytest.raises(CorruptRecordException):
        read_frame(records_of(bytes(bad), 2), topic="t", partition=0)


def test_a_bit_that_is_wrong_anywhere_behind_the_checksum_is_noticed() -> None:
    whole = batch_of(0, [b"a", b"b"])
    for at in range(21, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(CorruptRecordException):
            read_frame(records_of(bytes(damaged), 0), topic="t", partition=0)


def test_a_frame_can_be_cut_to_what_is_not_yet_in() -> None:
    frame = read_frame(
        records_of(batch_of(10, [b"a", b"b"]) + batch_of(12, [b"c", b"dd"]), 10), topic="t", partition=0
    )
    assert frame is not None
    frame.headers = {0: (("h", b"0"),), 3: (("h", b"3"),)}
    assert frame.since(10) is frame
    rest = frame.since(11)
    assert (rest.first, rest.next, rest.values.to_list(), list(rest.offsets)) == (
        11,
        14,
        [b"b", b"c", b"dd"],
        [11, 12, 13],
    )
    assert rest.headers == {2: (("h", b"3"),)}
    assert [rest.timestamp_of(i) for i in range(3)] == [1_010, 1_012, 1_012]
    assert rest.size_bytes == 4
    last = rest.since(13)
    assert (last.values.to_list(), last.headers, last.timestamp_of(0)) == (
        [b"dd"],
        {0: (("h", b"3"),)},
        1_012,
    )
    assert (len(frame.since(99)), frame.since(99).first) == (0, 14)
