"""Summaries: of parts in any order and grouping they give the summary of the whole."""

from __future__ import annotations

import itertools
import math
from functools import reduce

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.window import Moments, Summary
from streams.summary import merge, merge_moments, summarise

rows_ = st.lists(
    st.tuples(
        st.integers(-300, 300),
        st.none() | st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf")]),
        st.integers(-(2**40), 2**40),
        st.lists(st.sampled_from("xyz"), unique=True),
    ),
    max_size=30,
)
SCHEMA = {"_time": pl.Int64, "level": pl.Float64, "count": pl.Int64, "_tags": pl.List(pl.String)}
START = pl.col("_time").floordiv(100) * 100


def frame(rows: list) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def same(a: Summary, b: Summary) -> None:
    assert (a.rows, a.rejected, a.dropped, a.tags) == (b.rows, b.rejected, b.dropped, b.tags)
    assert a.columns.keys() == b.columns.keys()
    for name, mine in a.columns.items():
        theirs = b.columns[name]
        assert (mine.count, mine.min, mine.max) == (theirs.count, theirs.min, theirs.max)
        scale = max(abs(mine.min), abs(mine.max), 1e-9)
        assert mine.mean == pytest.approx(theirs.mean, rel=1e-9, abs=1e-9 * scale)
        assert mine.m2 == pytest.approx(theirs.m2, rel=1e-6, abs=1e-9 * scale * scale * mine.count)


@settings(deadline=None, max_examples=80)
@given(rows=rows_, cuts=st.lists(st.integers(0, 30), max_size=3), order=st.randoms())
def test_the_merge_of_the_parts_is_the_summary_of_the_whole(rows: list, cuts: list[int], order) -> None:
    edges = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    parts = [summarise(frame(rows[a:b]), start=START) for a, b in itertools.pairwise(edges)]
    order.shuffle(parts)
    whole = summarise(frame(rows), start=START)
    merged = {
        start: reduce(merge, (part[start] for part in parts if start in part), Summary())
        for start in {s for part in parts for s in part}
    }
    assert merged.keys() == whole.keys()
    for start, summary in whole.items():
        same(merged[start], summary)


@settings(deadline=None, max_examples=40)
@given(a=rows_, b=rows_, c=rows_)
def test_merging_is_associative_and_commutative_up_to_rounding(a: list, b: list, c: list) -> None:
    one = pl.lit(0, dtype=pl.Int64)
    x, y, z = (summarise(frame(rows), start=one).get(0, Summary(rejected={"r": 1})) for rows in (a, b, c))
    same(merge(x, y), merge(y, x))
    same(merge(merge(x, y), z), merge(x, merge(y, z)))
    same(merge(x, Summary()), x)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), cut=st.integers(1, 29))
def test_moments_are_those_of_their_definition(values: list[float], cut: int) -> None:
    def of(part: list[float]) -> Moments:
        mean = math.fsum(part) / len(part)
        return Moments(len(part), mean, math.fsum((v - mean) ** 2 for v in part), min(part), max(part))

    cut = min(cut, len(values) - 1)
    merged, whole = merge_moments(of(values[:cut]), of(values[cut:])), of(values)
    assert (merged.count, merged.min, merged.max) == (whole.count, whole.min, whole.max)
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
    assert merged.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-6)


def test_nulls_and_numbers_that_are_none_do_not_count() -> None:
    rows = frame(
        [(0, None, 1, []), (0, float("nan"), 2, ["x"]), (0, float("inf"), 3, ["x", "y"]), (0, 4.0, 4, [])]
    )
    summary = summarise(rows, start=START)[0]
    assert summary.rows == 4
    assert summary.tags == {"x": 2, "y": 1}
    assert summary.columns["level"] == Moments(1, 4.0, 0.0, 4.0, 4.0)
    assert summary.columns["count"].count == 4
