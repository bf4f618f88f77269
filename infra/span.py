"""Trailing spans of event time as slices: where the rows of (t - back, t] lie, for many events at once.

Rows of a source are laid out group by group, each in the order of event time. All rows that an event may
look at, those of its group within a span, are then one slice [low, high) of the layout: a count is
high - low, a sum the difference of two running sums, and a minimum or maximum two look-ups in a sparse
table (Bender and Farach-Colton, "The LCA Problem Revisited", 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_NO_GROUP = -1
# Beyond that a running sum over all groups may swallow the digits of the small ones.
_LARGEST_TOTAL = 1e12


class Codes:
    """Values of one column as whole numbers, in the order in which events first have them."""

    def __init__(self, asked: pl.Series) -> None:
        values = asked.drop_nulls().unique(maintain_order=True)
        self.count = len(values)
        self._numbered = values.alias("value").to_frame().with_row_index("code")
        self._dtype = pl.Enum(values) if asked.dtype == pl.String else None

    def of(self, values: pl.Series) -> Ints:
        """Code of each value; -1 for one that no event has, and for null."""
        if self._dtype is not None:
            codes = values.cast(self._dtype, strict=False).to_physical()
        else:
            frame = values.alias("value").to_frame()
            joined = frame.join(self._numbered, on="value", how="left", maintain_order="left")
            codes = joined.get_column("code")
        numbers = codes.cast(pl.Int64)
        return (numbers.fill_null(_NO_GROUP) if numbers.null_count() else numbers).to_numpy()


def combined(codes: Sequence[Ints], counts: Sequence[int], height: int) -> Ints:
    """One number for each combination of codes; -1 where any of them is."""
    groups = np.zeros(height, np.int64)
    for code, count in zip(codes, counts, strict=True):
        groups *= max(1, count)
        groups += code
    for code in codes:
        groups[code < 0] = _NO_GROUP
    return groups


class Asked:
    """The groups that the events ask for, and an order of the events that visits group after group.

    Binary searches in the order of what is searched for stay in the processor's cache.
    """

    def __init__(self, groups: Ints) -> None:
        self.groups = groups
        small = groups.max(initial=0) < np.iinfo(np.uint16).max
        # Stable sorting of 16 bits is by radix, an eighth of the time; -1 becomes the largest of them.
        self.order: Ints = np.argsort(groups.astype(np.uint16) if small else groups, kind="stable")
        self.sorted = groups[self.order]
        self.is_none = self.sorted < 0


class Layout:
    """Rows of a source in the order of event time, as one group.

    Args:
        rows: as they come.
        order: their numbers by event time; rows of equal time in the order that decides between them.
    """

    def __init__(self, rows: pl.DataFrame, order: Ints) -> None:
        self.rows = rows
        self.order = order
        self._columns: dict[str, Column] = {}

    def before(self, ranks: Ints) -> Ints:
        """Where each event's group ends in the layout, were it cut behind the first `ranks` rows."""
        return ranks

    def newest(self, low: Ints, high: Ints, columns: Mapping[str, pl.Expr]) -> pl.DataFrame:
        """Of each slice the last row, as these columns; nulls where the slice is empty."""
        at = self.order[np.maximum(high, 1) - 1] if len(self.order) else np.zeros_like(high)
        positions = pl.Series(np.where(high > low, at, np.nan), nan_to_null=True).cast(pl.UInt32)
        return self.rows.select(column.gather(positions).alias(name) for name, column in columns.items())

    def column(self, name: str) -> Column:
        """A column's values in the order of the layout."""
        if name not in self._columns:
            self._columns[name] = Column(self.rows.get_column(name), self)
        return self._columns[name]

    def starts(self) -> Ints:
        """Where each group begins."""
        return np.zeros(min(1, len(self.order)), np.int64)


class Grouped(Layout):
    """Rows of a source, group by group, each in the order of event time.

    Args:
        rows: as they come.
        order: their numbers by event time; rows of equal time in the order that decides between them.
        groups: of each row in that order; those below 0 are left out.
        asked: groups of the events; one below 0 finds nothing.
    """

    def __init__(self, rows: pl.DataFrame, order: Ints, groups: Ints, asked: Asked) -> None:
        # A place holds both group and row, so plain sorting of numbers is stable and gives both back.
        self._row_bits = rows.height.bit_length()
        most = max(int(groups.max(initial=0)), int(asked.sorted.max(initial=0))) + 1
        # Half the bytes are sorted in half the time.
        self._kind = np.int32 if most << self._row_bits <= np.iinfo(np.int32).max else np.int64
        placed = groups.astype(self._kind) << self._row_bits
        placed |= np.arange(rows.height, dtype=self._kind)
        self._places = np.sort(placed[groups >= 0])
        super().__init__(rows, order[self._places & ((1 << self._row_bits) - 1)])
        self._asked = asked
        self._bases = asked.sorted.astype(self._kind) << self._row_bits

    def before(self, ranks: Ints) -> Ints:
        """See `Layout`."""
        places = self._bases + ranks.astype(self._kind)[self._asked.order]
        places[self._asked.is_none] = 0
        found = np.empty_like(ranks)
        found[self._asked.order] = np.searchsorted(self._places, places)
        return found

    def starts(self) -> Ints:
        """See `Layout`."""
        return np.flatnonzero(np.diff(self._places >> self._row_bits, prepend=_NO_GROUP))


