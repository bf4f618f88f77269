"""A walk over an Arrow IPC stream's messages, before a reader is let loose on it.

The format has no checksum, and Polars' reader believes what a message says: one flipped bit in a length asks
for more memory than there is, and the process is gone, without an error that anybody could catch. So all
lengths are held against the bytes that are there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAX_ROWS = 4_000_000
"""Of one record. What a record of the largest size can hold, and no more."""
MAX_BYTES = 256 * 2**20
"""Of one message's buffers, decompressed."""

_CONTINUES = 0xFFFFFFFF
_DICTIONARY, _RECORDS = 2, 3
_NODE_BYTES = _BUFFER_BYTES = 16


class Damaged(ValueError):
    """The stream is no whole one, or a length in it cannot be."""


def check_lengths(value: bytes) -> int:
    """Walk all messages of a stream; gives the rows that they say they hold.

    The end-of-stream mark must come last, and nothing after it: a reader takes a stream that was cut between
    two messages for a shorter one, and ignores what follows the mark. Either way rows would be gone without a
    word.

    Raises:
        Damaged: what it says of its own lengths does not hold.
    """
    at, end = 0, len(value)
    rows = 0
    try:
        while True:
            mark, metadata_bytes = struct.unpack_from("<Ii", value, at)
            if mark != _CONTINUES or metadata_bytes < 0:
                raise Damaged("no whole Arrow IPC stream: it must end with its end-of-stream mark")
            at += 8
            if metadata_bytes == 0:
                break
            message = _Table.at_root(value, at)
            body_at = at + metadata_bytes
            body_bytes = message.number("<q", 3)
            if not 0 <= body_bytes <= end - body_at:
                raise Damaged("a message's body is longer than the record")
            rows += _check_message(value, message, body_at, body_bytes)
            if rows > MAX_ROWS:
                raise Damaged(f"it says that it holds {rows} rows; at most {MAX_ROWS} are taken")
            at = body_at + body_bytes
    except struct.error as error:
        raise Damaged("no whole Arrow IPC stream: it must end with its end-of-stream mark") from error
    if at != end:
        raise Damaged("no whole Arrow IPC stream: bytes follow its end-of-stream mark")
    return rows


def _check_message(value: bytes, message: _Table, body_at: int, body_bytes: int) -> int:
    """Rows that a message says it holds; 0 for one that holds none."""
    kind = message.number("<B", 1)
    header = message.table(2)
    if header is None:
        return 0
    batch = header.table(1) if kind == _DICTIONARY else header
    if kind not in (_DICTIONARY, _RECORDS) or batch is None:
        return 0
    rows = batch.number("<q", 0)
    for length, nulls in batch.pairs(1, _NODE_BYTES):
        if not 0 <= nulls <= length <= MAX_ROWS:
            raise Damaged(f"a column says that it holds {length} values, {nulls} of them null")
    is_compressed = batch.table(3) is not None
    whole_bytes = 0
    for start, length in batch.pairs(2, _BUFFER_BYTES):
        if min(start, length) < 0 or start + length > body_bytes:
            raise Damaged("a column's values lie outside of the record")
        if is_compressed and length:
            (said,) = struct.unpack_from("<q", value, body_at + start)
            if said < -1:
                raise Damaged("a column's values have a negative length")
            whole_bytes += max(said, 0)
    if whole_bytes > MAX_BYTES:
        raise Damaged(f"{whole_bytes} bytes decompressed; at most {MAX_BYTES} are taken")
    if not 0 <= rows <= MAX_ROWS:
        raise Damaged(f"it says that it holds {rows} rows; at most {MAX_ROWS} are taken")
    return rows


class _Table:
    """A FlatBuffers table: fields by their number, absent ones by their default of 0."""

    def __init__(self, value: bytes, at: int) -> None:
        if at < 0:
            raise struct.error("before the beginning")
        self._value, self._at = value, at
        slots = at - struct.unpack_from("<i", value, at)[0]
        if slots < 0:
            raise struct.error("before the beginning")
        self._slots = slots
        (self._slots_bytes,) = struct.unpack_from("<H", value, slots)

    @classmethod
    def at_root(cls, value: bytes, at: int) -> _Table:
        return cls(value, at + struct.unpack_from("<I", value, at)[0])

    def _place(self, field: int) -> int | None:
        slot = 4 + 2 * field
        if slot + 2 > self._slots_bytes:
            return None
        (offset,) = struct.unpack_from("<H", self._value, self._slots + slot)
        return self._at + offset if offset else None

    def number(self, form: str, field: int) -> int:
        place = self._place(field)
        return 0 if place is None else struct.unpack_from(form, self._value, place)[0]

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        if place is None:
            return None
        return _Table(self._value, place + struct.unpack_from("<I", self._value, place)[0])

    def pairs(self, field: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two whole numbers."""
        place = self._place(field)
        if place is None:
            return
        start = place + struct.unpack_from("<I", self._value, place)[0]
        (count,) = struct.unpack_from("<I", self._value, start)
        if count * size_bytes > len(self._value):
            raise struct.error("more of them than there are bytes")
        for index in range(count):
            yield struct.unpack_from("<qq", self._value, start + 4 + index * size_bytes)
