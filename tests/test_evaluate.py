"""Scores are what their definitions say, and the gate decides by them alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.measures import accuracy, auc, log_loss
from schemas.job import Gate
from schemas.model import Comparison, Difference, Finding, Scores
from trainers.evaluate import is_constant, score, slice_masks
from trainers.gate import judge
from trainers.sanity import constant_answers

# Few distinct values, so that ties are common.
answered = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=60,
)


def columns(rows: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    truth, chance = zip(*rows, strict=True)
    return np.array(truth, dtype=np.float64), np.array(chance, dtype=np.float64)


@given(answered)
def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_counted_half(
    rows: list[tuple[int, float]],
) -> None:
    truth, chance = columns(rows)
    pairs = [
        1.0 if late > early else 0.5 if late == early else 0.0
        for late, is_late in zip(chance, truth, strict=True)
        for early, is_early in zip(chance, truth, strict=True)
        if is_late == 1 and is_early == 0
    ]
    if pairs:
        assert auc(truth, chance) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    else:
        assert auc(truth, chance) is None


@given(answered)
def test_log_loss_and_accuracy_are_their_definitions_row_by_row(rows: list[tuple[int, float]]) -> None:
    truth, chance = columns(rows)
    losses = [-math.log(max(1e-7, min(1 - 1e-7, p if y == 1 else 1 - p))) for y, p in rows]
    assert log_loss(truth, chance) == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert accuracy(truth, chance) == pytest.approx(sum((p >= 0.5) == (y == 1) for y, p in rows) / len(rows))


@given(answered, st.integers(2, 5))
def test_a_slice_is_scored_as_if_it_were_all_there_is(rows: list[tuple[int, float]], kinds: int) -> None:
    truth, chance = columns(rows)
    kind = [f"k{i % kinds}" for i in range(len(rows))]
    frame = pl.DataFrame({"late": truth, "kind": kind})
    scores = score(frame, "late", chance, slices=slice_masks(frame, ["kind"]))
    assert scores.rows == len(rows)
    assert set(scores.slices) == {f"kind={k}" for k in kind}
    for name, of_slice in scores.slices.items():
        mine = np.array([f"kind={k}" == name for k in kind])
        assert of_slice["rows"] == mine.sum()
        assert of_slice["auc"] == auc(truth[mine], chance[mine])
        assert of_slice["log_loss"] == log_loss(truth[mine], chance[mine])


def test_a_slice_column_may_hold_nulls_which_are_no_slice() -> None:
    frame = pl.DataFrame({"late": [0.0, 1.0, 1.0], "kind": ["a", None, "a"]})
    assert set(slice_masks(frame, ["kind"])) == {"kind=a"}


def test_a_row_is_in_the_slice_of_each_of_its_tags() -> None:
    frame = pl.DataFrame({"_tags": [["night", "long"], [], None, ["long"]]})
    masks = slice_masks(frame, tags=True)
    assert {name: mine.tolist() for name, mine in masks.items()} == {
        "tag=long": [True, False, False, True],
        "tag=night": [True, False, False, False],
    }
    assert slice_masks(frame) == {}


@pytest.mark.parametrize(
    ("chance", "expected"),
    [([0.3, 0.3, 0.3], True), ([0.3, 0.3, 0.4], False), ([1e-9, 3e-9], False), ([0.0, 0.0], True)],
)
def test_answers_are_constant_only_when_they_do_not_differ(chance: list[float], expected: bool) -> None:
    assert is_constant(np.array(chance)) is expected


def scores(value: float | None, rows: int = 1000) -> Scores:
    return Scores(rows=rows, auc=value, log_loss=None if value is None else 1 - value, accuracy=value)


def apart(by: float, sure: float = 0.0, **slices: tuple[float, float]) -> Comparison:
    """A comparison: better by so much, give or take; slices by name."""

    def difference(value: float, give: float, rows: int = 1000) -> Difference:
        return Difference(rows=rows, value=value, low=value - give, high=value + give)

    return Comparison(
        metric="auc",
        method="made up",
        confidence=0.95,
        slice_confidence=0.975,
        seed=0,
        overall=difference(by, sure),
        slices={f"kind={k}": difference(value, give, 100) for k, (value, give) in slices.items()},
    )


@pytest.mark.parametrize(
    ("gate", "better_by", "sure", "publish"),
    [
        (Gate(), 0.01, 0.0, True),
        (Gate(), 0.0, 0.0, True),  # the same answers: nothing is lost
        (Gate(), -0.01, 0.0, False),
        (Gate(), 0.01, 0.02, False),  # progress that may be noise
        (Gate(tolerance=0.02), -0.01, 0.0, True),
        (Gate(tolerance=0.02), 0.0, 0.01, True),
        (Gate(tolerance=0.02), 0.0, 0.03, False),  # may be worse by more than is tolerated
    ],
)
def test_a_challenger_is_published_when_it_is_surely_no_worse_than_tolerated(
    gate: Gate, better_by: float, sure: float, publish: bool
) -> None:
    verdict = judge(
        gate,
        champion=scores(0.7),
        challenger=scores(0.7 + better_by),
        has_champion=True,
        comparison=apart(better_by, sure),
    )
    assert verdict.publish is publish, verdict.reason
    assert f"{better_by:+.4f}" in verdict.reason
    assert f"{better_by - sure:+.4f}" in verdict.reason


TELLING = Finding(check="feature_tells_label", subject="x", value=1.0, limit=0.999, detail="is the label")


@pytest.mark.parametrize(
    ("gate", "champion", "challenger", "said", "publish"),
    [
        (Gate(), 0.70, None, {}, False),
        (Gate(), 0.70, math.nan, {}, False),
        (Gate(minimum_rows=2000), 0.70, 0.90, {}, False),
        (Gate(), 0.70, 0.90, {"findings": [constant_answers("m")]}, False),
        (Gate(), 0.70, 0.90, {"findings": [TELLING]}, False),
        (Gate(), 0.70, 0.90, {"champion_changed": True}, False),
        # The live model cannot answer these rows: it defends nothing.
        (Gate(), None, 0.55, {}, True),
    ],
)
def test_a_challenger_that_cannot_be_judged_or_trusted_is_refused(
    gate: Gate, champion: float | None, challenger: float | None, said: dict[str, Any], publish: bool
) -> None:
    live = None if champion is None else scores(champion)
    known = None if live is None else apart(0.2)
    verdict = judge(
        gate, champion=live, challenger=scores(challenger), has_champion=True, comparison=known, **said
    )
    assert verdict.publish is publish, verdict.reason


@pytest.mark.parametrize(
    ("gate", "challenger", "said", "publish"),
    [
        (Gate(), scores(0.4), {}, True),
        (Gate(), None, {}, True),
        (Gate(first="refuse"), None, {}, False),
        (Gate(first="refuse"), scores(0.6), {}, True),
        (Gate(minimum_rows=2000), scores(0.6), {}, True),
        (Gate(), scores(0.5), {"findings": [constant_answers("m")]}, False),
        (Gate(), scores(0.99), {"findings": [TELLING]}, False),
    ],
)
def test_a_first_model_is_published_unless_the_gate_says_otherwise(
    gate: Gate, challenger: Scores | None, said: dict[str, Any], publish: bool
) -> None:
    verdict = judge(gate, champion=None, challenger=challenger, has_champion=False, **said)
    assert verdict.publish is publish, verdict.reason


@pytest.mark.parametrize(
    ("gate", "publish"),
    [
        (Gate(slice_tolerance=0.05), False),
        (Gate(slice_tolerance=0.2), True),
        (Gate(slice_tolerance=0.05, allowances={"kind": 0.2}), True),
        (Gate(slice_tolerance=0.05, allowances={"kind=b": 0.2}), True),
        (Gate(slice_tolerance=0.05, allowances={"kind": 0.2, "kind=b": 0.08}), False),
        (Gate(slice_tolerance=0.05, slice_rows=200), True),
    ],
)
def test_a_slice_that_got_worse_by_more_than_its_allowance_refuses_a_better_whole(
    gate: Gate, publish: bool
) -> None:
    comparison = apart(0.05, a=(0.1, 0.02), b=(-0.1, 0.03))
    verdict = judge(
        gate, champion=scores(0.70), challenger=scores(0.75), has_champion=True, comparison=comparison
    )
    assert verdict.publish is publish, verdict.reason
    if not publish:
        assert "kind=b" in verdict.reason
        assert "-0.1000" in verdict.reason


def test_a_slice_that_may_be_worse_by_chance_alone_refuses_nothing() -> None:
    comparison = apart(0.05, b=(-0.1, 0.11))
    gate = Gate(slice_tolerance=0.05)
    assert judge(
        gate, champion=scores(0.7), challenger=scores(0.75), has_champion=True, comparison=comparison
    ).publish
