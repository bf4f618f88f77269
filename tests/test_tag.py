"""Tags: said beside a row, never instead of it."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.tag import Slice, Tag, tags

NAMES = ["far", "late_start", "odd"]


def tagged(rows: pl.DataFrame, *tagging: Tag | Slice) -> list[list[str]]:
    return rows.with_columns(tags(tagging).alias("_tags")).get_column("_tags").to_list()


def test_a_row_carries_the_names_of_its_true_conditions_in_their_declared_order() -> None:
    rows = pl.DataFrame({"x": [1, 10, None]})
    big, any_ = Tag("big", pl.col("x") > 5), Tag("any", pl.lit(value=True))
    assert tagged(rows, big, any_) == [["any"], ["big", "any"], ["any"]]
    assert tagged(rows, any_, big) == [["any"], ["any", "big"], ["any"]]


def test_a_null_condition_is_false_and_no_condition_means_no_tag() -> None:
    rows = pl.DataFrame({"x": [None, 1]}, schema={"x": pl.Int64})
    assert tagged(rows, Tag("one", pl.col("x") == 1)) == [[], ["one"]]
    assert tagged(rows, Slice("x")) == [[], []]
    assert tagged(rows) == [[], []]


def test_tags_of_an_empty_frame_are_still_lists_of_text() -> None:
    rows = pl.DataFrame(schema={"x": pl.Int64})
    for tagging in ([], [Tag("a", pl.col("x") > 0)]):
        assert rows.select(tags(tagging).alias("t")).schema["t"] == pl.List(pl.String)


@settings(deadline=None, max_examples=60)
@given(truth=st.lists(st.tuples(*[st.none() | st.booleans()] * 3), max_size=20))
def test_tags_never_add_or_drop_a_row_and_say_exactly_what_is_true(
    truth: list[tuple[bool | None, ...]],
) -> None:
    rows = pl.DataFrame(truth, schema=dict.fromkeys(NAMES, pl.Boolean), orient="row")
    expected = [[name for name, true in zip(NAMES, row, strict=True) if true] for row in truth]
    assert tagged(rows, *(Tag(name, pl.col(name)) for name in NAMES)) == expected


def test_more_tags_than_are_told_apart_at_once_keep_their_order() -> None:
    rows = pl.DataFrame({"x": range(40)})
    tagging = [Tag(f"over_{n}", pl.col("x") > n) for n in range(20)]
    expected = [[f"over_{n}" for n in range(20) if x > n] for x in range(40)]
    assert tagged(rows, *tagging) == expected
