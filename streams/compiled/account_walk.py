"""Walks over rows' times and numbers: what a pane's account says of them, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from streams.compiled.at_address import HOW
from streams.summary.numbers import HALF_BITS

MOST_PANES = 512
"""Of one walk."""
SLOTS_BITS = 11
"""Panes are looked up in 2^`SLOTS_BITS` slots."""
PART_BITS = 32
"""Bits of a sum's part: a sum is that of its parts, each times 2^(32 * number - `BELOW`)."""
BELOW, SQUARES_BELOW = 1074, 2148
SUM_PARTS, SQUARES_PARTS = 54, 104

_U = np.uint64
_signed: Any = np.int64
_SPREAD = _U(0x9E3779B97F4A7C15)
_PART, _FRACTION = (1 << PART_BITS) - 1, (1 << 52) - 1
_HALF = (1 << HALF_BITS) - 1
_LOW_BITS = 27
_LOW = (1 << _LOW_BITS) - 1

_WHOLES = types.Array(types.int64, 1, "C", readonly=True)
_REALS = types.Array(types.float64, 1, "C", readonly=True)
_PANES = types.Array(types.uint16, 1, "C", readonly=True)


@njit(types.int64(_WHOLES, _WHOLES, types.uint16[::1], types.int32[::1], types.int64[:, ::1]), **HOW)
def panes(
    starts: np.ndarray, times: np.ndarray, of_row: np.ndarray, slots: np.ndarray, found: np.ndarray
) -> int:
    """How many panes N rows lie in; -1 where they are more than `MOST_PANES`.

    Args:
        starts: of each row's pane, epoch ms, (N,); `times` the rows' own.
        of_row: uint16 (N,), filled with each row's pane by its number, in the order that they are found.
        slots: zeros, 2^`SLOTS_BITS`.
        found: int64 (4, `MOST_PANES`), filled with each pane's start, its rows, and the first and the last of
            their times.
    """
    count = 0
    last = len(slots) - 1
    number = -1
    for row in range(len(starts)):
        start, time = starts[row], times[row]
        if number < 0 or found[0, number] != start:
            slot = _signed((_U(start) * _SPREAD) >> _U(64 - SLOTS_BITS))
            while slots[slot] and found[0, slots[slot] - 1] != start:
                slot = (slot + 1) & last
            if not slots[slot]:
                if count == MOST_PANES:
                    return -1
                found[0, count], found[1, count], found[2, count], found[3, count] = start, 0, time, time
                count += 1
                slots[slot] = count
            number = slots[slot] - 1
        of_row[row] = number
        found[1, number] += 1
        found[2, number] = min(found[2, number], time)
        found[3, number] = max(found[3, number], time)
    return count


@njit(types.void(_WHOLES, _PANES, types.int64[:, ::1]), **HOW)
def wholes(values: np.ndarray, of_row: np.ndarray, found: np.ndarray) -> None:
    """Sums of whole numbers (N,), each within 2^42 of 0, by pane.

    Args:
        found: int64 (P, 6), filled with the least, the most, their sum, and those of their upper halves'
            squares, of their halves' products and of their lower halves' squares; the first two are filled
            with what is more and less than any.
    """
    for row in range(len(values)):
        value, pane = values[row], of_row[row]
        upper, lower = value >> HALF_BITS, value & _HALF
        found[pane, 0] = min(found[pane, 0], value)
        found[pane, 1] = max(found[pane, 1], value)
        found[pane, 2] += value
        found[pane, 3] += upper * upper
        found[pane, 4] += upper * lower
        found[pane, 5] += lower * lower


@njit(**HOW)
def _add(parts: np.ndarray, pane: int, digits: int, at: int, sign: int) -> None:
    """Add a number of at most 55 bits, times 2^at."""
    part, shift = at >> 5, at & 31
    parts[pane, part] += sign * ((digits << shift) & _PART)
    digits >>= PART_BITS - shift
    parts[pane, part + 1] += sign * (digits & _PART)
    parts[pane, part + 2] += sign * (digits >> PART_BITS)


@njit(
    types.void(
        _REALS,
        _PANES,
        types.float64,
        types.float64,
        types.int64[::1],
        types.float64[:, ::1],
        types.int64[:, ::1],
        types.int64[:, ::1],
    ),
    **HOW,
)
def reals(
    values: np.ndarray,
    of_row: np.ndarray,
    least: float,
    largest: float,
    counts: np.ndarray,
    ends: np.ndarray,
    sums: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Sums of real numbers (N,), by pane: in parts, none of them rounded.

    Args:
        least: the square of one that is smaller is nothing. `largest`: one that is not below it, or NaN, does
            not count.
        counts: int64 (P,), filled with how many count; `ends` float64 (P, 2), with the least and the most.
        sums: zeros, int64 (P, `SUM_PARTS`), filled with the parts of their sums.
        squares: zeros, int64 (P, `SQUARES_PARTS`), filled with those of their squares.
    """
    bits = values.view(np.int64)
    for row in range(len(values)):
        value, pane = values[row], of_row[row]
        size = abs(value)
        if not size < largest:
            continue
        counts[pane] += 1
        ends[pane, 0] = min(ends[pane, 0], value)
        ends[pane, 1] = max(ends[pane, 1], value)
        exponent, digits = (bits[row] >> 52) & 0x7FF, bits[row] & _FRACTION
        if exponent:
            exponent, digits = exponent - 1, digits | (1 << 52)
        _add(sums, pane, digits, exponent, -1 if value < 0 else 1)
        if size >= least:
            upper, lower = digits >> _LOW_BITS, digits & _LOW
            _add(squares, pane, lower * lower, 2 * exponent, 1)
            _add(squares, pane, upper * lower, 2 * exponent + _LOW_BITS + 1, 1)
            _add(squares, pane, upper * upper, 2 * exponent + 2 * _LOW_BITS, 1)
