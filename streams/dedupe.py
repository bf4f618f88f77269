"""Duplicates: a key that is in the dataset already, near the same event time.

Rows are taken in their order, and what is kept counts: so the same survive however the rows were batched.
What is remembered is a cache over the dataset, of its newest rows; what lies before them is read from it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np
import polars as pl

Read = Callable[[int, int], pl.DataFrame]
"""Key and `_time` of the dataset's rows of a source with event time in [start_ms, end_ms)."""

_EVER_MS = -(2**62)
_HASH = "_hash"


class Seen:
    """The keys of one source's newest rows."""

    def __init__(self, key: str, within_ms: int, read: Read | None = None) -> None:
        self.key, self.within_ms = key, within_ms
        self._read = read
        self._seen: pl.DataFrame | None = None
        self._sieve = Sieve()
        self._from_ms = _EVER_MS

    def recall(self, from_ms: int | None) -> None:
        """Start anew, with what the dataset holds from an event time on; None: it holds nothing yet."""
        self._seen, self._from_ms = None, _EVER_MS
        if from_ms is not None and self._read is not None:
            self._from_ms = from_ms - self.within_ms
            self._seen = self._remembered(self._read(self._from_ms, -_EVER_MS))
        self._sieve = Sieve() if self._seen is None else Sieve(self._seen.get_column(_HASH))

    def remember(self, rows: pl.DataFrame, *, forget_before_ms: int | None = None) -> None:
        """Add rows that are in the dataset; forget what rows from an event time on cannot repeat."""
        fresh = self._remembered(rows)
        seen = fresh if self._seen is None else pl.concat([self._seen, fresh])
        if forget_before_ms is not None:
            self._from_ms = max(self._from_ms, forget_before_ms - self.within_ms)
            seen = seen.filter(pl.col("_seen") >= self._from_ms)
        self._seen = seen
        if self._sieve.has_room(fresh.height, seen.height):
            self._sieve.put(fresh.get_column(_HASH))
        else:
            self._sieve = Sieve(seen.get_column(_HASH))

    def repeats(self, rows: pl.DataFrame) -> pl.Series:
        """True for a row that repeats one of the dataset, or one that was kept before it in this frame."""
        asked = self._hashed(rows.select(self.key, "_time").with_row_index("_index"))
        older = self._older(asked)
        seen = [part for part in (older, self._seen) if part is not None and part.height]
        # Nearly every key is new, which its hash alone tells. Only for the others is looked more closely.
        hashes = asked.get_column(_HASH)
        passed = [hashes.filter(pl.Series(self._sieve.may_hold(hashes))), older.get_column(_HASH)]
        again = pl.concat([more_than_once(hashes), *passed]).unique()
        suspect = asked.filter(pl.col(_HASH).is_in(again.implode()))
        mask = pl.repeat(False, asked.height, dtype=pl.Boolean, eager=True)
        if suspect.height == 0:
            return mask
        found = [self._near(suspect, part.filter(pl.col(_HASH).is_in(again.implode()))) for part in seen]
        repeated = pl.concat(found).unique() if found else pl.Series("_index", [], dtype=pl.UInt32)
        several = suspect.select(
            "_index", self.key, "_time", pl.col("_index").is_in(repeated.implode()).alias("repeats")
        ).filter(pl.col(self.key).is_duplicated())
        return mask.scatter(repeated, True).scatter(self._within_frame(several), True)

    def _remembered(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self._hashed(rows.select(self.key, pl.col("_time").alias("_seen")))

    def _hashed(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(pl.col(self.key).hash().alias(_HASH))

    def _near(self, asked: pl.DataFrame, seen: pl.DataFrame) -> pl.Series:
        known = asked.join(seen, on=self.key, how="semi")
        if known.height == 0:
            return known.get_column("_index")
        return (
            known.sort("_time")
            .join_asof(
                seen.sort("_seen"),
                left_on="_time",
                right_on="_seen",
                by=self.key,
                strategy="nearest",
                tolerance=self.within_ms,
                check_sortedness=False,
            )
            .filter(pl.col("_seen").is_not_null())
            .get_column("_index")
        )

    def _older(self, asked: pl.DataFrame) -> pl.DataFrame:
        """Rows of the dataset from before what is remembered, as far as these rows could repeat them."""
        none = self._hashed(pl.DataFrame(schema={self.key: asked.schema[self.key], "_seen": pl.Int64}))
        if self._read is None or self._from_ms == _EVER_MS:
            return none
        stray = asked.filter(pl.col("_time") - self.within_ms < self._from_ms)
        spans = _spans(stray.get_column("_time").sort().to_list(), self.within_ms)
        read = [self._read(start_ms, min(end_ms, self._from_ms)) for start_ms, end_ms in spans]
        return pl.concat([none, *(self._remembered(rows) for rows in read)])

    def _within_frame(self, several: pl.DataFrame) -> list[int]:
        """Indices of rows that repeat one of this frame, for the keys that come more than once in it."""
        kept: dict[object, list[int]] = {}
        repeated = []
        for index, key, time_ms, in_dataset in several.iter_rows():
            times = kept.setdefault(key, [])
            at = bisect_left(times, time_ms)
            near = any(abs(time_ms - other) <= self.within_ms for other in times[max(0, at - 1) : at + 1])
            if near and not in_dataset:
                repeated.append(index)
            elif not in_dataset:
                insort(times, time_ms)
        return repeated


def more_than_once(hashes: pl.Series) -> pl.Series:
    """Those that come more than once, in order: only what shares a drawer with another is sorted."""
    every = hashes.to_numpy()
    bits = min(max((every.size * _DRAWERS_EACH // 2).bit_length(), 1), _MOST_BITS)
    drawer = (every >> np.uint64(64 - bits)).astype(np.intp)
    shared = np.sort(every[np.bincount(drawer, minlength=1 << bits)[drawer] > 1])
    return pl.Series(np.unique(shared[1:][shared[1:] == shared[:-1]]), dtype=pl.UInt64)


class Sieve:
    """Tells of a hash that it was certainly not put in, or that it may have been (Bloom, 1970, of one bit).

    What it costs to ask does not depend on how many were put in. Nothing can be taken out: with time it
    lets more pass, and is made anew of what is still remembered.
    """

    def __init__(self, hashes: pl.Series | None = None) -> None:
        many = 0 if hashes is None else hashes.len()
        self._bits = min(max((many * _DRAWERS_EACH).bit_length(), _LEAST_BITS), _MOST_BITS)
        self._taken = np.zeros(1 << self._bits, dtype=np.bool_)
        self._put = 0
        if hashes is not None:
            self.put(hashes)

    def has_room(self, more: int, remembered: int) -> bool:
        """Whether it is still worth its place with so many more, of those that are remembered then."""
        put = self._put + more
        is_small = put * _DRAWERS_EACH <= 2 << self._bits
        return (is_small or self._bits == _MOST_BITS) and put <= 2 * remembered + _LEAST_STALE

    def put(self, hashes: pl.Series) -> None:
        """From now on these may be in it."""
        self._taken[self._drawer(hashes)] = True
        self._put += hashes.len()

    def may_hold(self, hashes: pl.Series) -> np.ndarray:
        """A mask (N,), False for what was certainly not put in."""
        return self._taken[self._drawer(hashes)]

    def _drawer(self, hashes: pl.Series) -> np.ndarray:
        return (hashes.to_numpy() >> np.uint64(64 - self._bits)).astype(np.intp)


# One in so many drawers is taken when it is made: so one new key in as many is looked at more closely.
_DRAWERS_EACH = 16
_LEAST_BITS, _MOST_BITS = 16, 26
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
