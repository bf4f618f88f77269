"""Record batches decompressed up to a bound: some kilobytes on the wire can be gigabytes in memory.

A broker bounds a batch as it was sent, compressed. aiokafka decompresses whatever that holds, at once.
"""

from __future__ import annotations

import mmap
import struct
import threading
import zlib
from typing import Any

import aiokafka.consumer.fetcher
import cramjam
from aiokafka import codec
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import _MemoryRecordsPy

from schemas.checksum import crc32c

MAX_BATCH_BYTES = 64 * 2**20
"""Far beyond any client's own batches, and what a worker can bear."""

_HEADER_BYTES = 61
_MAGIC_AT, _CRC_AT, _ATTRIBUTES_AT = 16, 17, 21
_LAST_OFFSET_AT = 23
_COUNT_AT = 57
_CHECKED_BY_CRC32C = 2
_CODECS = 0b111
_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_XERIAL_HEADER_BYTES = 16


class TooLarge(Exception):
    """The batch's records exceed the bound, or cannot be decompressed. `records` says how many there are."""

    def __init__(self, records: int, why: str) -> None:
        super().__init__(why)
        self.records = records


class Batches(_MemoryRecordsPy):  # type: ignore[misc]  # final to type checkers; its twin in C hides the bytes
    """A fetched chunk's batches, each with its own bytes at hand."""

    raw: memoryview

    def next_batch(self) -> Any:  # type: ignore[override]  # its arguments are constants kept close at hand
        """The next batch; `raw` is it on the wire."""
        self.raw = self._next_slice  # type: ignore[assignment]
        return super().next_batch()


# What the fetcher makes of a response. Other consumers in this process get the same batches.
aiokafka.consumer.fetcher.MemoryRecords = Batches  # type: ignore[attr-defined]


def is_intact(batch: Any, raw: memoryview) -> bool:
    """Whether the batch's checksum is that of its bytes."""
    if raw[_MAGIC_AT] < _CHECKED_BY_CRC32C:
        return batch.validate_crc()
    (said,) = struct.unpack_from(">I", raw, _CRC_AT)
    return crc32c(raw[_ATTRIBUTES_AT:]) == said


def is_dense(raw: memoryview) -> bool:
    """Whether the batch has a record for each offset that it covers: compaction leaves gaps."""
    (last,) = struct.unpack_from(">i", raw, _LAST_OFFSET_AT)
    return last + 1 == count_of(raw)


def count_of(raw: memoryview) -> int:
    """How many records the batch says that it has."""
    return struct.unpack_from(">i", raw, _COUNT_AT)[0]


def payload_of(raw: memoryview) -> memoryview | bytes:
    """The batch's records, without its head and its compression.

    Raises:
        TooLarge: it does not fit in memory that anybody would plan for.
    """
    (attributes,) = struct.unpack_from(">h", raw, _ATTRIBUTES_AT)
    if not attributes & _CODECS:
        return raw[_HEADER_BYTES:]
    try:
        return _decompressed(attributes & _CODECS, raw[_HEADER_BYTES:])
    except (cramjam.DecompressionError, zlib.error, ValueError, struct.error) as error:
        count = count_of(raw)
        what = f"a batch of {count} records, {len(raw)} bytes compressed: {error}"
        limit = f"at most {MAX_BATCH_BYTES} bytes decompressed are taken"
        raise TooLarge(count, f"{what}; {limit}") from error


def plain(raw: memoryview, payload: memoryview | bytes) -> Any:
    """The batch with its records uncompressed, to be walked."""
    header = bytearray(raw[:_HEADER_BYTES])
    (attributes,) = struct.unpack_from(">h", header, _ATTRIBUTES_AT)
    struct.pack_into(">h", header, _ATTRIBUTES_AT, attributes & ~_CODECS)
    return DefaultRecordBatch(bytes(header) + payload)


# What a batch of this many bytes has used is given back: few are so large.
_KEPT_BYTES = 4 * 2**20


class _Room(threading.local):
    """Memory to decompress into: mapped, so the system gives it only as far as it is used."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, MAX_BATCH_BYTES)

    def take(self, length: int) -> bytes:
        """What now stands there."""
        taken = self.buffer[:length]
        if length > _KEPT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)
        return taken


_room = _Room()


def _decompressed(kind: int, payload: memoryview) -> bytes:
    if kind == _GZIP:
        data = zlib.decompressobj(wbits=31).decompress(payload, MAX_BATCH_BYTES + 1)
        if len(data) > MAX_BATCH_BYTES:
            raise ValueError("too large")
        return data
    if kind == _SNAPPY:
        if _snappy_length(payload) > MAX_BATCH_BYTES:
            raise ValueError("too large")
        return codec.snappy_decode(payload)
    into = {_LZ4: cramjam.lz4.decompress_into, _ZSTD: cramjam.zstd.decompress_into}[kind]
    return _room.take(into(bytes(payload), _room.buffer))


def _snappy_length(payload: memoryview) -> int:
    """What the blocks of either form of snappy say that they hold."""
    if not codec._detect_xerial_stream(payload):
        return _varint(payload)
    total, at = 0, _XERIAL_HEADER_BYTES
    while at < len(payload):
        (size,) = struct.unpack_from("!i", payload, at)
        total += _varint(payload[at + 4 :])
        at += 4 + size
    return total


def _varint(data: memoryview) -> int:
    value = 0
    for place, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value
    raise ValueError("no length")
