"""A selection is a function of the rows and the seed, not of their order, nor of how they were batched."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.selection import select
from schemas.selection import Balanced, Decay, Hard, Reservoir, Selection, Whole

HOUR_MS = 3_600_000

policies = st.one_of(
    st.just(Whole()),
    st.builds(Reservoir, rows=st.integers(1, 60)),
    st.builds(Decay, rows=st.integers(1, 60), half_life_ms=st.sampled_from([1, HOUR_MS, 10**9])),
    st.builds(Balanced, rows=st.integers(1, 60), by=st.sampled_from(["place", "_tags"])),
    st.builds(Hard, rows=st.integers(1, 60), floor=st.sampled_from([0.01, 1.0])),
)
tables = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(["A", "B", "C", None]), st.sampled_from([[], ["n"], ["n", "l"]])
    ),
    max_size=80,
)


def table(drawn: list[tuple[int, str | None, list[str]]]) -> pl.DataFrame:
    rows = len(drawn)
    return pl.DataFrame(
        {
            "_partition": [p for p, _, _ in drawn],
            "_offset": list(range(rows)),
            "_row": [0] * rows,
            "_time": [i * HOUR_MS for i in range(rows)],
            "place": [place for _, place, _ in drawn],
            "_tags": [tags for _, _, tags in drawn],
            "loss": [(i * 37 % 11) / 5 for i in range(rows)],
        },
        schema_overrides={
            "_partition": pl.Int32,
            "_row": pl.Int32,
            "place": pl.String,
            "_tags": pl.List(pl.String),
        },
    )


def chosen(rows: pl.DataFrame, policy: Selection, seed: int) -> list[int]:
    taken = select(rows, policy, seed=seed, end_ms=80 * HOUR_MS, losses=rows.get_column("loss").to_numpy())
    return taken.get_column("_offset").to_list()


@settings(deadline=None)
@given(tables, policies, st.integers(), st.randoms(use_true_random=False))
def test_order_changes_nothing(drawn: list, policy: Selection, seed: int, random) -> None:
    rows = table(drawn)
    order = list(range(rows.height))
    random.shuffle(order)
    taken = chosen(rows, policy, seed)
    assert taken == sorted(taken) == sorted(chosen(rows[order], policy, seed))
    assert len(taken) == (rows.height if isinstance(policy, Whole) else min(policy.rows, rows.height))


@settings(deadline=None)
@given(tables, policies, st.integers(), st.integers(0, 80))
def test_the_selection_of_the_selections_of_two_batches_is_that_of_all(
    drawn: list, policy: Selection, seed: int, cut: int
) -> None:
    rows = table(drawn)

    def part(of: pl.DataFrame) -> pl.DataFrame:
        return of.filter(pl.col("_offset").is_in(chosen(of, policy, seed)))

    parts = pl.concat([part(rows.head(cut)), part(rows.slice(cut))])
    assert chosen(parts, policy, seed) == chosen(rows, policy, seed)


MANY = table([(i % 4, "A" if i % 10 else "B", ["n"] if i % 20 == 0 else []) for i in range(2_000)])


@pytest.mark.parametrize(
    "policy",
    [
        Reservoir(rows=500),
        Decay(rows=500, half_life_ms=HOUR_MS * 500),
        Balanced(rows=500, by="place"),
        Hard(rows=500),
    ],
)
def test_another_seed_takes_other_rows(policy: Selection) -> None:
    assert set(chosen(MANY, policy, 1)) != set(chosen(MANY, policy, 2))


def test_a_reservoir_is_even_over_the_rows() -> None:
    taken = np.array(chosen(MANY, Reservoir(rows=1_000), 3))
    assert abs((taken < 1_000).sum() - 500) < 60


def test_with_decay_a_half_life_halves_what_is_taken() -> None:
    taken = np.array(
        select(MANY, Decay(rows=200, half_life_ms=400 * HOUR_MS), seed=4, end_ms=2_000 * HOUR_MS).get_column(
            "_offset"
        )
    )
    newest, before = ((taken >= 1_600).sum(), ((taken >= 1_200) & (taken < 1_600)).sum())
    assert newest > 1.4 * before > 0


def test_a_weight_too_small_for_a_float_still_orders_the_rows() -> None:
    taken = chosen(MANY, Decay(rows=10, half_life_ms=1), 5)
    assert taken == list(range(1_990, 2_000))


def test_balanced_takes_each_value_alike_as_far_as_it_goes() -> None:
    by_place = MANY.filter(pl.col("_offset").is_in(chosen(MANY, Balanced(rows=300, by="place"), 6)))
    assert dict(by_place.group_by("place").len().iter_rows()) == {"A": 150, "B": 150}
    by_tag = MANY.filter(pl.col("_offset").is_in(chosen(MANY, Balanced(rows=300, by="_tags"), 6)))
    assert by_tag.filter(pl.col("_tags").list.contains("n")).height == 100  # there are no more


def test_hard_rows_are_taken_more_often_and_without_a_live_model_it_is_a_reservoir() -> None:
    mean = MANY.get_column("loss").mean()
    hard = MANY.filter(pl.col("_offset").is_in(chosen(MANY, Hard(rows=500), 7))).get_column("loss").mean()
    assert isinstance(mean, float)
    assert isinstance(hard, float)
    assert hard > 1.2 * mean
    alone = select(MANY, Hard(rows=500), seed=7, end_ms=0)
    assert alone.equals(select(MANY, Reservoir(rows=500), seed=7, end_ms=0))
