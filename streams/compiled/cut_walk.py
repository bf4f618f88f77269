"""Walks that put pieces of bytes one behind the other: those cut out of others, and those of a column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from streams.compiled.at_address import HOW, byte, put_byte, put_word, word

WORD = 8
"""So many bytes are taken at once: there must be as many behind the last piece, and behind room for all."""

_U = np.uint64
_signed: Any = np.int64
_HIGHS = _U(0x8080808080808080)


@njit(
    types.boolean(
        types.Array(types.uint8, 1, "C", readonly=True),
        types.Array(types.int64, 1, "A", readonly=True),
        types.Array(types.int64, 1, "A", readonly=True),
        types.uint8[::1],
        types.int64[::1],
    ),
    **HOW,
)
def cut(
    content: np.ndarray, begins: np.ndarray, sizes: np.ndarray, pieces: np.ndarray, offsets: np.ndarray
) -> bool:
    """Whether all pieces are plain ASCII.

    Args:
        content: uint8. Its pieces (N,) begin there and have so many bytes; none where that is negative.
        pieces: uint8, filled with them; and int64 (N + 1,) with their `offsets` in it.
    """
    base = _signed(content.ctypes.data)
    first = to = _signed(pieces.ctypes.data)
    high = _U(0)
    for number in range(len(begins)):
        at, rest = base + begins[number], sizes[number]
        offsets[number] = to - first
        while rest >= WORD:
            eight = word(at)
            put_word(to, eight)
            high |= eight
            at, to, rest = at + WORD, to + WORD, rest - WORD
        if rest > 0:
            eight = word(at)
            put_word(to, eight)
            high |= eight & ((_U(1) << _U(8 * rest)) - _U(1))
            to += rest
    offsets[len(begins)] = to - first
    return high & _HIGHS == 0


VIEW = 16
"""Bytes of an Arrow view: of its length, and of what it is short of; or of its buffer and its place there."""
_MOST_INLINE = 12
_FOUR = _U(0xFFFFFFFF)


@njit(types.void(types.int64, types.int64[::1]), **HOW)
def measure(views: int, offsets: np.ndarray) -> None:
    """Say in `offsets` (N + 1,) where each piece of a column ends; where the first one begins is there.

    Args:
        views: the address of the column's Arrow views (N,).
    """
    for number in range(len(offsets) - 1):
        size = _signed(word(views + VIEW * number) & _FOUR)
        offsets[number + 1] = offsets[number] + size


@njit(types.void(types.int64, types.int64[::1], types.uint8[::1], types.int64[::1]), **HOW)
def lay(views: int, buffers: np.ndarray, content: np.ndarray, offsets: np.ndarray) -> None:
    """Put a column's pieces into `content`, uint8, at these `offsets` (N + 1,).

    Args:
        views: the address of the column's Arrow views (N,); and of each of the `buffers` that they name.
    """
    base = _signed(content.ctypes.data)
    for number in range(len(offsets) - 1):
        to, stop = base + offsets[number], base + offsets[number + 1]
        view = views + VIEW * number
        at = view + 4
        if stop - to > _MOST_INLINE:
            place = word(view + 8)
            at = buffers[_signed(place & _FOUR)] + _signed(place >> _U(32))
        if stop - to < WORD:
            while to < stop:
                put_byte(to, byte(at))
                at, to = at + 1, to + 1
        else:
            # Nothing is known of what stands behind a piece: its last word ends where it does.
            last = at + (stop - to) - WORD
            while at < last:
                put_word(to, word(at))
                at, to = at + WORD, to + WORD
            put_word(stop - WORD, word(last))
