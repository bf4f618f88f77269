"""The SHA-256 of a table's content: the same for the same values, whatever library or machine held them.

The bytes, in this order: `tidemill-table-1`, the number of rows and that of columns; then each column in the
frame's order: its name, its kind, one byte a row (1 for a value, 0 for null), its values. Numbers, times and
truths are 8 bytes each, little-endian (kinds `i8`, `u8`, `f8`), null as 0, every NaN as the one quiet NaN.
Text (kind `text`) is the length of each value in bytes as `i8`, then all values one after another in UTF-8.
Lists (kind `list`) are the length of each as `i8`, then their elements as a column without a name. Names and
kinds are a length as `i8` and UTF-8; counts are `i8`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import polars as pl

from schemas.errors import Rejected


class UndigestedKind(Rejected):
    """A column of a kind that has no canonical bytes."""


def table_digest(frame: pl.DataFrame) -> str:
    """SHA-256 of a frame's content, in hexadecimal.

    Raises:
        UndigestedKind: a column is neither of numbers, times, truths, text, nor lists of those.
    """
    sha = hashlib.sha256(b"tidemill-table-1")
    sha.update(_whole(np.array([frame.height, frame.width])))
    for column in frame:
        _text(sha, column.name)
        _column(sha, column)
    return sha.hexdigest()


def _column(sha: Any, column: pl.Series) -> None:
    known = column.is_not_null()
    dtype = column.dtype
    if dtype.is_float():
        _text(sha, "f8")
        sha.update(known.cast(pl.UInt8).to_numpy())
        values = column.cast(pl.Float64).fill_null(0.0).to_numpy().astype("<f8")
        values[np.isnan(values)] = np.nan
        sha.update(values)
    elif dtype.is_integer() or dtype.is_temporal() or dtype == pl.Boolean:
        unsigned = dtype == pl.UInt64
        _text(sha, "u8" if unsigned else "i8")
        sha.update(known.cast(pl.UInt8).to_numpy())
        as_is = column.to_physical().cast(pl.UInt64 if unsigned else pl.Int64).fill_null(0).to_numpy()
        sha.update(as_is.astype("<u8" if unsigned else "<i8"))
    elif dtype in (pl.String, pl.Categorical, pl.Enum):
        _text(sha, "text")
        sha.update(known.cast(pl.UInt8).to_numpy())
        texts = column.cast(pl.String)
        sha.update(_whole(texts.str.len_bytes().fill_null(0).to_numpy()))
        sha.update((texts.drop_nulls().str.join("").item() or "").encode())
    elif isinstance(dtype, pl.List):
        _text(sha, "list")
        sha.update(known.cast(pl.UInt8).to_numpy())
        sha.update(_whole(column.list.len().fill_null(0).to_numpy()))
        filled = column.filter(known & (column.list.len() > 0).fill_null(value=False))
        _column(sha, filled.explode() if filled.len() else pl.Series(column.name, [], dtype=dtype.inner))
    else:
        raise UndigestedKind(f"column {column.name!r} is of kind {dtype}, which has no canonical bytes")


def _text(sha: Any, text: str) -> None:
    encoded = text.encode()
    sha.update(_whole(np.array([len(encoded)])))
    sha.update(encoded)


def _whole(numbers: np.ndarray) -> memoryview:
    return np.ascontiguousarray(numbers, dtype="<i8").data
