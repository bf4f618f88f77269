"""Duplicates: a key that is in the dataset already, near the same event time.

Rows are taken in their order, and what is kept counts: so the same survive however the rows were batched.
What is remembered is a cache over the dataset, of its newest rows; what lies before them is read from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
import polars as pl

from streams.compiled import walks

Read = Callable[[int, int], pl.DataFrame]
"""Key and `_time` of the dataset's rows of a source with event time in [start_ms, end_ms)."""

_EVER_MS = -(2**62)
# So many rows are remembered, looked through and forgotten together, at the least.
_PART_ROWS = 50_000


class Seen:
    """The keys of one source's newest rows."""

    def __init__(self, key: str, within_ms: int, read: Read | None = None) -> None:
        self.key, self.within_ms = key, within_ms
        self._read = read
        self._parts: list[Keys] = []
        self._sieve = Sieve()
        self._from_ms = _EVER_MS

    def recall(self, from_ms: int | None) -> None:
        """Start anew, with what the dataset holds from an event time on; None: it holds nothing yet."""
        self._parts, self._from_ms = [], _EVER_MS
        if from_ms is not None and self._read is not None:
            self._from_ms = from_ms - self.within_ms
            self._parts = [self.keys(self._read(self._from_ms, -_EVER_MS))]
        self._sieve = Sieve(*(part.hashes for part in self._parts))

    def keys(self, rows: pl.DataFrame) -> Keys:
        """What is asked, and remembered, of rows."""
        keys = rows.get_column(self.key)
        return Keys(keys, keys.hash().to_numpy(), rows.get_column("_time").to_numpy())

    def remember(self, fresh: Keys, *, forget_before_ms: int | None = None) -> None:
        """Add rows that are in the dataset; forget what rows from an event time on cannot repeat."""
        if self._parts and len(self._parts[-1]) < _PART_ROWS:
            self._parts[-1] = self._parts[-1].and_those(fresh)
        else:
            self._parts.append(fresh)
        if forget_before_ms is not None:
            self._from_ms = max(self._from_ms, forget_before_ms - self.within_ms)
            self._parts = [part for part in self._parts if part.newest_ms >= self._from_ms]
        if self._sieve.has_room(len(fresh), sum(map(len, self._parts))):
            self._sieve.put(fresh.hashes)
        else:
            self._sieve = Sieve(*(part.hashes for part in self._parts))

    def repeats(self, asked: Keys, coming: Keys | None = None) -> np.ndarray:
        """True for a row that repeats one of the dataset, or one that was kept before it of these: (N,).

        Args:
            coming: rows on their way into the dataset, which are not remembered yet; they count, too.
        """
        # Nearly every key is new, which its hash alone tells. Only for the others is looked more closely.
        older = self._older(asked)
        if coming is not None:
            older = coming.and_those(older) if len(older) else coming
        in_frame = come_again(asked.hashes)
        may_repeat = in_frame | self._sieve.may_hold(asked.hashes)
        if len(older):
            may_repeat |= Sieve(older.hashes).may_hold(asked.hashes)
        suspect = np.flatnonzero(may_repeat)
        known = self._known(asked.at(suspect), older)
        suspect = suspect[in_frame[suspect] | np.isin(asked.hashes[suspect], known.hashes)]
        repeated = np.zeros(len(asked), np.bool_)
        repeated[suspect[_repeats(asked.at(suspect), known, self.within_ms)]] = True
        return repeated

    def _known(self, asked: Keys, older: Keys) -> Keys:
        """Rows that are in the dataset, or among the older ones, and may have a key that is asked for."""
        sieve = Sieve(asked.hashes)
        # Where partitions are far apart most of what is remembered is of another time.
        near = [part for part in self._parts if part.is_near(asked, self.within_ms)]
        passed = [part.where(sieve.may_hold(part.hashes)) for part in (older, *near)]
        known = passed[0].and_those(*passed[1:])
        return known.where(np.isin(known.hashes, asked.hashes))

    def _older(self, asked: Keys) -> Keys:
        """Rows of the dataset from before what is remembered, as far as these could repeat them."""
        none = asked.at(np.zeros(0, np.intp))
        stray = asked.times_ms[asked.times_ms < self._from_ms + self.within_ms]
        if self._read is None or not stray.size:
            return none
        spans = _spans(np.sort(stray).tolist(), self.within_ms)
        read = [self._read(start_ms, min(end_ms, self._from_ms)) for start_ms, end_ms in spans]
        return none.and_those(*map(self.keys, read))


