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
from schemas.model import Scores
from trainers.evaluate import is_constant, score
from trainers.gate import judge

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
    scores = score(frame, "late", chance, slices=["kind"])
    assert scores.rows == len(rows)
    assert set(scores.slices) == {f"kind={k}" for k in kind}
    for name, of_slice in scores.slices.items():
        mine = np.array([f"kind={k}" == name for k in kind])
        assert of_slice["rows"] == mine.sum()
        assert of_slice["auc"] == auc(truth[mine], chance[mine])
        assert of_slice["log_loss"] == log_loss(truth[mine], chance[mine])


def test_a_slice_column_may_hold_nulls_which_are_no_slice() -> None:
    frame = pl.DataFrame({"late": [0.0, 1.0, 1.0], "kind": ["a", None, "a"]})
    assert set(score(frame, "late", np.array([0.1, 0.2, 0.9]), slices=["kind"]).slices) == {"kind=a"}


@pytest.mark.parametrize(
    ("chance", "expected"),
    [([0.3, 0.3, 0.3], True), ([0.3, 0.3, 0.4], False), ([1e-9, 3e-9], False), ([0.0, 0.0], True)],
)
def test_answers_are_constant_only_when_they_do_not_differ(chance: list[float], expected: bool) -> None:
    assert is_constant(np.array(chance)) is expected


def scores(value: float | None, rows: int = 1000, **slices: float) -> Scores:
    return Scores(
        rows=rows,
        auc=value,
        log_loss=None if value is None else 1 - value,
        accuracy=value,
        slices={f"kind={k}": {"rows": 100.0, "auc": v, "log_loss": 1 - v} for k, v in slices.items()},
    )


@pytest.mark.parametrize(
    ("gate", "champion", "challenger", "said", "publish"),
    [
        (Gate(), 0.70, 0.71, {}, True),
        (Gate(), 0.70, 0.70, {}, True),
        (Gate(), 0.70, 0.69, {}, False),
        (Gate(tolerance=0.02), 0.70, 0.69, {}, True),
        (Gate(metric="log_loss"), 0.70, 0.71, {}, True),
        (Gate(metric="log_loss"), 0.70, 0.69, {}, False),
        (Gate(metric="log_loss", tolerance=0.02), 0.70, 0.69, {}, True),
        (Gate(), 0.70, None, {}, False),
        (Gate(), 0.70, math.nan, {}, False),
        (Gate(minimum_rows=2000), 0.70, 0.90, {}, False),
        (Gate(), 0.70, 0.90, {"constant": True}, False),
        (Gate(), 0.70, 0.90, {"champion_changed": True}, False),
        # The live model cannot answer these rows: it defends nothing.
        (Gate(), None, 0.55, {}, True),
    ],
)
def test_a_challenger_is_published_when_it_does_not_lose(
    gate: Gate, champion: float | None, challenger: float | None, said: dict[str, Any], publish: bool
) -> None:
    live = None if champion is None else scores(champion)
    verdict = judge(gate, champion=live, challenger=scores(challenger), has_champion=True, **said)
    assert verdict.publish is publish, verdict.reason


@pytest.mark.parametrize(
    ("gate", "challenger", "said", "publish"),
    [
        (Gate(), scores(0.4), {}, True),
        (Gate(), None, {}, True),
        (Gate(first="refuse"), None, {}, False),
        (Gate(first="refuse"), scores(0.6), {}, True),
        (Gate(minimum_rows=2000), scores(0.6), {}, True),
        (Gate(), scores(0.5), {"constant": True}, False),
    ],
)
def test_a_first_model_is_published_unless_the_gate_says_otherwise(
    gate: Gate, challenger: Scores | None, said: dict[str, Any], publish: bool
) -> None:
    verdict = judge(gate, champion=None, challenger=challenger, has_champion=False, **said)
    assert verdict.publish is publish, verdict.reason


def test_a_slice_that_got_much_worse_refuses_a_better_whole() -> None:
    gate = Gate(slices=("kind",), slice_tolerance=0.05)
    old, new = scores(0.70, a=0.70, b=0.70), scores(0.75, a=0.80, b=0.60)
    verdict = judge(gate, champion=old, challenger=new, has_champion=True)
    assert not verdict.publish
    assert "kind=b" in verdict.reason
    assert "0.6000" in verdict.reason
    assert judge(
        Gate(slices=("kind",), slice_tolerance=0.2), champion=old, challenger=new, has_champion=True
    ).publish
