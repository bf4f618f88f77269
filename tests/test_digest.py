"""A table's digest changes with any value, and with nothing else."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime

import polars as pl
import pytest

from infra.digest import UndigestedKind, table_digest

TABLE = pl.DataFrame(
    {
        "word": ["a", None, "", "größe"],
        "number": [1.5, None, float("nan"), -0.25],
        "count": [1, None, 3, -4],
        "tags": [["a", "b"], [], None, ["c", None]],
        "true": [True, None, False, True],
        "at": [datetime(2013, 1, 1, tzinfo=UTC), None, None, None],
    }
)


def test_it_is_the_same_whatever_holds_the_values() -> None:
    chunked = pl.concat([TABLE.head(1), TABLE.slice(1, 2), TABLE.tail(1)], rechunk=False)
    assert table_digest(chunked) == table_digest(TABLE)
    narrow = TABLE.with_columns(pl.col("count").cast(pl.Int16), pl.col("word").cast(pl.Categorical))
    assert table_digest(narrow) == table_digest(TABLE)
    assert table_digest(pl.concat([TABLE, TABLE]).slice(4)) == table_digest(TABLE)


@pytest.mark.parametrize(
    "change",
    [
        pl.col("word").fill_null(""),
        pl.col("word").replace("a", "ab"),
        pl.col("number").fill_nan(None),
        pl.col("number").fill_null(0.0),
        pl.col("number") + 1e-15,
        pl.col("count").cast(pl.Float64),
        pl.col("count").fill_null(0),
        pl.col("tags").fill_null([]),
        pl.col("tags").list.reverse(),
        pl.col("true").fill_null(value=False),
        pl.col("count").alias("other"),
    ],
)
def test_any_change_of_a_value_or_a_name_changes_it(change: pl.Expr) -> None:
    assert table_digest(TABLE.with_columns(change)) != table_digest(TABLE)


def test_order_of_rows_and_of_columns_counts_and_text_cannot_slip_from_value_to_value() -> None:
    assert table_digest(TABLE.reverse()) != table_digest(TABLE)
    assert table_digest(TABLE.select(reversed(TABLE.columns))) != table_digest(TABLE)
    one, other = pl.DataFrame({"w": ["ab", "c"]}), pl.DataFrame({"w": ["a", "bc"]})
    assert table_digest(one) != table_digest(other)


def test_its_bytes_are_what_its_account_says() -> None:
    def whole(*numbers: int) -> bytes:
        return struct.pack(f"<{len(numbers)}q", *numbers)

    bytes_ = b"tidemill-table-1" + whole(2, 2)
    bytes_ += whole(1) + b"n" + whole(2) + b"f8" + bytes([1, 0]) + struct.pack("<2d", 1.5, 0.0)
    bytes_ += whole(1) + b"w" + whole(4) + b"text" + bytes([1, 1]) + whole(1, 2) + b"abc"
    frame = pl.DataFrame({"n": [1.5, None], "w": ["a", "bc"]})
    assert table_digest(frame) == hashlib.sha256(bytes_).hexdigest()


def test_a_kind_without_canonical_bytes_is_refused_by_name() -> None:
    with pytest.raises(UndigestedKind, match="pair"):
        table_digest(pl.DataFrame({"pair": [{"a": 1}]}))