@dataclass(frozen=True)
class Keys:
    """Of rows (N,) their keys, these keys' hashes, uint64, and their event times."""

    keys: pl.Series
    hashes: np.ndarray
    times_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def newest_ms(self) -> int:
        return int(self.times_ms.max(initial=_EVER_MS))

    @cached_property
    def oldest_ms(self) -> int:
        return int(self.times_ms.min(initial=-_EVER_MS))

    def is_near(self, others: Keys, within_ms: int) -> bool:
        """Whether a row of these and one of the others may lie within so much of each other."""
        return (
            self.oldest_ms - within_ms <= others.newest_ms and others.oldest_ms <= self.newest_ms + within_ms
        )

    def at(self, places: np.ndarray) -> Keys:
        return Keys(self.keys.gather(places), self.hashes[places], self.times_ms[places])

    def where(self, mask: np.ndarray) -> Keys:
        """Those for which the mask, Boolean (N,), is true: of nearly all in an eighth of `at`'s time."""
        return Keys(self.keys.filter(pl.Series(mask)), self.hashes[mask], self.times_ms[mask])

    def and_those(self, *others: Keys) -> Keys:
        parts = (self, *others)
        return Keys(
            pl.concat([part.keys for part in parts], rechunk=True),
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.times_ms for part in parts]),
        )


def _repeats(rows: Keys, known: Keys, within_ms: int) -> list[int]:
    """Places of rows that lie near a known one of their key, or near one before them that does not."""
    kept: dict[object, list[int]] = {}
    order = known.times_ms.argsort(kind="stable")
    for key, time_ms in zip(known.keys.gather(order), known.times_ms[order].tolist(), strict=True):
        kept.setdefault(key, []).append(time_ms)
    repeated: list[int] = []
    for place, (key, time_ms) in enumerate(zip(rows.keys, rows.times_ms.tolist(), strict=True)):
        others = kept.setdefault(key, [])
        at = bisect_left(others, time_ms)
        if (at < len(others) and others[at] - time_ms <= within_ms) or (
            at and time_ms - others[at - 1] <= within_ms
        ):
            repeated.append(place)
        else:
            others.insert(at, time_ms)
    return repeated


def come_again(hashes: np.ndarray) -> np.ndarray:
    """Which of these (N,) uint64 may be there more than once: a mask. Of a crowd it may be all."""
    bits = (hashes.size * 2).bit_length()
    if (walk := _walk(hashes)) is not None:
        again = np.zeros(hashes.size, np.bool_)
        walk.come_again(hashes, np.zeros(1 << bits, np.uint32), 64 - bits, again)
        return again
    place = (hashes >> np.uint64(64 - bits - 2)).astype(np.intp)
    return np.bincount(place, minlength=4 << bits)[place] > 1


class Sieve:
    """Tells of a hash that it was certainly not put in, or that it may have been.

    A Bloom filter whose two bits of a hash lie in one word (Putze, Sanders and Singler, 2007: blocked): it is
    looked up once, however many were put in. Nothing can be taken out: with time it lets more pass, and is
    made anew of what is still remembered.
    """

    def __init__(self, *hashes: np.ndarray) -> None:
        bits = (sum(part.size for part in hashes) // _KEYS_A_WORD).bit_length()
        self._bits = min(max(bits, _LEAST_BITS), _MOST_BITS)
        self._words = np.zeros(1 << self._bits, np.uint64)
        self._put = 0
        for part in hashes:
            self.put(part)

    def has_room(self, more: int, remembered: int) -> bool:
        """Whether it is still worth its place with so many more, of those that are remembered then."""
        put = self._put + more
        is_small = put <= 2 * _KEYS_A_WORD * self._words.size
        return (is_small or self._bits == _MOST_BITS) and put <= 2 * remembered + _LEAST_STALE

    def put(self, hashes: np.ndarray) -> None:
        """From now on these may be in it."""
        if (walk := _walk(hashes)) is not None:
            walk.put(hashes, self._words, 64 - self._bits)
        else:
            np.bitwise_or.at(self._words, *self._places(hashes))
        self._put += hashes.size

    def may_hold(self, hashes: np.ndarray) -> np.ndarray:
        """True for those that may have been put in: a mask (N,)."""
        if (walk := _walk(hashes)) is not None:
            found = np.empty(hashes.size, np.bool_)
            walk.may_hold(hashes, self._words, 64 - self._bits, found)
            return found
        word, bits = self._places(hashes)
        return self._words[word] & bits == bits

    def _places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The word of each hash, and its two bits."""
        one, six, low = np.uint64(1), np.uint64(6), np.uint64(63)
        word = (hashes >> np.uint64(64 - self._bits)).astype(np.intp)
        return word, (one << (hashes & low)) | (one << ((hashes >> six) & low))


def _walk(hashes: np.ndarray) -> ModuleType | None:
    compiled = walks(ask=hashes.size >= _WORTH_A_WALK)
    return None if compiled is None else compiled.keys


_WORTH_A_WALK = 8_192
# So one new key in some hundred passes, and one in fifty once there are twice as many.
_KEYS_A_WORD = 2
_LEAST_BITS, _MOST_BITS = 10, 24
# So many of what is forgotten do not matter yet.
_LEAST_STALE = 100_000


def _spans(times_ms: list[int], within_ms: int) -> list[tuple[int, int]]:
    """The half-open spans around sorted times, those that touch as one."""
    spans: list[tuple[int, int]] = []
    for time_ms in times_ms:
        start_ms, end_ms = time_ms - within_ms, time_ms + within_ms + 1
        if spans and start_ms <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end_ms)
        else:
            spans.append((start_ms, end_ms))
    return spans
