"""Accounts: of parts in any order and grouping they give the account of the whole, to the last bit."""

from __future__ import annotations

import itertools
from fractions import Fraction

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.window import Moments
from streams import compiled
from streams.summary import by_numpy, by_walk
from streams.summary.account import Account, announced, merge
from streams.summary.exact import (
    LARGEST,
    SMALLEST,
    exact,
    exact_parts,
    exact_whole,
    group_sums,
    real,
    squares,
)
from streams.summary.summarise import summarise
from streams.window import Pane

measured = st.floats(-1e6, 1e6) | st.floats(-1e140, 1e140) | st.sampled_from([0.1, 1e16, 1.0, -1e16, -0.0])
rows_ = st.lists(
    st.tuples(
        st.integers(-300, 300),
        st.none() | measured | st.sampled_from([float("nan"), float("inf"), 1e300]),
        st.integers(-(2**62), 2**62),
        st.lists(st.sampled_from("xyz"), unique=True),
        st.sampled_from("ab") | st.none(),
    ),
    max_size=30,
)
SCHEMA = {
    "_time": pl.Int64,
    "level": pl.Float64,
    "count": pl.Int64,
    "_tags": pl.List(pl.String),
    "who": pl.String,
}
START = pl.col("_time").floordiv(100) * 100


def frame(rows: list) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@settings(deadline=None, max_examples=80)
@given(
    rows=rows_,
    cuts=st.lists(st.integers(0, 30), max_size=3),
    order=st.randoms(),
    key=st.sampled_from([None, pl.col("who").fill_null("")]),
)
def test_the_merge_of_the_parts_is_the_account_of_the_whole_to_the_last_bit(
    rows: list, cuts: list[int], order, key: pl.Expr | None
) -> None:
    whole = summarise(frame(rows), start=START, key=key)
    order.shuffle(rows)
    edges = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    parts = [summarise(frame(rows[a:b]), start=START, key=key) for a, b in itertools.pairwise(edges)]
    order.shuffle(parts)
    merged = {
        pane: merge(*(part[pane] for part in parts if pane in part))
        for pane in {pane for part in parts for pane in part}
    }
    assert merged == whole
    for pane, account in whole.items():
        assert msgspec.json.encode(announced(merged[pane])) == msgspec.json.encode(announced(account))
        written = msgspec.json.decode(msgspec.json.encode(account), type=Account)
        assert written == account, "a commit holds all of it"


@settings(deadline=None, max_examples=40)
@given(a=rows_, b=rows_, c=rows_)
def test_merging_is_associative_and_commutative(a: list, b: list, c: list) -> None:
    one = pl.lit(0, dtype=pl.Int64)
    x, y, z = (
        summarise(frame(rows), start=one).get(Pane(0), Account(rejected={"r": 1})) for rows in (a, b, c)
    )
    assert merge(x, y) == merge(y, x)
    assert merge(merge(x, y), z) == merge(x, merge(y, z)) == merge(z, x, y)
    assert merge(x, Account()) == x


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30), far=st.sampled_from([0.0, 1.7e12]))
def test_moments_are_those_of_their_definition_rounded_once(values: list[float], far: float) -> None:
    values = [value + far for value in values]
    rows = frame([(0, value, 0, [], None) for value in values])
    found = announced(summarise(rows, start=START)[Pane(0)]).columns["level"]
    exactly = [Fraction(value) for value in values]
    mean = sum(exactly) / len(exactly)
    # A deviation of less than 2^-400 squared is taken for none.
    m2 = float(sum(((v - mean) ** 2 for v in exactly), Fraction()))
    assert found == Moments(
        len(values), float(mean), pytest.approx(m2, rel=1e-15, abs=1e-200), min(values), max(values)
    )


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.tuples(st.floats(-1e140, 1e140), st.integers(0, 2)), min_size=1, max_size=40),
)
def test_sums_by_group_are_exact_whatever_the_magnitudes(values: list[tuple[float, int]]) -> None:
    values.sort(key=lambda each: each[1])
    floats = np.array([value for value, _ in values])
    of_group = [group for _, group in values]
    groups = sorted(set(of_group))
    starts = np.array([of_group.index(group) for group in groups])
    sums = group_sums(floats, starts)
    squared = [part for each in squares(floats) for part in group_sums(each, starts)]
    for number, group in enumerate(groups):
        own = [value for value, of in values if of == group]
        total = exact(float(part[number]) for part in sums)
        assert Fraction(*real(total)) == sum(map(Fraction, own), Fraction())
        assert total == exact(own) == exact(reversed(own))
        measured = [Fraction(value) for value in own if abs(value) > 2.0**-400]
        assert Fraction(*real(exact(float(part[number]) for part in squared))) == sum(v * v for v in measured)


