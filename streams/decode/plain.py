"""JSON records as programs write them: read by a compiled walk, beside Python's lock.

A program's records are flat objects of the contract's fields, seldom with anything escaped. Those the walk
reads to the values that msgspec would give, in a third of the time (`compiled/json_walk.py`). Whatever it
does not take, or what breaks a bound, is msgspec's to read, and to say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import polars as pl

from streams.compiled import Walks, walks
from streams.cut import Texts, texts
from streams.decode.columns import Column
from streams.keep import keep
from streams.lay import side_by_side

MOST_COLUMNS = 63
"""Of a contract: what a record has is noted in the bits of one number."""
FEWEST = 1024
"""Records that are worth a walk: it has some twenty columns to make and to hand over, half a millisecond."""
_AT_LEAST = 0.5
"""Of the records must be plain, or the next batches are not tried."""
_REST = 16
_AT_A_TIME = 16_384

_FARTHEST = 2**63 - 1
_GREATEST = float(np.finfo(np.float64).max)

# Bounds that mean the same to msgspec and to Polars: not another engine's patterns, nor remainders of floats.
_BOUNDS = {"ge", "gt", "le", "lt", "min_length", "max_length"}


class PlainRecords:
    """Reads records of one contract that are written plainly.

    Args:
        columns: the contract's.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._is_fit = 0 < len(columns) <= MOST_COLUMNS and all(
            limit in _BOUNDS for column in columns for limit, _ in column.limits
        )
        self._layout: _Layout | None = None
        self._resting = 0

    def read(self, values: pl.Series) -> tuple[pl.DataFrame, pl.Series] | None:
        """Rows (M, columns) of the records that are plain, in their order, and where those are: a mask (N,).

        None where records are few or mostly not plain, and while there is no compiled walk.

        Args:
            values: Binary (N,), none of them null.
        """
        if not self._is_fit or len(values) < FEWEST:
            return None
        if self._resting:
            self._resting -= 1
            return None
        if (compiled := walks(ask=True)) is None:
            return None
        if self._layout is None:
            self._layout = _Layout(self._columns, compiled)
        rows, alike = self._layout.read(values)
        if rows.height < _AT_LEAST * len(values):
            self._resting = _REST
            return None
        return rows, alike


@dataclass(slots=True)
class _Found:
    """What the walk found in these records, as it says it."""

    wholes: np.ndarray
    reals: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    states: np.ndarray
    seen: np.ndarray
    alike: np.ndarray
    texts: dict[int, Texts] = field(default_factory=dict)

    @classmethod
    def room(cls, columns: int, records: int) -> _Found:
        shape = (columns, records)
        return cls(
            wholes=np.empty(shape, np.int64),
            reals=np.empty(shape),
            starts=np.empty(shape, np.int64),
            lengths=np.empty(shape, np.int64),
            states=np.empty(shape, np.uint8),
            seen=np.zeros(columns, np.uint8),
            alike=np.empty(records, np.bool_),
        )


