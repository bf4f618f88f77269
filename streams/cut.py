"""Columns of pieces of bytes, cut out by a compiled walk: a third of what slices by Polars cost, or less."""

from __future__ import annotations

from types import ModuleType

import nanoarrow
import numpy as np
import polars as pl


def binaries(content: np.ndarray, begins: np.ndarray, sizes: np.ndarray, walk: ModuleType) -> pl.Series:
    """Binary (N,): what begins there in `content`, uint8, so many bytes of it; null where that is negative.

    Args:
        content: behind the last piece stand `walk.WORD` bytes of any kind.
        walk: `compiled.cut_walk`.
    """
    pieces, offsets, _ = _cut(content, begins, sizes, walk)
    cut = _column(nanoarrow.large_binary(), pieces, offsets)
    if (sizes >= 0).all():
        return cut
    return pl.select(pl.when(pl.lit(pl.Series(sizes >= 0))).then(pl.lit(cut))).to_series()


def texts(content: np.ndarray, begins: np.ndarray, sizes: np.ndarray, walk: ModuleType) -> pl.Series:
    """String (N,): the same of texts, none of which is null.

    Raises:
        PolarsError: one of them is no UTF-8.
    """
    column = Texts(walk)
    column.add(content, begins, sizes)
    return column.series()


class Texts:
    """A column of texts that is cut out a part at a time, and handed over at once: that has its price."""

    def __init__(self, walk: ModuleType) -> None:
        self._walk = walk
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._is_ascii = True

    def add(self, content: np.ndarray, begins: np.ndarray, sizes: np.ndarray) -> None:
        """What begins there in `content`; see `texts`."""
        pieces, offsets, is_ascii = _cut(content, begins, sizes, self._walk)
        self._parts.append((pieces[: offsets[-1]], offsets))
        self._is_ascii &= is_ascii

    def series(self) -> pl.Series:
        """String (N,): all parts, in their order.

        Raises:
            PolarsError: one of the texts is no UTF-8.
        """
        pieces = [pieces for pieces, _ in self._parts]
        before = np.cumsum([0, *map(len, pieces)])
        offsets = [each[:-1] + first for (_, each), first in zip(self._parts, before, strict=False)]
        joined = np.concatenate(pieces or [np.empty(0, np.uint8)])
        places = np.concatenate([*offsets, before[-1:]])
        if self._is_ascii:
            return _column(nanoarrow.large_string(), joined, places)
        return _column(nanoarrow.large_binary(), joined, places).cast(pl.String)


def _cut(
    content: np.ndarray, begins: np.ndarray, sizes: np.ndarray, walk: ModuleType
) -> tuple[np.ndarray, np.ndarray, bool]:
    pieces = np.empty(int(sizes.sum(where=sizes > 0)) + walk.WORD, np.uint8)
    offsets = np.empty(len(begins) + 1, np.int64)
    is_ascii = walk.cut(content, begins, sizes, pieces, offsets)
    return pieces, offsets, is_ascii


def _column(kind: nanoarrow.Schema, pieces: np.ndarray, offsets: np.ndarray) -> pl.Series:
    """Handed over as they are: nothing is copied, and nothing is looked at."""
    return pl.Series(nanoarrow.c_array_from_buffers(kind, len(offsets) - 1, [None, offsets, pieces]))