class Column:
    """Sums and extremes of one column over slices that lie within a group.

    A null counts as no value, and so does what is not finite.

    Args:
        values: of the source's rows.
        layout: where those rows stand.
    """

    def __init__(self, values: pl.Series, layout: Layout) -> None:
        self._dtype = values.dtype
        self._source = values
        self._layout = layout
        laid_out = values.cast(pl.Float64).to_numpy()[layout.order]
        self._holds = np.isfinite(laid_out)
        whole = bool(self._holds.all())
        if not whole:
            laid_out = np.where(self._holds, laid_out, 0.0)
        self._sums = _Sums(laid_out, layout.starts)
        self._counts = None if whole else _running(self._holds.astype(np.int64))
        self._tables: dict[str, list[NDArray[Any]]] = {}

    def count(self, low: Ints, high: Ints) -> Ints:
        """How many values the slices hold."""
        return high - low if self._counts is None else self._counts[high] - self._counts[low]

    def sum(self, low: Ints, high: Ints) -> pl.Series:
        """Sums; null where there is no value."""
        total = self._sums.between(low, high)
        total[self.count(low, high) == 0] = np.nan
        return pl.Series(total, nan_to_null=True)

    def mean(self, low: Ints, high: Ints) -> pl.Series:
        """Means; null where there is no value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sums.between(low, high) / self.count(low, high)
        return pl.Series(mean, nan_to_null=True)

    def min(self, low: Ints, high: Ints) -> pl.Series:
        """Smallest values; null where there is none."""
        return self._extreme("min", np.minimum, low, high)

    def max(self, low: Ints, high: Ints) -> pl.Series:
        """Largest values; null where there is none."""
        return self._extreme("max", np.maximum, low, high)

    def _extreme(self, how: str, pick: np.ufunc, low: Ints, high: Ints) -> pl.Series:
        width = high - low
        longest = int(width.max(initial=0))
        if longest == 0:
            return pl.Series([None] * len(low), dtype=self._dtype)
        stacked = np.concatenate(self._table(how, pick, longest))
        height = len(self._holds)
        # Two runs of the greatest power of two that fits cover a slice from its both ends.
        level = np.frexp(np.maximum(width, 1).astype(np.float64))[1] - 1
        first = np.minimum(low, height - 1)
        last = np.maximum(high - (1 << level), 0)
        extreme = pick(stacked[level * height + first], stacked[level * height + last])
        there = self.count(low, high) > 0
        if extreme.dtype == np.float64:
            return pl.Series(np.where(there, extreme, np.nan), nan_to_null=True).cast(self._dtype)
        return pl.select(pl.when(pl.Series(there)).then(pl.Series(extreme)).cast(self._dtype)).to_series()

    def _table(self, how: str, pick: np.ufunc, longest: int) -> list[NDArray[Any]]:
        """By level k, the extreme of the 2**k values from each position on."""
        if how not in self._tables:
            kind = np.int64 if self._dtype.is_integer() else np.float64
            values = self._source.cast(pl.Int64 if kind is np.int64 else pl.Float64).fill_null(0)
            laid_out = values.to_numpy()[self._layout.order].astype(kind)
            self._tables[how] = [np.where(self._holds, laid_out, _no_value(kind, how)).astype(kind)]
        table = self._tables[how]
        while (1 << len(table)) <= longest:
            half = 1 << (len(table) - 1)
            above = table[-1].copy()
            above[:-half] = pick(table[-1][:-half], table[-1][half:])
            table.append(above)
        return table


def _no_value(kind: type[np.int64 | np.float64], how: str) -> float:
    """What neither a minimum nor a maximum would ever choose over a value."""
    if kind is np.float64:
        return np.inf if how == "min" else -np.inf
    bounds = np.iinfo(np.int64)
    return bounds.max if how == "min" else bounds.min


class _Sums:
    """Sums over slices that lie within a group.

    One running sum goes over all groups, unless their numbers are so large that one group would take the
    digits from the next: then each group has its own.
    """

    def __init__(self, values: Floats, starts: Callable[[], Ints]) -> None:
        self.between: Callable[[Ints, Ints], Floats]
        if float(np.abs(values).sum()) <= _LARGEST_TOTAL:
            self._running = _running(values)
            self.between = self._over_all
        else:
            # Sums up to and with each row of its own group: one place more, for slices at the very end.
            own = [np.cumsum(group) for group in np.split(values, starts()[1:])] if len(values) else []
            self._through = np.concatenate([*own, [0.0]])
            self._values = np.append(values, 0.0)
            self.between = self._by_group

    def _over_all(self, low: Ints, high: Ints) -> Floats:
        return self._running[high] - self._running[low]

    def _by_group(self, low: Ints, high: Ints) -> Floats:
        total = self._through[high - 1] - (self._through[low] - self._values[low])
        return np.where(high > low, total, 0.0)


def _running(values: NDArray[Any]) -> NDArray[Any]:
    running = np.empty(len(values) + 1, values.dtype)
    running[0] = 0
    np.cumsum(values, out=running[1:])
    return running
