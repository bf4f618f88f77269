"""Rows are found in the one order that sorting by all four columns gives, however they come."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.dataset import META
from infra.row_order import ORDER, in_order

PLACES = st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 2))


def frame(rows: list[tuple[int, tuple[int, int, int]]]) -> pl.DataFrame:
    columns = {
        "_time": [time_ms for time_ms, _ in rows],
        "_partition": [place[0] for _, place in rows],
        "_offset": [place[1] for _, place in rows],
        "_row": [place[2] for _, place in rows],
    }
    return pl.DataFrame(columns, schema={name: META[name] for name in columns})


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), PLACES), max_size=40, unique_by=lambda row: row[1]))
def test_rows_that_come_in_any_order_are_sorted_by_time_then_place(
    rows: list[tuple[int, tuple[int, int, int]]],
) -> None:
    assert in_order(frame(rows)).equals(frame(rows).sort(ORDER))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), PLACES), max_size=15), max_size=4))
def test_rows_that_come_commit_after_commit_by_partition_and_offset_are_sorted_alike(
    commits: list[list[tuple[int, tuple[int, int, int]]]],
) -> None:
    found = [
        # A later commit's offsets lie behind those of the one before.
        (time_ms, (partition, offset + number * 100, row))
        for number, commit in enumerate(commits)
        for time_ms, (partition, offset, row) in sorted(commit, key=lambda each: each[1])
    ]
    assert in_order(frame(found)).equals(frame(found).sort(ORDER))


def test_a_partition_beyond_sixteen_bits_is_sorted_too() -> None:
    rows = frame([(1, (70_000, 0, 0)), (1, (3, 5, 0)), (0, (70_000, 1, 0))])
    assert in_order(rows).equals(rows.sort(ORDER))