class _Layout:
    """A contract's columns as the walk wants to have them."""

    def __init__(self, columns: Sequence[Column], compiled: Walks) -> None:
        self._compiled, self._walk, self._columns = compiled, compiled.json, columns
        kinds = {
            pl.Int64(): self._walk.WHOLE,
            pl.Float64(): self._walk.REAL,
            pl.Boolean(): self._walk.TRUTH,
            pl.String(): self._walk.TEXT,
        }
        self._kinds = np.array([kinds[column.dtype] for column in columns], np.uint8)
        self._texts = np.flatnonzero(self._kinds == self._walk.TEXT).tolist()
        # Real numbers have their own place in one array; whole ones and truths in another.
        is_real = self._kinds == self._walk.REAL
        self._slots = np.where(is_real, is_real.cumsum(), (~is_real).cumsum()) - 1
        self._may_lack = np.array([[c.nullable for c in columns], [not c.required for c in columns]])
        limits = [_limits(column) for column in columns]
        whole = [each if isinstance(each[0], int) else (0, 0) for each in limits]
        self._bounds = np.array(whole).T.copy()
        self._real_bounds = np.array(limits, np.float64).T.copy()
        keys = [msgspec.json.encode(column.name) for column in columns]
        self._sizes = np.array([len(key) for key in keys])
        width = -(-int(self._sizes.max()) // 8) * 8
        self._words = _words([key.ljust(width, b"\0") for key in keys])
        self._masks = _words([(b"\xff" * len(key)).ljust(width, b"\0") for key in keys])
        self._room = width + 16
        # Behind the last one, and at the beginning, the first is expected.
        self._follows = np.append((np.arange(len(columns)) + 1) % len(columns), 0)

    def read(self, values: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Rows (M, columns) of the records that are plain, and where those are: a mask (N,)."""
        try:
            return self._read(values)
        except pl.exceptions.PolarsError:  # some are no text; it does not say which
            text = pl.Series(map(_is_text, values), dtype=pl.Boolean)
            rows, alike = self._read(values.filter(text))
            return rows, text.scatter(text.arg_true(), alike)

    def _read(self, values: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        found = _Found.room(len(self._columns), len(values))
        found.texts = {number: Texts(self._compiled.cut) for number in self._texts}
        # Some thousand at a time: they are in the processor's cache while they are walked and cut.
        for at in range(0, len(values), _AT_A_TIME):
            self._look(values[at : at + _AT_A_TIME], at, found)
        rows = pl.select(self._column(found, number) for number in range(len(self._columns)))
        alike = pl.Series(found.alike)
        return (rows if alike.all() else keep(rows, alike)), alike

    def _look(self, values: pl.Series, first: int, found: _Found) -> None:
        """Walk over records, which are rows from `first` on, and cut out what is written."""
        # Behind the last record the walk may look.
        content, offsets = side_by_side(values, self._compiled.cut, room=self._room)
        self._compiled.json.walk(
            content,
            offsets[:-1],
            offsets[1:],
            first,
            self._words,
            self._masks,
            self._sizes,
            self._kinds,
            self._slots,
            self._may_lack,
            self._bounds,
            self._real_bounds,
            self._follows,
            found.wholes,
            found.reals,
            found.starts,
            found.lengths,
            found.states,
            found.seen,
            found.alike,
        )

        own = slice(first, first + len(values))
        for number, column in found.texts.items():
            column.add(content, found.starts[number, own], found.lengths[number, own])
        for number in np.flatnonzero(found.seen & self._walk.FAR).tolist():
            far = first + np.flatnonzero(found.states[number, own] == self._walk.FAR)
            starts, lengths = found.starts[number, far], found.lengths[number, far]
            read = texts(content, starts, lengths, self._compiled.cut).cast(pl.Float64).to_numpy()
            least, most = self._real_bounds[:, number]
            found.reals[self._slots[number], far] = read
            found.alike[far] &= (read >= least) & (read <= most)

    def _column(self, found: _Found, number: int) -> pl.Expr:
        column, slot, seen = self._columns[number], self._slots[number], found.seen[number]
        states = found.states[number]
        if column.dtype == pl.String():
            read = pl.lit(found.texts[number].series())
        elif column.dtype == pl.Float64():
            read = pl.lit(pl.Series(found.reals[slot]))
        else:
            wholes = pl.lit(pl.Series(found.wholes[slot]))
            read = wholes == 1 if column.dtype == pl.Boolean() else wholes
        if seen & self._walk.NULL:
            read = pl.when(pl.lit(pl.Series(states != self._walk.NULL))).then(read)
        if seen & self._walk.ABSENT:
            default = pl.lit(column.default, dtype=column.dtype)
            read = pl.when(pl.lit(pl.Series(states != self._walk.ABSENT))).then(read).otherwise(default)
        return read.alias(column.name)


def _limits(column: Column) -> tuple[float, float]:
    """Least and most of a value, or of a text's characters: whole numbers but for a column of real ones."""
    said = dict(column.limits)
    if column.dtype == pl.String():
        return said.get("min_length", 0), said.get("max_length", _FARTHEST)
    if column.dtype == pl.Float64():
        least = [-_GREATEST, said.get("ge", -_GREATEST)]
        most = [_GREATEST, said.get("le", _GREATEST)]
        if "gt" in said:
            least.append(np.nextafter(float(said["gt"]), np.inf))
        if "lt" in said:
            most.append(np.nextafter(float(said["lt"]), -np.inf))
        return float(max(least)), float(min(most))
    least = max(-_FARTHEST, said.get("ge", -_FARTHEST), said.get("gt", -_FARTHEST - 1) + 1)
    most = min(_FARTHEST, said.get("le", _FARTHEST), said.get("lt", _FARTHEST + 1) - 1)
    return min(least, _FARTHEST), max(most, -_FARTHEST)


def _words(texts: Sequence[bytes]) -> np.ndarray:
    """Texts of W words each, as uint64 (C, W), the first byte lowest."""
    return np.frombuffer(b"".join(texts), "<u8").astype(np.uint64).reshape(len(texts), -1)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
