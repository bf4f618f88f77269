"""Conditions on what the rows look like: they find what moved, keep quiet otherwise, and never raise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.drift import measure
from schemas.decision import Evaluation
from schemas.errors import InvalidConfiguration
from schemas.profile import Profile
from schemas.window import Summary, Window, WindowClosed
from streams.summary.profile import profile_of
from streams.summary.sketch import points_of
from streams.trigger import (
    Condition,
    History,
    Look,
    Reference,
    at_least,
    bias,
    decide,
    drift,
    edge_cases,
    every,
    first,
    hysteresis,
    label_drift,
    once,
    previous,
    seen,
    span,
    stale,
    sustained,
)
from streams.trigger.statistic import (
    benjamini_hochberg,
    chi_squared_tail,
    hellinger,
    holm,
    jensen_shannon,
    kolmogorov_smirnov,
    population_stability,
)

HOUR_MS = 3_600_000


def closed(hour: int = 0, *, rows: int = 10, tags: dict[str, int] | None = None) -> WindowClosed:
    return WindowClosed(
        pipeline="p",
        window=Window(hour * HOUR_MS, (hour + 1) * HOUR_MS),
        summary=Summary(rows=rows, tags=tags or {}),
        labelled=rows,
        watermark_ms=(hour + 1) * HOUR_MS,
        dataset_uri="u",
        dataset_version=hour,
    )


def rows_of(size: int, seed: int, **shifts: float) -> pl.DataFrame:
    """x, y: standard normal, moved by `shifts`; g: thirds; truth: half ones, in g=a moved by `bias`."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < 0.5
    group = rng.integers(0, 3, size)
    truth |= (group == 0) & (rng.random(size) < shifts.get("bias", 0.0))
    return pl.DataFrame(
        {
            "x": rng.normal(size=size) + shifts.get("x", 0.0),
            "y": rng.normal(size=size) + shifts.get("y", 0.0),
            "g": np.array(["a", "b", "c"])[group],
            "truth": truth.astype(float),
        }
    )


def profile(rows: pl.DataFrame) -> Profile:
    return profile_of(rows, ["x", "y", "g"], label="truth", slices=["g"])


TRAINED = replace(
    History(keep=5),
    last_yes_end_ms=0,
    trained_on=Reference(name="the training", profile=profile(rows_of(20_000, 1))),
)


def asked(condition: Condition, rows: pl.DataFrame, history: History = TRAINED) -> Evaluation:
    answer = condition.evaluate(Look(closed(rows=rows.height), history, profile(rows)))
    assert answer.fired == (answer.parts[-1].fired if answer.parts[-1].evaluated else None)
    return answer.parts[-1]


# What moved is found, and named.


@pytest.mark.parametrize("options", [{}, {"psi": 0.1}, {"correction": "benjamini-hochberg"}])
def test_a_shift_of_half_a_sigma_in_one_column_is_found_and_named(options: dict) -> None:
    found = asked(drift(**options), rows_of(5_000, 2, x=0.5))
    assert found.fired
    assert found.reason.startswith("x is ")
    assert next(iter(found.scores)) == "x"
    assert found.reference == "the training"
    assert found.score is not None
    assert found.threshold is not None
    assert found.score >= found.threshold
    assert not asked(drift("y", "g", **options), rows_of(5_000, 2, x=0.5)).fired
    assert not asked(drift(**options), rows_of(5_000, 3)).fired


@pytest.mark.parametrize("distance", ["hellinger", "jensen-shannon"])
def test_categories_that_shift_appear_or_vanish_are_drift(distance: str) -> None:
    rows = rows_of(5_000, 4)
    condition = drift("g", categories=distance)  # type: ignore[arg-type]
    assert not asked(condition, rows).fired
    assert asked(condition, rows.with_columns(g=pl.col("g").replace("a", "never seen"))).fired
    assert asked(
        condition, rows.with_columns(g=pl.when(pl.col("x") > 1).then(pl.lit("b")).otherwise("g"))
    ).fired
    assert asked(condition, rows.filter(pl.col("g") != "a")).fired


@pytest.mark.parametrize("options", [{}, {"psi": 0.1}])
def test_a_column_that_goes_missing_is_drift(options: dict) -> None:
    rows = rows_of(5_000, 5)
    some = rows.with_columns(x=pl.when(pl.int_range(pl.len()) % 5 > 0).then("x"))
    assert asked(drift("x", **options), some).fired
    if not options:  # with no value at all there is nothing that could be binned
        assert asked(drift("x"), rows.with_columns(x=pl.lit(None, dtype=pl.Float64))).fired


