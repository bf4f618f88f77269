"""The rows that announcements may still look at, in pieces by event time.

Partitions may be far apart: then millions of rows wait for the one behind, and each of its commits asks for
a few. So no question goes over all rows, only over the pieces whose event times it meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

_EVER_MS = 2**62
# Small commits come together into pieces of so many rows: each piece is some 20 µs to a question.
PIECE_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows whose event times lie in [first_ms, last_ms]."""

    rows: pl.DataFrame
    first_ms: int
    last_ms: int


class Recent:
    """Rows with `_time` (epoch ms) and the given columns, in no order."""

    def __init__(self, columns: Mapping[str, Any], rows: pl.DataFrame | None = None) -> None:
        self._nothing = pl.DataFrame(schema=columns)
        self._pieces: list[_Piece] = []
        self._from_ms = -_EVER_MS
        if rows is not None:
            self.add(rows)

    def add(self, rows: pl.DataFrame) -> None:
        """Take rows in. Equal pieces become one twice as large, so a row is copied a few times at most."""
        pieces = self._pieces
        if rows.height:
            pieces.append(_piece(rows))
        while len(pieces) > 1 and pieces[-2].rows.height < min(2 * pieces[-1].rows.height, PIECE_ROWS):
            last, before = pieces.pop(), pieces.pop()
            rows = pl.concat([before.rows, last.rows], rechunk=True)
            first_ms, last_ms = min(before.first_ms, last.first_ms), max(before.last_ms, last.last_ms)
            pieces.append(_Piece(rows, first_ms, last_ms))

    def rows(self) -> pl.DataFrame:
        """All rows."""
        return self.between(-_EVER_MS, _EVER_MS)

    def between(self, from_ms: int, until_ms: int) -> pl.DataFrame:
        """Rows with event time in [from_ms, until_ms)."""
        from_ms = max(from_ms, self._from_ms)
        found = [self._nothing]
        for piece in self._pieces:
            if piece.first_ms >= from_ms and piece.last_ms < until_ms:
                found.append(piece.rows)
            elif piece.first_ms < until_ms and piece.last_ms >= from_ms:
                within = pl.col("_time").is_between(from_ms, until_ms, closed="left")
                found.append(piece.rows.filter(within))
        return pl.concat(found)

    def take_before(self, ms: int) -> pl.DataFrame:
        """Rows with event time before `ms`; they are not here any more. Such that come later are."""
        taken, left = [self._nothing], []
        for piece in self._pieces:
            if piece.first_ms >= ms:
                left.append(piece)
            elif piece.last_ms < ms:
                taken.append(piece.rows)
            else:
                passed = pl.col("_time") < ms
                taken.append(piece.rows.filter(passed))
                left.append(_piece(piece.rows.filter(~passed)))
        self._pieces = left
        return pl.concat(taken)

    def forget_before(self, ms: int) -> None:
        """Rows with event time before `ms` are not here any more, nor are such that come later."""
        self._from_ms = max(self._from_ms, ms)
        self._pieces = [piece for piece in self._pieces if piece.last_ms >= self._from_ms]


def _piece(rows: pl.DataFrame) -> _Piece:
    times_ms = rows.get_column("_time").to_numpy()
    return _Piece(rows, int(times_ms.min()), int(times_ms.max()))
