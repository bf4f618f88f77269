"""Record batches read as columns: the same as walked record by record, or said to be mixed."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence

import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streams import compiled
from streams.transport import frame as frame_module
from streams.transport.columns import Mixed, Payload, is_bare, read_columns
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


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    compiled.loading().result()


def columns(payloads: Sequence[tuple[int, bytes]]) -> tuple[list[bytes | None], list[bytes | None]]:
    read = read_columns([Payload(*each) for each in payloads])
    assert read is not None
    keys, values = read
    return keys.to_list(), values.to_list()


STAMPS = st.integers(0, 2**42)
BYTES = st.binary(max_size=200)
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=2)
BARE = st.lists(st.tuples(STAMPS, st.none() | BYTES, st.none() | BYTES, st.just([])), min_size=1, max_size=80)
ANY = st.lists(st.tuples(STAMPS, st.none() | BYTES, st.none() | BYTES, HEADERS), min_size=1, max_size=12)


@settings(deadline=None)
@example([[(0, b"k", b"v", []), (0, b"k", None, [])]])
@example([[(0, b"k", b"v", []), (0, None, b"v", [])]])
@example([[(0, None, b"v", []), (0, b"k", b"v", [])]])
@example([[(0, None, b"v", []), (0, b"", b"v", [])]])
@example([[(0, None, b"v", []), (0, None, None, [])]])
@given(batches=st.lists(BARE, min_size=1, max_size=4))
def test_batches_of_records_without_headers_are_read_whole(batches: list[list[Record]]) -> None:
    contents = [payload(records) for records in batches]
    assert all(is_bare(content) for content in contents)
    keys, values = columns([(len(r), content) for r, content in zip(batches, contents, strict=True)])
    assert values == [value for records in batches for _, _, value, _ in records]
    assert keys == [key for records in batches for _, key, _, _ in records]


@settings(deadline=None, max_examples=300)
@example([(0, b"k", b"v", []), (0, b"k", b"v", [("h", b"1")])])
@given(records=ANY)
def test_records_with_headers_are_never_read_as_others(records: list[Record]) -> None:
    content = payload(records)
    assert is_bare(content) == (not records[0][3])
    if any(headers for *_, headers in records):
        with pytest.raises(Mixed):
            columns([(len(records), content)])


@pytest.mark.parametrize("moved", [b"v", b"v" * 70, b"v" * 9_000, b"v" * 2_000_000])
def test_a_batch_that_holds_more_records_than_it_says_does_not_pass_them_on_to_the_next(moved: bytes) -> None:
    one, other = [(0, b"k", b"a", []), (0, b"k", b"b", [])], [(0, b"k", moved, []), (0, b"k", b"d", [])]
    whole = payload(one), payload(other)
    keys, values = columns([(2, content) for content in whole])
    assert (keys, values) == ([b"k"] * 4, [b"a", b"b", moved, b"d"])
    cut = len(payload(other[:1]))
    shifted = whole[0] + whole[1][:cut], whole[1][cut:]
    with pytest.raises(Mixed):
        columns([(2, content) for content in shifted])


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=60), records=st.integers(1, 5))
def test_bytes_that_are_no_records_are_mixed_at_worst(content: bytes, records: int) -> None:
    is_bare(content)
    with contextlib.suppress(Mixed):
        keys, values = columns([(records, content)])
        assert len(keys) == len(values) == records


def test_a_batch_that_says_it_has_millions_of_records_gets_no_room_for_them() -> None:
    with pytest.raises(Mixed):
        columns([(2**31 - 1, payload([(0, b"k", b"v", [])]))])


@settings(deadline=None, max_examples=300)
@given(records=BARE, at=st.integers(0, 2_000), put=st.binary(max_size=3), gone=st.integers(0, 3))
def test_damaged_records_are_read_within_their_bounds(
    records: list[Record], at: int, put: bytes, gone: int
) -> None:
    content = payload(records)
    content = content[:at] + put + content[at + gone :]
    with contextlib.suppress(Mixed):
        for part in (part for side in columns([(len(records), content)]) for part in side):
            assert part is None or part in content


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


SEVERAL = st.lists(st.tuples(BARE | ANY, st.sampled_from((0, 3, 4))), min_size=1, max_size=5)


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


def test_a_partition_whose_records_have_headers_is_walked_for_a_while(
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
