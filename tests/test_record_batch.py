"""Record batches written from columns are the bytes that aiokafka's builder makes record by record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import google_crc32c
import polars as pl
import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.checksum import crc32c
from schemas.producer.record_batch import Compression, Records, WholeBatch, batches

MS = 1_767_225_600_000
PRODUCER = {"producer_id": 7, "producer_epoch": 3, "base_sequence": 11}
Pair = tuple[bytes | None, bytes]
Headers = Sequence[tuple[str, bytes]]


def columns(pairs: list[Pair]) -> Records:
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    return Records(pl.Series(keys, dtype=pl.Binary), pl.Series(values, dtype=pl.Binary))


def written(
    pairs: list[Pair],
    *,
    most_bytes: int = 4_096,
    headers: Headers = (),
    compression: Compression = "none",
) -> list[WholeBatch]:
    made = batches(
        columns(pairs), timestamp_ms=MS, most_bytes=most_bytes, headers=headers, compression=compression
    )
    return list(made)


def built(batch: WholeBatch) -> bytes:
    batch._set_producer_state(**PRODUCER)
    return bytes(batch._build())


def read(buffer: bytes) -> list[tuple]:
    batch = MemoryRecords(buffer).next_batch()
    assert isinstance(batch, DefaultRecordBatch)
    assert batch.validate_crc()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 3, 11)
    return [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in batch]


def by_the_builder(pairs: list[Pair], headers: Headers) -> bytes:
    """What aiokafka makes of the same."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 2**30)
    for offset, (key, value) in enumerate(pairs):
        builder.append(offset, timestamp=MS, key=key, value=value, headers=list(headers))
    builder.set_producer_state(*PRODUCER.values())
    return bytes(builder.build())


PAIRS = st.lists(st.tuples(st.none() | st.binary(max_size=200), st.binary(max_size=9_000)), max_size=60)
HEADERS = st.lists(st.tuples(st.text(max_size=80), st.binary(max_size=80)), max_size=3)


@given(pairs=PAIRS, headers=HEADERS, most_bytes=st.integers(100, 40_000))
@settings(deadline=None)
def test_columns_are_the_same_bytes_as_record_by_record(
    pairs: list[Pair], headers: list[tuple[str, bytes]], most_bytes: int
) -> None:
    first = 0
    for batch in written(pairs, headers=headers, most_bytes=most_bytes):
        own = pairs[first : first + batch.record_count()]
        size = batch.size()
        assert built(batch) == by_the_builder(own, headers)
        assert batch.size() == size
        assert size <= most_bytes + 61 or len(own) == 1
        first += len(own)
    assert first == len(pairs)


@pytest.mark.parametrize("size", [0, 63, 64, 8_191, 8_192, 16_383, 16_384, 1_048_575, 1_048_576])
def test_lengths_around_another_byte_are_read_back(size: int) -> None:
    pairs: list[Pair] = [(bytes(min(size, 16_384)), b"x" * size), (None, b"")]
    (batch,) = written(pairs, most_bytes=2**22)
    assert read(built(batch)) == [(0, MS, *pairs[0], ()), (1, MS, *pairs[1], ())]


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_compressed_batch_is_smaller_and_reads_the_same(compression: Compression) -> None:
    pairs: list[Pair] = [(b"key", b'{"n": %d}' % n) for n in range(1_000)]
    (batch,) = written(pairs, most_bytes=2**20, compression=compression)
    (plain,) = written(pairs, most_bytes=2**20)
    assert (batch.size() < plain.size()) == (compression != "none")
    assert read(built(batch)) == [(n, MS, *pair, ()) for n, pair in enumerate(pairs)]


def test_what_compression_would_make_larger_goes_as_it_is() -> None:
    (batch,) = written([(None, b"x")], compression="lz4")
    assert read(built(batch)) == [(0, MS, None, b"x", ())]


def test_a_batch_that_is_sent_again_keeps_its_bytes_and_takes_no_more_records() -> None:
    (batch,) = written([(b"k", b"v")])
    once = built(batch)
    assert bytes(batch._build()) == once
    assert batch.closed()
    assert batch.append(timestamp=MS, key=b"k", value=b"w") is None
    assert batch.record_count() == 1


@pytest.mark.parametrize("implementation", ["c", "python"])
def test_the_checksum_is_the_same_without_the_processors_instruction(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = memoryview(bytes(range(256)) * 4_000)[21:]
    monkeypatch.setattr(google_crc32c, "implementation", implementation)
    assert crc32c(data) == calc_crc32c(data.tobytes())