def test_labels_that_shift_are_found_and_labels_that_only_come_later_are_not() -> None:
    rows = rows_of(5_000, 6)
    assert not asked(label_drift(), rows).fired
    assert asked(label_drift(), rows_of(5_000, 6, bias=0.5)).fired
    later = rows.with_columns(truth=pl.when(pl.int_range(pl.len()) % 2 == 0).then("truth"))
    assert not asked(label_drift(), later).fired


def test_bias_names_the_slice_whose_share_or_labels_leave_the_rest() -> None:
    rows = rows_of(9_000, 7)
    assert not asked(bias("g"), rows).fired
    assert not asked(bias("g", of="label"), rows).fired
    fewer = asked(bias("g"), rows.filter((pl.col("g") != "a") | (pl.col("x") > 0)))
    assert fewer.fired
    assert fewer.reason.startswith("g=a is ")
    moved = asked(bias("g", of="label"), rows_of(9_000, 7, bias=0.4))
    assert moved.fired
    assert moved.reason.startswith("g=a is ")
    # All labels move alike: that is drift of the labels, no bias.
    everywhere = rows.with_columns(truth=pl.max_horizontal("truth", (pl.col("y") > 0).cast(pl.Float64)))
    assert not asked(bias("g", of="label"), everywhere).fired
    assert asked(label_drift(), everywhere).fired


# What cannot be judged is said, with its reason.


CONSTANT = pl.DataFrame({"x": [1.0] * 200, "y": [None] * 200, "g": ["only"] * 200, "truth": [1.0] * 200})
CONSTANT = CONSTANT.with_columns(pl.col("y").cast(pl.Float64))


@pytest.mark.parametrize(
    ("condition", "rows", "history", "why"),
    [
        (drift(), rows_of(100, 1), History(), "no training yet"),
        (drift(), rows_of(100, 1), replace(TRAINED, trained_on=None), "no profile of the windows"),
        (drift(), rows_of(0, 1), TRAINED, "has no rows"),
        (drift(), rows_of(20, 1), TRAINED, "20 values in the window, fewer than 50"),
        (drift("z"), rows_of(100, 1), TRAINED, "z: the window has no such column"),
        (drift(against=previous(windows=3)), rows_of(100, 1), History(), "0 windows closed before, 3 are"),
        (
            drift(against=span("may", "2013-05-01", "2013-06-01")),
            rows_of(99, 1),
            TRAINED,
            "span 'may' has not",
        ),
        (
            drift("x", "y", "g"),
            CONSTANT,
            replace(TRAINED, trained_on=Reference(name="r", profile=profile(CONSTANT))),
            "x: constant: always 1; y: no values, here and there; g: constant: always only",
        ),
        (
            bias("g"),
            CONSTANT,
            replace(TRAINED, trained_on=Reference(name="r", profile=profile(CONSTANT))),
            "a single slice (only)",
        ),
        (bias("h"), rows_of(100, 1), TRAINED, "no row has a slice"),
        (label_drift(), rows_of(100, 1).with_columns(truth=None), TRAINED, "0 values in the window"),
        (hysteresis(drift(), release=0.1), rows_of(100, 1), History(), "no training yet"),
        (sustained(drift(), windows=2), rows_of(100, 1), History(), "held for 0"),
        (once(drift()), rows_of(100, 1), History(), "not evaluated"),
    ],
)
def test_what_cannot_be_judged_is_not_evaluated_and_says_why(
    condition: Condition, rows: pl.DataFrame, history: History, why: str
) -> None:
    window = closed(rows=rows.height)
    shown = profile(rows.with_columns(pl.col("truth").cast(pl.Float64)))
    verdict, reason, evaluations = decide(condition, window, history, shown)
    assert verdict is None
    assert "not evaluated: " in reason
    assert why in " ".join(e.reason for e in evaluations)
    assert not any(e.fired or e.evaluated for e in evaluations)
    # Beside it others decide as ever; a yes that needs it is not to be had.
    assert decide(condition | every(windows=1), window, history, shown)[0] is True
    assert decide(condition & every(windows=1), window, history, shown)[0] is None
    assert decide(condition & every(windows=9), window, history, shown)[0] is False
    assert (
        decide(at_least(2, condition, every(windows=9), seen(windows=9)), window, history, shown)[0] is False
    )


values = st.none() | st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -1e300]) | st.floats()
frames = st.lists(st.tuples(values, st.sampled_from(["a", "b", None]), st.sampled_from([0.0, 1.0, None])))


