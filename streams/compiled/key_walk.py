"""Walks over the hashes of keys: which of them may have come before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from streams.compiled.at_address import HOW

_U = np.uint64
_ONE, _SIX, _LOW = _U(1), _U(6), _U(63)
_HASHES = types.Array(types.uint64, 1, "C", readonly=True)
_signed: Any = np.int64
# Who crowds so many keys into one place has them all looked at.
_MOST_STEPS = 32


@njit(**HOW)
def _bits(each: np.uint64) -> np.uint64:
    """A hash's two bits in its word."""
    return (_ONE << (each & _LOW)) | (_ONE << ((each >> _SIX) & _LOW))


@njit(types.void(_HASHES, types.uint64[::1], types.int64), **HOW)
def put(hashes: np.ndarray, words: np.ndarray, shift: int) -> None:
    """Note hashes (N,) in a sieve's `words`; see `streams.dedupe.Sieve`."""
    for each in hashes:
        words[each >> _U(shift)] |= _bits(each)


@njit(types.void(_HASHES, types.uint64[::1], types.int64, types.boolean[::1]), **HOW)
def may_hold(hashes: np.ndarray, words: np.ndarray, shift: int, found: np.ndarray) -> None:
    """Mark in `found` (N,) the hashes that may have been put."""
    for number in range(len(hashes)):
        each = hashes[number]
        bits = _bits(each)
        found[number] = words[each >> _U(shift)] & bits == bits


@njit(types.void(_HASHES, types.uint32[::1], types.int64, types.boolean[::1]), **HOW)
def come_again(hashes: np.ndarray, places: np.ndarray, shift: int, found: np.ndarray) -> None:
    """Mark in `found` (N,) the hashes that come more than once, and of a crowd perhaps others.

    Args:
        places: zeros; more than there are hashes, 2^(64 - shift) of them.
    """
    last = len(places) - 1
    for number in range(len(hashes)):
        each = hashes[number]
        place = _signed(each >> _U(shift))
        for step in range(_MOST_STEPS + 1):
            other = _signed(places[place]) - 1
            if other < 0:
                places[place] = number + 1
                break
            if step == _MOST_STEPS or hashes[other] == each:
                found[number] = found[other] = True
                break
            place = (place + 1) & last
