"""A walk over the records of Kafka's batches: where each key and value stands."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from streams.compiled.at_address import HOW, byte

_signed: Any = np.int64
_BITS = 64


@njit(**HOW)
def _number(at: int, end: int) -> tuple[int, int]:
    """Where a zigzag number ends, and the number; behind `end` where none does."""
    value = shift = 0
    while at < end and shift < _BITS:
        bits = byte(at)
        value |= (bits & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if bits < 0x80:
            return at, (value >> 1) ^ -(value & 1)
    return end + 1, 0


@njit(**HOW)
def _bytes(at: int, end: int) -> tuple[int, int, int]:
    """Where bytes begin, how many there are, -1 for null, and where they end: behind `end` if none do."""
    begin, size = _number(at, end)
    if begin > end or size < -1 or size > end - begin:
        return begin, -1, end + 1
    return begin, size, begin + max(size, 0)


@njit(
    types.boolean(
        types.Array(types.uint8, 1, "C", readonly=True),
        types.int64[::1],
        types.int64[::1],
        types.int64[:, ::1],
    ),
    **HOW,
)
def walk(content: np.ndarray, counts: np.ndarray, ends: np.ndarray, found: np.ndarray) -> bool:
    """Whether all N records of B batches are whole, count their offsets from 0 and have no headers.

    Args:
        content: uint8, the batches' records, uncompressed.
        counts: int64 (B,), how many records each batch has, and where in `content` it `ends` (B,).
        found: int64 (4, N), filled with where each key begins, its bytes, where each value begins, and its
            bytes; -1 bytes where there is none.
    """
    base = _signed(content.ctypes.data)
    at, row = base, 0
    for batch in range(len(counts)):
        end = base + ends[batch]
        for number in range(counts[batch]):
            at, size = _number(at, end)
            if at > end or size < 0 or size > end - at:
                return False
            stop = at + size
            at, _ = _number(at + 1, stop)  # behind a byte that says nothing: the timestamp, less the batch's
            at, offset = _number(at, stop)
            key, key_bytes, at = _bytes(at, stop)
            value, value_bytes, at = _bytes(at, stop)
            if offset != number or at + 1 != stop or byte(at) != 0:
                return False
            found[0, row], found[1, row] = key - base, key_bytes
            found[2, row], found[3, row] = value - base, value_bytes
            at, row = stop, row + 1
        if at != end:
            return False
    return True