@settings(deadline=None, max_examples=80)
@given(then=frames, now=frames, repeat=st.integers(1, 60))
def test_no_rows_whatever_make_a_condition_raise_or_fire_without_evidence(
    then: list[tuple], now: list[tuple], repeat: int
) -> None:
    def shown(rows: list[tuple]) -> Profile:
        frame = pl.DataFrame(
            rows * repeat, schema={"x": pl.Float64, "g": pl.String, "y": pl.Float64}, orient="row"
        )
        return profile_of(frame, ["x", "g"], label="y", slices=["g"])

    history = replace(TRAINED, trained_on=Reference(name="r", profile=shown(then)))
    for condition in (drift(), drift(psi=0.2), label_drift(), bias("g"), bias("g", of="label")):
        answer = condition.evaluate(Look(closed(rows=len(now) * repeat), history, shown(now)))
        for part in answer.parts:
            assert part.reason
            assert part.score is None or math.isfinite(part.score)
            assert part.evaluated or not part.fired
        same = condition.evaluate(Look(closed(rows=len(then) * repeat), history, shown(then)))
        assert same.fired in (False, None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: drift(alpha=0.0), "no chance of a false alarm"),
        (lambda: drift(least=-1), "below 0"),
        (lambda: drift(minimum_rows=0), "of no rows nothing"),
        (lambda: drift(psi=0.2, least=0.1), "leave least out"),
        (lambda: drift(correction="bonferoni"), "there are holm, benjamini-hochberg, none"),
        (lambda: span("x", "2013-02-01", "2013-01-01"), "swap the two"),
        (lambda: span("x", "soon", "2013-01-01"), "is no date"),
        (lambda: previous(windows=0), "at least one"),
        (lambda: bias("g", of="rows"), "'share', 'label' or 'error'"),  # type: ignore[arg-type]
        (lambda: hysteresis(seen(windows=1) & seen(windows=2), release=1), "each condition of its own"),
        (lambda: edge_cases("odd", rows=0), "always fire"),
        (lambda: at_least(3, seen(windows=1)), "never fire"),
        (lambda: every(windows=0), "at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_with_their_line(wrong, says: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"test_drift\.py:\d+: ") as caught:
        wrong()
    assert says in str(caught.value)


# References, and what is carried from window to window.


def test_the_reference_is_the_data_of_the_last_training_until_the_next() -> None:
    history = History(keep=4)
    for hour in range(6):
        yes = hour == 3
        history = history.after(
            closed(hour),
            yes=yes,
            profile=profile(rows_of(100 + hour, hour)),
            training=Window(1 * HOUR_MS, 3 * HOUR_MS) if yes else None,
        )
    assert history.trained_on is not None
    assert history.trained_on.profile.rows == 101 + 102
    assert f"{HOUR_MS}-{3 * HOUR_MS}" in history.trained_on.name
    assert [p.rows for _, p in history.recent] == [102, 103, 104, 105]
    newest = history.newest(2)
    assert newest is not None
    assert newest.profile.rows == 104 + 105


def test_a_named_span_is_a_reference_once_it_has_passed() -> None:
    condition = drift(against=span("morning", "1970-01-01T01:00", "1970-01-01T03:00"))
    history = History(spans=condition.watched().references)
    for hour in range(4):
        assert ("morning" in history.named) == (hour >= 3)
        history = history.after(closed(hour), yes=False, profile=profile(rows_of(100, hour)))
    assert history.named["morning"].profile.rows == 200
    assert asked(condition, rows_of(500, 9, x=2), history).fired


def test_windows_that_overlap_count_no_row_of_a_reference_twice() -> None:
    history = History(keep=9)
    for start in range(6):
        window = Window(start * HOUR_MS, (start + 2) * HOUR_MS)
        told = WindowClosed(
            **{**{f: getattr(closed(), f) for f in closed().__struct_fields__}, "window": window}
        )
        history = history.after(told, yes=False, profile=Profile(rows=1))
    newest = history.newest(6)
    assert newest is not None
    assert newest.profile.rows == 3


def run(condition: Condition, shifts: Sequence[float]) -> list[bool | None]:
    """The verdicts on windows whose x is moved so far; the reference stays."""
    history, said = TRAINED, []
    for hour, shift in enumerate(shifts):
        rows = rows_of(2_000, 50 + hour, x=shift)
        verdict, _, evaluations = decide(condition, closed(hour), history, profile(rows))
        history = history.after(closed(hour), yes=False, evaluations=evaluations)
        said.append(verdict)
    return said


def test_hysteresis_fires_once_until_the_score_has_fallen() -> None:
    condition = hysteresis(drift("x", least=0.1), release=0.08)
    assert run(condition, [0, 1, 1, 0.25, 1, 0, 1]) == [False, True, False, False, False, False, True]


def test_once_fires_at_the_first_window_of_a_finding_and_sustained_at_the_nth() -> None:
    shifts = [0, 1, 1, 1, 0, 1, 1]
    assert run(once(drift("x")), shifts) == [False, True, False, False, False, True, False]
    assert run(sustained(drift("x"), windows=2), shifts) == [False, False, True, True, False, False, True]


def test_a_score_that_rises_window_by_window_forecasts_when_it_will_fire() -> None:
    history = replace(TRAINED, scores={"drift('x')": (0.02, 0.03, 0.04)})
    found = asked(drift("x", least=0.5), rows_of(5_000, 8, x=0.13), history)
    assert found.score == pytest.approx(0.05, abs=0.02)
    assert found.forecast_windows == pytest.approx(45, abs=25)
    counted = every(windows=10).evaluate(Look(closed(), replace(TRAINED, windows_since_yes=3))).parts[0]
    assert counted.forecast_windows == 6


def test_edge_cases_are_rows_with_a_tag_since_the_last_training() -> None:
    history, said = History(), []
    for hour, tagged in enumerate([3, 0, 4, 1, 9]):
        window = closed(hour, tags={"storm": tagged, "other": 100})
        yes, _, _ = decide(edge_cases("storm", rows=7), window, history)
        history = history.after(window, yes=bool(yes))
        said.append(yes)
    assert said == [False, False, True, False, True]


def test_a_model_is_stale_by_the_end_of_the_data_it_was_trained_on() -> None:
    condition = stale("5h")
    never = condition.evaluate(Look(closed(9), History()))
    assert never.fired is False
    trained = replace(History(), last_yes_end_ms=4 * HOUR_MS, trained=Window(0, 3 * HOUR_MS))
    assert [condition.evaluate(Look(closed(hour), trained)).fired for hour in (6, 7)] == [False, True]


def test_the_first_training_is_asked_for_once() -> None:
    condition = first(windows=3)
    assert [condition.evaluate(Look(closed(), replace(History(), windows=n))).fired for n in (1, 2, 9)] == [
        False,
        True,
        True,
    ]
    assert condition.evaluate(Look(closed(), replace(History(), windows=9, last_yes_end_ms=0))).fired is False


# The statistics, against values from elsewhere.


def test_tails_are_those_of_the_tables() -> None:
    assert chi_squared_tail(3.841459, 1) == pytest.approx(0.05, rel=1e-5)
    assert chi_squared_tail(18.307038, 10) == pytest.approx(0.05, rel=1e-5)
    assert chi_squared_tail(24.995790, 15) == pytest.approx(0.05, rel=1e-5)
    # 1.6276 / sqrt(n): the table's 1 % point of Kolmogorov's distribution, for two samples of 2n.
    size = 20_000
    base = np.arange(size) / size
    apart = 1.6276 / math.sqrt(size / 2)
    distance, chance = kolmogorov_smirnov(points_of(base), points_of(base + apart))
    assert distance == pytest.approx(apart, abs=2e-4)
    assert chance == pytest.approx(0.01, rel=0.1)


def test_distances_are_those_worked_out_by_hand() -> None:
    assert hellinger({"a": 100}, {"b": 100})[0] == pytest.approx(1)
    assert jensen_shannon({"a": 100}, {"b": 100})[0] == pytest.approx(1)
    assert hellinger({"a": 50, "b": 50}, {"a": 90, "b": 10})[0] == pytest.approx(
        math.sqrt(1 - math.sqrt(0.45) - math.sqrt(0.05))
    )
    halves = points_of(np.repeat([0.0, 1.0], [500, 500])), points_of(np.repeat([0.0, 1.0], [800, 200]))
    assert population_stability(*halves)[0] == pytest.approx(
        0.3 * math.log(1.6) + 0.3 * math.log(2.5), rel=1e-6
    )


def test_corrections_are_those_of_their_papers() -> None:
    chances = [0.01, 0.04, 0.03, 0.005]
    assert holm(chances) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(chances) == pytest.approx([0.02, 0.04, 0.04, 0.02])


def test_false_alarms_are_rare_and_a_tenth_of_a_sigma_is_found_at_once() -> None:
    """The short form of `tidemill bench drift`: the same measurement, fewer windows."""
    measured = measure(windows=40, rows=1_000, reference_windows=4, shifted=0, seed=5)
    assert measured.false_alarms <= 1
    measured = measure(windows=0, rows=100_000, reference_windows=1, shifted=2, seed=5)
    assert measured.found == measured.shifted == 2
