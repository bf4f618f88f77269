"""Sketches: the same bytes for the same numbers, within their rank error, and read by the library itself."""

from __future__ import annotations

import datasketches
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.summary.profile import column_profile, merge_profiles, profile_of
from streams.summary.sketch import Points, merged, pack, points_of, unpack

SIZES = [1, 2, 3, 7, 1_999, 2_000, 2_001, 4_000, 4_001, 4_096, 5_000, 123_457]


def numbers(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def farthest(points: Points, exact: np.ndarray) -> float:
    """The largest error of a rank, at any of the numbers."""
    ordered = np.sort(exact.astype(np.float64))
    return float(
        np.abs(points.ranks(ordered) - np.searchsorted(ordered, ordered, "right") / len(ordered)).max()
    )


@pytest.mark.parametrize("size", SIZES)
def test_ranks_are_within_the_sketchs_own_error_and_the_library_reads_the_same(size: int) -> None:
    values = numbers(size)
    packed, error = pack(points_of(values))
    assert error <= 0.0005
    assert len(packed) < 9_000
    held = unpack(packed, error)
    assert held.count == size
    assert farthest(held, values) <= error + 1e-9
    theirs = datasketches.kll_floats_sketch.deserialize(packed)
    assert (theirs.n, theirs.get_min_value(), theirs.get_max_value()) == (size, values.min(), values.max())
    for at in np.quantile(values, [0.05, 0.4, 0.9]):
        assert theirs.get_rank(float(np.float32(at)), True) == pytest.approx(
            held.ranks(np.array([np.float32(at)]))[0]
        )
    # A sketch of the library's own takes it in, as any Apache DataSketches of any language would.
    theirs.merge(datasketches.kll_floats_sketch.deserialize(packed))
    assert theirs.n == 2 * size


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300), seed=st.integers(0, 99))
def test_the_bytes_do_not_depend_on_the_order_of_rows(values: list[float], seed: int) -> None:
    mixed = np.random.default_rng(seed).permutation(values)
    assert pack(points_of(mixed)) == pack(points_of(np.array(values)))


def test_merged_sketches_are_the_sketch_of_all_rows_within_the_sum_of_their_errors() -> None:
    parts = [numbers(size, seed) + seed for seed, size in enumerate((10, 5_000, 40_000, 2_500))]
    sketches = [unpack(*pack(points_of(part))) for part in parts]
    together = merged(sketches)
    assert together.count == sum(map(len, parts))
    packed, error = pack(together)
    assert farthest(unpack(packed, error), np.concatenate(parts)) <= error + 1e-9
    assert error < 0.001
    assert pack(merged(sketches[::-1])) == (packed, pytest.approx(error))


def test_what_is_no_number_is_counted_as_missing() -> None:
    profile = column_profile(pl.Series([1.0, None, float("nan"), float("inf"), 1e300, 2.0]))
    assert (profile.rows, profile.missing) == (6, 4)
    assert unpack(profile.kll).values.tolist() == [1.0, 2.0]
    nothing = column_profile(pl.Series([], dtype=pl.Float64))
    assert (nothing.rows, nothing.kll) == (0, b"")


def test_of_many_categories_the_most_frequent_are_kept_and_the_others_counted() -> None:
    values = pl.Series([f"v{i}" for i in range(300)] + ["v299"] * 5 + [None])
    profile = column_profile(values)
    assert (profile.rows, profile.missing, profile.other, len(profile.categories)) == (306, 1, 44, 256)
    assert next(iter(profile.categories.items())) == ("v299", 6)


ROWS = st.lists(
    st.tuples(
        st.none() | st.floats(-10, 10), st.sampled_from(["a", "b", None]), st.sampled_from([0.0, 1.0, None])
    ),
    max_size=40,
)


def profiled(rows: list[tuple]) -> object:
    frame = pl.DataFrame(rows, schema={"x": pl.Float64, "g": pl.String, "y": pl.Float64}, orient="row")
    return profile_of(frame, ["x", "g"], label="y", slices=["g"])


@settings(deadline=None, max_examples=50)
@given(first=ROWS, second=ROWS, seed=st.integers(0, 99))
def test_profiles_merge_to_that_of_all_rows_whatever_their_order(
    first: list[tuple], second: list[tuple], seed: int
) -> None:
    whole = profiled(first + second)
    assert merge_profiles([profiled(first), profiled(second)]) == whole
    mixed = [(first + second)[i] for i in np.random.default_rng(seed).permutation(len(first + second))]
    assert profiled(mixed) == whole
