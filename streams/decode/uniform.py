"""JSON records that are written like their neighbours: one pattern reads them all, beside Python's lock.

A program writes its records alike: the same keys in the same order, seldom anything escaped. From one record
and the contract a regular expression is made that matches only what msgspec takes, too, and with the same
values: whole records, each key once, strings without escapes, numbers by JSON's own grammar. Whatever it does
not match, or what breaks a bound, is msgspec's to read, and to say what is wrong with it.

A record costs the processor more so, 650 ns where msgspec and its loop take 550, but holds Python's lock for
25 instead of all of that; and what waited for the lock was the worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec
import polars as pl

from streams.decode.columns import Column

FEWEST = 1024
"""Records that are worth a pattern: it is compiled for each batch, half a millisecond."""
MOST_COLUMNS = 12
"""Of a contract. With more, the pattern outgrows what the engine matches in one pass, and is slow."""
_AT_LEAST = 0.5
"""Of the records must match, or the next batches are not tried."""
_REST = 16

# Bounds that mean the same to msgspec and to Polars: not another engine's patterns, nor remainders of floats.
_BOUNDS = {"ge", "gt", "le", "lt", "min_length", "max_length"}
_VALUES: dict[pl.DataType, str] = {
    pl.String(): r'"([^"\\\x00-\x1f]*)"',
    # 18 digits fit 64 bits whatever they are.
    pl.Int64(): r"(-?(?:0|[1-9][0-9]{0,17}))",
    # Not -0, which is a whole number without a sign to msgspec. No two ways to match, for one pass.
    pl.Float64(): (
        r"((?:0(?:\.[0-9]+)?|[1-9][0-9]*(?:\.[0-9]+)?|-(?:0\.[0-9]+|[1-9][0-9]*(?:\.[0-9]+)?))"
        r"(?:[eE][-+]?[0-9]+)?)"
    ),
    pl.Boolean(): r"(true|false)",
}


class Uniform:
    """Reads records of one contract that are written alike.

    Args:
        columns: the contract's.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = {column.name: column for column in columns}
        self._is_fit = len(columns) <= MOST_COLUMNS and all(
            limit in _BOUNDS for column in columns for limit, _ in column.limits
        )
        self._pattern: _Pattern | None = None
        self._resting = 0

    def read(self, values: pl.Series) -> tuple[pl.DataFrame, pl.Series] | None:
        """Rows (M, columns) of the records that are alike, in their order, and where those are: a mask (N,).

        None where records are few, or not alike enough.

        Args:
            values: Binary (N,), none of them null.
        """
        if not self._is_fit or len(values) < FEWEST:
            return None
        if self._resting:
            self._resting -= 1
            return None
        texts = _texts(values)
        for pattern in self._patterns(values[len(values) // 2]):
            rows, alike = pattern.read(texts)
            if rows.height >= _AT_LEAST * len(values):
                self._pattern = pattern
                return rows, alike
        self._pattern, self._resting = None, _REST
        return None

    def _patterns(self, value: bytes) -> Iterator[_Pattern]:
        """The one that matched last, and, where that does not any more, one made from this record."""
        if self._pattern is not None:
            yield self._pattern
        if (made := self._pattern_of(value)) is not None:
            yield made

    def _pattern_of(self, value: bytes) -> _Pattern | None:
        """What matches records that are written like this one; None if that is no record of the contract."""
        try:
            names = list(msgspec.json.decode(value, type=dict[str, msgspec.Raw]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        left = [column for name, column in self._columns.items() if name not in names]
        if not names or set(names) - self._columns.keys() or any(column.required for column in left):
            return None
        space = " " if value.partition(b":")[2].startswith(b" ") else ""
        return _Pattern([self._columns[name] for name in names], left, space)


class _Pattern:
    """One order of keys and one way of setting them; columns that are left out have their default."""

    def __init__(self, written: Sequence[Column], left: Sequence[Column], space: str) -> None:
        self._groups = {str(group): column for group, column in enumerate(written, start=2)}
        self._left = left
        # The brace's own group says whether a record matched, whatever is null in it.
        self._expression = r"^(\{)" + f",{space}".join(_field(column, space) for column in written) + r"\}$"

    def read(self, texts: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Rows of the texts that match and keep the contract, and where those are. Null is no text."""
        found = texts.str.extract_groups(self._expression).struct.unnest()
        rows = found.select(
            *(
                _read(pl.col(group), column.dtype).alias(column.name)
                for group, column in self._groups.items()
            ),
            *(pl.lit(column.default, dtype=column.dtype).alias(column.name) for column in self._left),
        )
        good = [found.get_column("1").is_not_null()]
        for group, column in self._groups.items():
            was_null, is_null = found.get_column(group).is_null(), rows.get_column(column.name).is_null()
            if was_null.sum() != is_null.sum():
                good.append(was_null == is_null)
        kept = rows.select(pl.all_horizontal(*good, *(c.valid() for c in self._groups.values()))).to_series()
        return (rows if kept.all() else rows.filter(kept)), kept


def _texts(values: pl.Series) -> pl.Series:
    """The records (N,) as text; an empty one where the bytes are none."""
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:  # some of them; it does not say which
        return pl.Series(map(_text, values), dtype=pl.String)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ""


def _field(column: Column, space: str) -> str:
    key, value = re.escape(msgspec.json.encode(column.name).decode()), _VALUES[column.dtype]
    return f"{key}:{space}" + (f"(?:{value}|null)" if column.nullable else value)


def _read(text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Boolean:
        return text == "true"
    return text if dtype == pl.String else text.cast(dtype, strict=False)
