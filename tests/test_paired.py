"""Bounds of a difference hold as often as they promise, are quick, and do not hang on the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.measures import accuracy, auc, log_loss
from infra.paired import compare, difference

METRICS = ("auc", "log_loss", "accuracy")
MEASURES = {"auc": auc, "log_loss": log_loss, "accuracy": accuracy}


def forecasts(rows: int, seed: int, *, edge: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and two noisy forecasts of it; the second sees it better by `edge`."""
    random = np.random.default_rng(seed)
    known = random.normal(size=rows)
    truth = (known + random.normal(size=rows) > 0.5).astype(float)
    noise = random.normal(size=(2, rows))

    def forecast(own: np.ndarray, sharp: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(sharp * known + 0.5 * own - 0.5)))

    return truth, forecast(noise[0], 1.0), forecast(noise[1], 1.0 + edge)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(METRICS), st.integers(20, 400))
def test_a_difference_is_that_of_the_measures_and_lies_between_its_bounds(
    seed: int, metric: str, rows: int
) -> None:
    truth, old, new = forecasts(rows, seed)
    found = difference(truth, old, new, metric=metric, confidence=0.95)
    before, after = MEASURES[metric](truth, old), MEASURES[metric](truth, new)
    if before is None or after is None:
        assert found is None
        return
    assert found is not None
    sign = -1 if metric == "log_loss" else 1
    assert found.value == pytest.approx(sign * (after - before), abs=1e-12)
    assert found.low <= found.value + 1e-12
    assert found.high >= found.value - 1e-12
    back = difference(truth, new, old, metric=metric, confidence=0.95)
    assert back is not None
    assert back.value == pytest.approx(-found.value, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(METRICS), st.randoms(use_true_random=False))
def test_neither_order_nor_a_second_run_changes_a_bound(seed: int, metric: str, random) -> None:
    columns = forecasts(200, seed)
    order = list(range(200))
    random.shuffle(order)
    one = difference(*columns, metric=metric, confidence=0.9)
    other = difference(*(c[order] for c in columns), metric=metric, confidence=0.9)
    assert one is not None
    assert other is not None
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_noise_passes_for_progress_as_rarely_as_the_confidence_says(metric: str) -> None:
    """Of two forecasts that are equally good, the bound is above 0 in about one trial of ten at .9."""
    lows = []
    for seed in range(200):
        found = difference(*forecasts(300, seed), metric=metric, confidence=0.9, seed=seed)
        assert found is not None
        lows.append(found.low)
    assert 0.04 < np.mean(np.array(lows) > 0) < 0.17


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_a_real_edge_is_seen(metric: str) -> None:
    truth, old, new = forecasts(4_000, 1, edge=1.0)
    found = difference(truth, old, np.clip(new, 0.02, 0.98), metric=metric, confidence=0.95)
    assert found is not None
    assert found.low > 0


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_answers_differ_by_nothing_for_sure(metric: str) -> None:
    truth, old, _ = forecasts(500, 3)
    found = difference(truth, old, old, metric=metric, confidence=0.99)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_delong_is_what_a_bootstrap_of_the_auc_itself_finds() -> None:
    truth, old, new = forecasts(400, 5, edge=0.3)
    random = np.random.default_rng(6)
    drawn = []
    for _ in range(600):
        rows = random.integers(0, 400, 400)
        after, before = auc(truth[rows], new[rows]), auc(truth[rows], old[rows])
        assert after is not None
        assert before is not None
        drawn.append(after - before)
    found = difference(truth, old, new, metric="auc", confidence=0.95)
    assert found is not None
    assert found.value - found.low == pytest.approx(1.645 * float(np.std(drawn)), rel=0.15)


def test_slices_share_what_may_be_mistaken_and_one_without_the_metric_is_left_out() -> None:
    truth, old, new = forecasts(600, 7)
    half = np.arange(600) < 300
    found = compare(
        truth, old, new, metric="auc", confidence=0.9, slices={"a": half, "b": ~half, "late": truth == 1}
    )
    assert found is not None
    assert set(found.slices) == {"a", "b"}
    assert found.slice_confidence == pytest.approx(1 - 0.1 / 3)
    alone = difference(truth[half], old[half], new[half], metric="auc", confidence=found.slice_confidence)
    assert found.slices["a"] == alone


def test_above_twenty_thousand_rows_the_normal_limit_gives_what_the_bootstrap_does() -> None:
    truth, old, new = forecasts(20_000, 8)
    drawn = difference(truth, old, new, metric="log_loss", confidence=0.95)
    more = difference(*(np.append(c, c[:1]) for c in (truth, old, new)), metric="log_loss", confidence=0.95)
    assert drawn is not None
    assert more is not None
    assert more.low == pytest.approx(drawn.low, abs=0.1 * (drawn.value - drawn.low))
