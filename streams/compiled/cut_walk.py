"""A walk that cuts pieces out of bytes, and puts them one behind the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from streams.compiled.at_address import HOW, put_word, word

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
