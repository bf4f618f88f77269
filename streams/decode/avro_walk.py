"""Walk many Avro bodies of one flat schema at once, each within its own bounds: which are whole records?

The walk goes field by field over all bodies together (numpy), so that what is wrong with one says nothing
of another, and costs about as much as looking at their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

TYPES: dict[str, pl.DataType] = {
    "null": pl.Null(),
    "boolean": pl.Boolean(),
    "int": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "string": pl.String(),
    "enum": pl.String(),
    "bytes": pl.Binary(),
}
"""Columns of the Avro types that a walk knows."""

_WIDTHS = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_MOST_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A writer's field: `kind` is an Avro type's name, `null_at` the branch of its union that is null."""

    name: str
    kind: str
    null_at: int | None
    plain: Any
    """Its type without logical types and properties, null branch included."""

    @property
    def dtype(self) -> pl.DataType:
        """Type of its column; Object where no column of a contract can hold it."""
        return TYPES.get(self.kind, pl.Object())

    @property
    def symbols(self) -> list[str]:
        """Of an enum."""
        branches = self.plain if isinstance(self.plain, list) else [self.plain]
        return next(branch["symbols"] for branch in branches if isinstance(branch, dict))


def walk(fields: Sequence[Field], values: Sequence[bytes], *, head_bytes: int = 0) -> dict[int, str]:
    """What is wrong with each value that is not exactly one record, by its position."""
    state = _Walk(values, head_bytes)
    for field in fields:
        state.step(field)
    return state.faults()


class _Walk:
    """`at` is the position of each body in the bytes of all; `alive` are the indices of those still good."""

    def __init__(self, values: Sequence[bytes], head_bytes: int) -> None:
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        ends = np.cumsum(lengths)
        self.end = ends
        self.at = ends - lengths + head_bytes
        # What is read beyond an end is found out afterwards; there must be something to read.
        self.raw = np.frombuffer(b"".join(values) + bytes(16), dtype=np.uint8)
        self._high: np.ndarray | None = None
        self.alive = np.arange(len(values))
        self._faults: dict[int, str] = {}

    def step(self, field: Field) -> None:
        """Every body moves behind that field."""
        rows = self.alive
        if field.null_at is not None:
            branch = self._varint(rows, field)
            known = (branch == 0) | (branch == 1)
            self._fail(rows[~known], f"{field.name}: there is no such branch of its union")
            rows = rows[known & (branch != field.null_at)]
            rows = rows[np.isin(rows, self.alive, assume_unique=True)] if self._faults else rows
        match field.kind:
            case "int" | "long" | "enum":
                self._number(rows, field)
            case "string" | "bytes":
                self._text(rows, field)
            case kind:
                if kind == "boolean":
                    odd = rows[self.raw[self._in(self.at[rows])] > 1]
                    self._fail(odd, f"{field.name}: a boolean is a byte 0 or 1")
                self.at[rows] += _WIDTHS[kind]
        over = self.alive[self.at[self.alive] > self.end[self.alive]]
        self._fail(over, f"{field.name}: the body ends within it")

    def _number(self, rows: np.ndarray, field: Field) -> None:
        value = self._varint(rows, field)
        if field.kind == "int":
            odd = rows[(value < -(2**31)) | (value >= 2**31)]
            self._fail(odd, f"{field.name}: no 32 bits hold it")
        elif field.kind == "enum":
            odd = rows[(value < 0) | (value >= len(field.symbols))]
            self._fail(odd, f"{field.name}: there is no such symbol")

    def _text(self, rows: np.ndarray, field: Field) -> None:
        length = self._varint(rows, field)
        start = self.at[rows]
        fits = (length >= 0) & (length <= self.end[rows] - start)
        self._fail(rows[~fits], f"{field.name}: its length is not within the body")
        rows, start, length = rows[fits], start[fits], length[fits]
        self.at[rows] = start + length
        if field.kind == "string":
            odd = self._not_utf8(start, length)
            self._fail(rows[odd], f"{field.name}: its text is no UTF-8")

    def _not_utf8(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Positions of the texts that are no UTF-8. Mostly all are ASCII, which is seen at once."""
        if self._high is None:
            # The running count of bytes above 127, to see whether a text has any.
            self._high = np.zeros(len(self.raw) + 1, dtype=np.int32)
            np.cumsum(self.raw > 0x7F, out=self._high[1:])
        suspects = np.flatnonzero(self._high[start + length] != self._high[start])
        odd = []
        for position, first, size in zip(
            suspects.tolist(), start[suspects].tolist(), length[suspects].tolist(), strict=True
        ):
            try:
                self.raw[first : first + size].tobytes().decode("utf-8")
            except UnicodeDecodeError:
                odd.append(position)
        return np.array(odd, dtype=np.int64)

    def _varint(self, rows: np.ndarray, field: Field) -> np.ndarray:
        """The zigzag numbers at the rows' positions, which move behind them; 0 where there is none."""
        value = np.zeros(len(rows), dtype=np.uint64)
        at = self.at[rows]
        going = np.arange(len(rows))
        for number in range(_MOST_VARINT_BYTES):
            byte = self.raw[self._in(at[going])]
            value[going] |= (byte & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * number)
            at[going] += 1
            going = going[byte > 0x7F]
            if not len(going):
                break
        self.at[rows] = at
        self._fail(rows[going], f"{field.name}: a number of more than {_MOST_VARINT_BYTES} bytes")
        sign = (np.uint64(0) - (value & np.uint64(1))).astype(np.uint64)
        return ((value >> np.uint64(1)) ^ sign).view(np.int64)

    def _in(self, at: np.ndarray) -> np.ndarray:
        return np.minimum(at, len(self.raw) - 1)

    def _fail(self, rows: np.ndarray, why: str) -> None:
        if not len(rows):
            return
        for row in rows.tolist():
            self._faults.setdefault(row, why)
        self.alive = self.alive[~np.isin(self.alive, rows, assume_unique=True)]

    def faults(self) -> dict[int, str]:
        """All bodies that are no whole record, those included that have bytes left."""
        left = self.alive[self.at[self.alive] != self.end[self.alive]]
        self._fail(left, "there are bytes left behind the last field")
        return {row: f"the Avro body cannot be read: {why}" for row, why in self._faults.items()}
