"""Quantile sketches: many numbers in a few kilobytes, and always the same bytes for the same numbers.

The form is the KLL sketch of Apache DataSketches (Karnin, Lang and Liberty, "Optimal Quantile
Approximation in Streams", 2016): items of weight 2^level. The library builds it from a stream and tosses
coins as it compacts, so two runs over the same rows differ. A window's rows are all at hand when it closes,
so here the items are taken from the sorted rows at even ranks: no coin, a smaller rank error, and any
DataSketches library reads the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# The package re-exports a compiled module that has no stubs.
from datasketches import kll_floats_sketch  # pyright: ignore[reportAttributeAccessIssue]

K = 2000
"""Most items of a level. Rank error at most 1 / K: a shift of .1 sigma moves ranks by .04."""

_LEAST_CAPACITY = 8
_PREAMBLE_INTS, _SERIAL_VERSION, _FAMILY, _LEVEL_ZERO_SORTED = 5, 1, 15, 2


@dataclass(frozen=True, slots=True)
class Points:
    """A weighted sample that stands for `weights.sum()` numbers.

    `values` (M,) float64, sorted; `weights` (M,) float64; `rank_error`: how far a rank may be off, 0 to 1.
    """

    values: np.ndarray
    weights: np.ndarray
    rank_error: float = 0.0

    @property
    def count(self) -> int:
        """How many numbers it stands for."""
        return round(float(self.weights.sum()))

    def ranks(self, at: np.ndarray) -> np.ndarray:
        """Share of the numbers at or below each of these, (A,) in 0 to 1."""
        below = np.concatenate(([0.0], np.cumsum(self.weights)))
        return below[np.searchsorted(self.values, at, side="right")] / below[-1]

    def quantiles(self, shares: Sequence[float]) -> np.ndarray:
        """Numbers below which these shares of all lie, (S,)."""
        reached = np.cumsum(self.weights)
        at = np.searchsorted(reached, np.asarray(shares) * reached[-1], side="left")
        return self.values[np.minimum(at, len(self.values) - 1)]


def points_of(numbers: np.ndarray) -> Points:
    """All of these numbers, finite, in any order."""
    # Plus zero: of 0.0 and -0.0, which sort as they come, one.
    values = np.sort(np.asarray(numbers, dtype=np.float32) + np.float32(0)).astype(np.float64)
    return Points(values, np.ones(len(values)))


def merged(parts: Sequence[Points]) -> Points:
    """The numbers of all parts together; the order of the parts does not count."""
    parts = [part for part in parts if len(part.values)]
    if not parts:
        return Points(np.empty(0), np.empty(0))
    values = np.concatenate([part.values for part in parts])
    weights = np.concatenate([part.weights for part in parts])
    order = np.lexsort((weights, values))
    total = weights.sum()
    error = sum(part.rank_error * part.weights.sum() for part in parts) / total
    return Points(values[order], weights[order], float(error))


def pack(points: Points) -> tuple[bytes, float]:
    """The sketch's bytes, and its rank error; at most `K` items and a few more. Nothing gives no bytes."""
    total = points.count
    if total == 0:
        return b"", 0.0
    top = max(0, (total - 1).bit_length() - K.bit_length())
    while total >> top > K:
        top += 1
    levels = _levels(points, total, top)
    capacities = [_capacity(len(levels) - height - 1) for height in range(len(levels))]
    at = sum(capacities) - sum(len(level) for level in levels)
    offsets = []
    for level in levels:
        offsets.append(at)
        at += len(level)
    extremes = np.array([points.values[0], points.values[-1]])
    body = np.concatenate([extremes, *levels]).astype("<f4").tobytes()
    if total == 1:
        # The library's own form of a single item.
        head = struct.pack("<BBBBHBx", 2, 2, _FAMILY, 4, K, _LEAST_CAPACITY)
        return head + extremes[:1].astype("<f4").tobytes(), 0.0
    head = struct.pack(
        "<BBBBHBxQHBx",
        _PREAMBLE_INTS,
        _SERIAL_VERSION,
        _FAMILY,
        _LEVEL_ZERO_SORTED,
        K,
        _LEAST_CAPACITY,
        total,
        K,
        len(levels),
    )
    own_error = (1 << top) / 2 / total if top else 0.0
    return head + struct.pack(f"<{len(offsets)}I", *offsets) + body, points.rank_error + own_error


@lru_cache(maxsize=512)
def unpack(packed: bytes, rank_error: float = 0.0) -> Points:
    """What a sketch holds, read by the library. A reference's is asked for window after window."""
    if not packed:
        return Points(np.empty(0), np.empty(0))
    held = np.array(list(kll_floats_sketch.deserialize(packed)), dtype=np.float64).reshape(-1, 2)
    order = np.lexsort((held[:, 1], held[:, 0]))
    return Points(held[order, 0], held[order, 1], rank_error)


def _levels(points: Points, total: int, top: int) -> list[np.ndarray]:
    """Items by level, each level sorted: blocks of 2^top ranks, and what is left over in smaller blocks.

    The left-over ranks lie in the middle, so that neither end weighs more than it should.
    """
    size = 1 << top
    blocks = total >> top
    rest = total - (blocks << top)
    if top and rest == 0:
        blocks, rest = blocks - 1, size
    half = blocks // 2
    starts = np.arange(blocks, dtype=np.int64) * size
    starts[half:] += rest
    # The middle of an even block lies between two ranks: now the one, now the other.
    middles = starts + size // 2 - (np.arange(blocks) % 2 if top else 0)
    reached = np.cumsum(points.weights)

    def at(ranks: Sequence[int] | np.ndarray) -> np.ndarray:
        return points.values[np.searchsorted(reached, ranks, side="right").clip(max=len(reached) - 1)]

    levels: list[np.ndarray] = []
    position = half * size
    for height in range(top):
        # The library's iterator takes an empty lowest level for the next: it gets one item, or two.
        items = 2 - (rest & 1) if height == 0 else rest >> height & 1
        if height == 0:
            rest -= items
        levels.append(at([position + n * (1 << height) + (1 << height) // 2 for n in range(items)]))
        position += items << height
    return [*levels, at(middles)]


def _capacity(depth: int) -> int:
    """Items that a level may hold, `depth` below the top: K x (2/3)^depth, rounded as the library does."""
    return max(_LEAST_CAPACITY, ((((K << 1) << depth) // 3**depth) + 1) >> 1)
