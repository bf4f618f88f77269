"""Sums of floating point numbers that are exact, so that no order and no grouping can show in them.

A sum is held as the shortest list of floats whose real sum it is: the float nearest to it, then the one
nearest to what is left, and so on; one to three of them in practice. That list depends on the sum alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Exact = tuple[float, ...]
Floats = NDArray[np.float64]

LARGEST = 2.0**500
"""Beyond it a square would overflow: no measurement is there."""
SMALLEST = 2.0**-400
"""Below it a square would vanish: it counts as 0."""
# Splits a float of 53 bits into two of 26 (Dekker, 1971).
_SPLITTER = 2.0**27 + 1


def exact(parts: Iterable[float]) -> Exact:
    """The sum of finite floats, exactly."""
    left = list(parts)
    found: list[float] = []
    # fsum rounds the real sum once: what it gives depends on nothing else.
    while top := math.fsum(left):
        found.append(top)
        left.append(-top)
    return tuple(found)


def exact_whole(total: int) -> Exact:
    """The same list of a whole number."""
    found: list[float] = []
    while total:
        top = float(total)
        found.append(top)
        total -= int(top)
    return tuple(found)


def exact_parts(parts: NDArray[np.int64], bits: int, below: int) -> Exact:
    """The same list of the sum of parts (N,), each times 2^(bits * its number - below)."""
    total = sum(int(parts[number]) << bits * number for number in np.flatnonzero(parts).tolist())
    found: list[float] = []
    while total:
        # Python rounds a quotient of whole numbers once.
        top = total / (1 << below)
        found.append(top)
        above, over = top.as_integer_ratio()
        total -= above * ((1 << below) // over)
    return tuple(found)


def real(total: Exact) -> tuple[int, int]:
    """The number itself, as a whole number over a power of two."""
    parts = [part.as_integer_ratio() for part in total]
    over = max((below for _, below in parts), default=1)
    return sum(above * (over // below) for above, below in parts), over


def group_sums(values: Floats, starts: NDArray[np.intp]) -> list[Floats]:
    """Arrays with an entry for each group whose real sum is the exact sum of the group's finite values.

    A group is the values from one of `starts` to the next: none is empty, the first starts at 0.

    Each step takes from all values their bits above a common level; such numbers add up without rounding
    (Rump, Ogita and Oishi, 2008: ExtractVector). It ends when no bits are left: after one to three steps.
    """
    sums = []
    rest = values
    while top := max(float(rest.max()), -float(rest.min())):
        level = math.ldexp(1.0, math.frexp(top)[1] + rest.size.bit_length() + 1)
        taken = rest + level
        taken -= level
        sums.append(np.add.reduceat(taken, starts))
        rest = np.subtract(rest, taken, out=taken)
    return sums


def squares(values: Floats) -> tuple[Floats, Floats]:
    """Each value's square, exactly, as the nearest float and what is left (Dekker, 1971).

    Values whose square is next to nothing count as 0.
    """
    if (small := np.abs(values) < SMALLEST).any():
        values = np.where(small, 0.0, values)
    split = _SPLITTER * values
    high = split - (split - values)
    low = values - high
    square = values * values
    return square, ((high * high - square) + 2.0 * high * low) + low * low
