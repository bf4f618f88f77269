"""Record batches read as columns: the same as walked record by record, or said to be mixed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streams.transport import frame as frame_module
from streams.transport.columns import Mixed, Payload, Shape, read_columns, shape_of
from streams.transport.frame import Frame, read_frame
from streams.transport.inflate import Batches, payload_of

Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""Timestamp, key, value, headers."""


def batch(records: Sequence[Record], *, first: int = 0, codec: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=2**24,
    )
    for offset, (stamp, key, value, headers) in enumerate(records):
        assert builder.append(offset, timestamp=stamp, key=key, value=value, headers=headers) is not None
    made = builder.build()
    struct.pack_into(">q", made, 0, first)  # before what the checksum is over
    return bytes(made)


def payload(records: Sequence[Record]) -> bytes:
    return bytes(payload_of(memoryview(batch(records))))


def is_alike(records: Sequence[Record]) -> bool:
    """Whether all have a value and no headers, and all a key or none."""
    keyless = {key is None for _, key, _, _ in records}
    return len(keyless) == 1 and all(value is not None and not headers for *_, value, headers in records)


STAMPS = st.integers(0, 2**42)
BYTES = st.binary(max_size=200)
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=2)
ALIKE = st.lists(st.tuples(STAMPS, BYTES, BYTES, st.just([])), min_size=1, max_size=80)
KEYLESS = st.lists(st.tuples(STAMPS, st.none(), BYTES, st.just([])), min_size=1, max_size=80)
ANY = st.lists(st.tuples(STAMPS, st.none() | BYTES, st.none() | BYTES, HEADERS), min_size=1, max_size=12)


@settings(deadline=None)
@given(batches=st.lists(ALIKE | KEYLESS, min_size=1, max_size=4))
def test_batches_of_records_that_are_alike_are_read_whole(batches: list[list[Record]]) -> None:
    payloads = []
    for records in batches:
        content = payload(records)
        shape = shape_of(content)
        assert shape is (Shape.KEYLESS if records[0][1] is None else Shape.KEYED)
        payloads.append(Payload(len(records), content, shape))
    keys, values = read_columns(payloads)
    assert values.to_list() == [value for records in batches for _, _, value, _ in records]
    assert keys.to_list() == [key for records in batches for _, key, _, _ in records]


@settings(deadline=None, max_examples=300)
@example([(0, b"k", b"v", []), (0, b"k", b"v", [("h", b"1")])])
@example([(0, b"k", b"v", []), (0, b"k", None, [])])
@example([(0, b"k", b"v", []), (0, None, b"v", [])])
@example([(0, None, b"v", []), (0, b"k", b"v", [])])
@example([(0, None, b"v", []), (0, b"", b"v", [])])
@example([(0, None, b"v", []), (0, None, None, [])])
@given(records=ANY)
def test_records_that_are_not_all_alike_are_never_read_as_others(records: list[Record]) -> None:
    content = payload(records)
    shape = shape_of(content)
    if shape is None:
        _, _, value, headers = records[0]
        assert value is None or headers
        return
    if is_alike(records):
        return  # the property above
    with pytest.raises(Mixed):
        read_columns([Payload(len(records), content, shape)])


@pytest.mark.parametrize("moved", [b"v", b"v" * 70, b"v" * 9_000, b"v" * 2_000_000])
def test_a_batch_that_holds_more_records_than_it_says_does_not_pass_them_on_to_the_next(moved: bytes) -> None:
    one, other = [(0, b"k", b"a", []), (0, b"k", b"b", [])], [(0, b"k", moved, []), (0, b"k", b"d", [])]
    whole = payload(one), payload(other)
    keys, values = read_columns([Payload(2, content, Shape.KEYED) for content in whole])
    assert (keys.to_list(), values.to_list()) == ([b"k"] * 4, [b"a", b"b", moved, b"d"])
    cut = len(payload(other[:1]))
    shifted = whole[0] + whole[1][:cut], whole[1][cut:]
    with pytest.raises(Mixed):
        read_columns([Payload(2, content, Shape.KEYED) for content in shifted])


@settings(deadline=None)
@given(content=st.binary(max_size=60), records=st.integers(1, 5), shape=st.sampled_from(Shape))
def test_bytes_that_are_no_records_are_mixed_at_worst(content: bytes, records: int, shape: Shape) -> None:
    shape_of(content)
    try:
        keys, values = read_columns([Payload(records, content, shape)])
    except Mixed:
        return
    assert keys.len() == values.len() == records


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────


def chunk(batches: Sequence[tuple[list[Record], int]], fetch_offset: int) -> PartitionRecords:
    """A fetched chunk of these batches: their records and codecs."""
    first = 0
    made = []
    for records, codec in batches:
        made.append(batch(records, first=first, codec=codec))
        first += len(records)
    return PartitionRecords(
        TopicPartition("t", 0), Batches(b"".join(made)), [], fetch_offset, None, None, True, 1
    )


def walked(
    batches: Sequence[tuple[list[Record], int]], fetch_offset: int, monkeypatch: pytest.MonkeyPatch
) -> Frame | None:
    with monkeypatch.context() as patched:
        patched.setattr(frame_module, "LEAST_RECORDS", 10**9)
        return read_frame(chunk(batches, fetch_offset), topic="t", partition=0)


SEVERAL = st.lists(st.tuples(ALIKE | KEYLESS | ANY, st.sampled_from((0, 3, 4))), min_size=1, max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=SEVERAL, behind=st.integers(0, 30))
def test_a_frame_is_the_same_whether_it_is_read_as_columns_or_walked(
    batches: list[tuple[list[Record], int]], behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(frame_module, "LEAST_RECORDS", 1)
        read = read_frame(chunk(batches, behind), topic="t", partition=0)
    expected = walked(batches, behind, monkeypatch)
    assert (read is None) == (expected is None)
    if read is not None and expected is not None:
        for name in ("first", "next", "offsets", "headers", "stamps", "unread", "size_bytes", "sent_bytes"):
            assert getattr(read, name) == getattr(expected, name), name
        assert read.values.to_list() == expected.values.to_list()
        assert read.keys.to_list() == expected.keys.to_list()


def test_a_partition_whose_records_are_not_alike_is_walked_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    read = frame_module.read_columns
    monkeypatch.setattr(frame_module, "read_columns", lambda each: (tried.append(1), read(each))[1])
    alike: list[Record] = [(n, b"k", b"v%d" % n, []) for n in range(100)]
    odd: list[Record] = [*alike[:50], (50, b"k", None, [("tidemill-watermark", b"1")]), *alike[51:]]
    mixed: dict[tuple[str, int], int] = {}

    def values_of(records: list[Record]) -> list[bytes | None]:
        frame = read_frame(chunk([(records, 0)], 0), topic="t", partition=0, mixed=mixed)
        assert frame is not None
        return frame.values.to_list()

    assert values_of(odd) == [value for _, _, value, _ in odd]
    for _ in range(frame_module._WALKED):
        assert values_of(alike) == [value for _, _, value, _ in alike]
    assert len(tried) == 1
    assert values_of(alike) == [value for _, _, value, _ in alike]
    assert (len(tried), mixed) == (2, {})
