"""Tags that look back: they find what is unusual, and depend on no batch, no order and no later row."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lookback import lookback_tags
from infra.point_in_time import compute
from schemas.errors import InvalidConfiguration
from schemas.features import FeatureSpec
from schemas.lookback import QUARANTINED
from streams.tag import Behind
from streams.unusual import crowding, isolated, lookup, never_seen, outlier, rare, shifted

SPAN = {"over": "400ms", "every": "100ms", "minimum_rows": 10}


def rows_of(
    x: list[float | None], *, who: list[str] | None = None, y: list[float] | None = None
) -> pl.DataFrame:
    """One row a ms."""
    n = len(x)
    return pl.DataFrame(
        {
            "x": pl.Series(x, dtype=pl.Float64),
            "y": pl.Series(y if y is not None else [0.0] * n, dtype=pl.Float64),
            "who": who if who is not None else ["a"] * n,
            "_source": "s",
            "_partition": 0,
            "_offset": range(n),
            "_row": 0,
            "_time": range(n),
            "_tags": pl.Series([[]] * n, dtype=pl.List(pl.String)),
        }
    )


def tagged(rows: pl.DataFrame, *tags: Behind) -> list[int]:
    """Times of the rows with any of these tags."""
    has = lookback_tags(rows, rows, [t.lookback for t in tags])
    return rows.filter(has.list.len() > 0).get_column("_time").to_list()


def normal(n: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(size=n).tolist()


@pytest.mark.parametrize("way", [{"mad": 6}, {"iqr": 3}, {"mad": 6, "by": ("who",)}])
def test_a_number_far_from_those_before_is_an_outlier(way: dict) -> None:
    x = normal(500)
    x[350], x[420], x[50], x[380] = 30.0, -30.0, 99.0, None  # type: ignore[call-overload]
    # At 50 nothing is known yet that it could be held against.
    assert tagged(rows_of(x), outlier("x", **way, **SPAN)) == [350, 420]


def test_a_number_is_judged_among_its_group_and_its_part_of_the_season() -> None:
    who = ["a", "b"] * 250
    x = [v + (100 if w == "b" else 0) for v, w in zip(normal(500), who, strict=True)]
    x[300] = 100.0  # usual for b, not for a
    assert 300 not in tagged(rows_of(x, who=who), outlier("x", **SPAN))
    assert tagged(rows_of(x, who=who), outlier("x", by=("who",), **SPAN)) == [300]
    assert tagged(rows_of(x, who=who), outlier("x", season="2ms", phases=2, **SPAN)) == [300]


def test_rare_and_new_values_are_told_from_common_ones() -> None:
    who = ["a"] * 400 + ["a", "r", "n", "a"]
    who[350] = "r"
    assert tagged(rows_of(normal(404), who=who), rare("who", 0.01, **SPAN))[-2:] == [401, 402]
    assert tagged(rows_of(normal(404), who=who), never_seen("who", **SPAN)) == [350, 402]


def test_a_change_of_level_tags_the_block_behind_it() -> None:
    x = [v + (2 if 300 <= i < 400 else 0) for i, v in enumerate(normal(600))]
    found = tagged(rows_of(x), shifted("x", **SPAN))
    assert found == [*range(400, 500)] or found == [*range(400, 600)]
    assert tagged(rows_of(normal(600)), shifted("x", **SPAN)) == []


def test_a_row_may_be_usual_in_each_column_and_isolated_in_both() -> None:
    x = normal(500)
    y = [v + 0.01 * w for v, w in zip(x, normal(500, 1), strict=True)]
    x[450], y[450] = 9.0, -9.0
    found = tagged(rows_of(x, y=y), isolated("x", "y", score=0.7, **SPAN))
    assert 450 in found
    assert len(found) < 20


def test_a_producer_that_crowds_the_others_is_quarantined_beyond_its_share() -> None:
    who = ["a", "b", "c", "d"] * 100 + ["evil"] * 90 + ["a"] * 10
    tag = crowding("who", 0.5, quarantine=True, **SPAN)
    found = tagged(rows_of(normal(500), who=who), tag)
    assert found == list(range(450, 490))
    assert tag.lookback.name == QUARANTINED


TAGS = [
    outlier("x", mad=3, **SPAN),
    outlier("x", iqr=1, by=("who",), name="far", **SPAN),
    rare("who", 0.2, **SPAN),
    shifted("x", **SPAN),
    isolated("x", "y", trees=4, **SPAN),
    crowding("who", 0.3, **SPAN),
]


@settings(deadline=None, max_examples=25)
@given(
    told=st.lists(
        st.tuples(st.none() | st.floats(-9, 9), st.sampled_from("aabc"), st.floats(-9, 9)), max_size=60
    ),
    seed=st.integers(0, 99),
    cut=st.integers(0, 600),
)
def test_tags_depend_on_no_batch_no_order_and_no_later_row(told: list[tuple], seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rows_of([x for x, _, _ in told], who=[w for _, w, _ in told], y=[y for _, _, y in told])
    rows = rows.with_columns(_time=pl.Series(np.sort(rng.integers(0, 600, len(told))), dtype=pl.Int64))
    spec = FeatureSpec(source="s", key="who", columns=("x",), tags=tuple(t.lookback for t in TAGS))
    whole = compute(rows, {"s": rows}, spec)
    mixed = rows[rng.permutation(rows.height).tolist()] if rows.height else rows
    assert compute(mixed, {"s": mixed}, spec).equals(whole)
    # As far as a cut goes, with nothing known of what comes after, and the rest in a batch of its own.
    before, after = rows.filter(pl.col("_time") < cut), rows.filter(pl.col("_time") >= cut)
    parts = [compute(before, {"s": before}, spec), compute(after, {"s": rows}, spec)]
    assert pl.concat(parts).equals(whole)


def test_a_table_gives_tags() -> None:
    table = pl.DataFrame({"faa": ["a", "b", "c"], "region": ["east", "west", "east"]})
    tags = lookup("who", table, key="faa", tag="region")
    rows = rows_of([0.0] * 4, who=["a", "b", "c", "z"])
    assert {t.name: rows.select(t.when.alias("t")).to_series().to_list() for t in tags} == {
        "east": [True, False, True, False],
        "west": [False, True, False, False],
    }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: outlier("x", mad=6, iqr=3), "not by both"),
        (lambda: outlier("x", every="2d", over="1d"), "look back further"),
        (lambda: rare("x", 1.5), "< 1"),
        (lambda: isolated("x"), "write outlier()"),
        (lambda: lookup("x", "nowhere.csv", key="a", tag="b"), "cannot be read"),
        (lambda: lookup("x", pl.DataFrame({"a": [1]}), key="a", tag="b"), "has no 'b'"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_with_its_line(wrong, says: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"test_lookback\.py:\d+: ") as caught:
        wrong()
    assert says in str(caught.value)