@given(
    values=st.lists(
        st.tuples(st.integers(-(2**42) + 1, 2**42 - 1) | st.integers(-100, 100), st.integers(0, 3)),
        min_size=1,
        max_size=40,
    ),
    block=st.integers(1, 7),
)
@settings(deadline=None, max_examples=60)
def test_whole_numbers_have_the_same_sums_as_the_same_numbers_with_a_point(
    values: list[tuple[int, int]], block: int
) -> None:
    """Whichever way a commit's rows are added up, and in however many pieces."""
    rows = pl.DataFrame(
        {"count": [v for v, _ in values], "_time": [pane * 100 for _, pane in values]},
        schema={"count": pl.Int64, "_time": pl.Int64},
    ).with_columns(_tags=pl.lit([], dtype=pl.List(pl.String)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_numpy, "_BLOCK", block)
        pointed = summarise(rows.cast({"count": pl.Float64}), start=START)
    assert summarise(rows, start=START) == pointed


@given(total=st.integers(-(2**130), 2**130))
def test_a_whole_number_is_the_same_list_of_floats_as_a_sum(total: int) -> None:
    assert sum(map(Fraction, exact_whole(total)), Fraction()) == total
    assert exact_whole(total) == exact(exact_whole(total))


def test_nulls_and_numbers_that_are_none_do_not_count() -> None:
    rows = frame(
        [
            (0, None, 1, [], None),
            (0, float("nan"), 2, ["x"], None),
            (0, float("inf"), 3, ["x", "y"], None),
            (0, 4.0, 4, [], None),
        ]
    )
    account = summarise(rows, start=START)[Pane(0)]
    summary = announced(account)
    assert (account.first_ms, account.last_ms) == (0, 0)
    assert summary.rows == 4
    assert summary.tags == {"x": 2, "y": 1}
    assert summary.columns["level"] == Moments(1, 4.0, 0.0, 4.0, 4.0)
    assert summary.columns["count"].count == 4


def test_a_small_spread_far_from_zero_is_not_lost() -> None:
    rows = frame([(0, 1.7e12 + n % 2, 0, [], None) for n in range(1_000)])
    assert announced(summarise(rows, start=START)[Pane(0)]).columns["level"].m2 == 250.0


# ── by compiled walks ───────────────────────────────────────────────────────────────────────────────

# Near what does not count, near what no float holds, near where bits part.
FAR = [
    LARGEST,
    -LARGEST,
    np.nextafter(LARGEST, 0),
    SMALLEST,
    np.nextafter(SMALLEST, 0),
    5e-324,
    -(2.0**-1022),
    0.0,
]
WHOLES = (
    st.integers(-(2**42), 2**42) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**21, -(2**21), 0])
)


def walked(rows: pl.DataFrame, start: pl.Expr = START) -> dict[Pane, Account] | None:
    return by_walk.accounts(rows, start, compiled.loading().result().accounts)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(-1_000, 1_000) | st.integers(-(2**52), 2**52),
            st.none() | measured | st.floats() | st.sampled_from(FAR),
            WHOLES | st.none(),
            st.none() | st.lists(st.sampled_from(["x", "y", "é"]) | st.none(), max_size=3),
            st.none(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_a_walk_tells_what_numpy_tells_to_the_last_bit(rows: list) -> None:
    table = frame(rows)
    found = walked(table)
    assert found == by_numpy.accounts(table, START, None)
    assert found is not None
    assert list(found) == sorted(found)
    assert msgspec.json.encode(list(found.values())) == msgspec.json.encode(
        list(by_numpy.accounts(table, START, None).values())
    ), "no minus zero"


def test_a_walk_over_many_rows_tells_what_numpy_tells() -> None:
    chance = np.random.default_rng(7)
    count = 100_000
    rows = pl.DataFrame(
        {
            "_time": chance.integers(-20_000, 20_000, count),
            "level": chance.normal(0, 10.0 ** chance.integers(-30, 30, count)),
            "count": chance.integers(-(2**42) + 1, 2**42, count),
            "small": chance.integers(-100, 100, count).astype(np.int8),
        }
    ).with_columns(_tags=pl.lit(pl.Series([[], ["x"], ["x", "y"]])).gather(pl.int_range(pl.len()) % 3))
    assert walked(rows) == by_numpy.accounts(rows, START, None)
    assert summarise(rows, start=START) == walked(rows), "which is what a commit of many rows has"


def test_rows_of_more_panes_than_a_walk_takes_are_left_to_numpy() -> None:
    most = compiled.loading().result().accounts.MOST_PANES
    rows = frame([(100 * number, 1.0, 1, [], None) for number in range(most + 1)])
    assert walked(rows) is None
    assert len(walked(rows[1:]) or ()) == most


@given(parts=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50))
def test_parts_are_the_same_list_of_floats_as_their_sum(parts: list[int]) -> None:
    found = exact_parts(np.array(parts), 32, 1074)
    total = sum(part << 32 * number for number, part in enumerate(parts))
    assert sum(map(Fraction, found), Fraction()) == Fraction(total, 1 << 1074)
    assert found == exact(found)
