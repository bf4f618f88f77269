"""The trigger: an algebra of conditions, each answer with its reason, and a memory that is a fold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.decision import Evaluation
from schemas.window import Summary, Window, WindowClosed
from streams.training import job_id
from streams.trigger import (
    Answer,
    Condition,
    History,
    Look,
    any_of,
    at_least,
    cooldown,
    decide,
    every,
    labelled,
    seen,
)

HOUR_MS = 3_600_000


def closed(hour: int = 0, *, rows: int = 10) -> WindowClosed:
    return WindowClosed(
        pipeline="p",
        window=Window(hour * HOUR_MS, (hour + 1) * HOUR_MS),
        summary=Summary(rows=rows),
        labelled=rows,
        watermark_ms=(hour + 1) * HOUR_MS,
        dataset_uri="u",
        dataset_version=hour,
    )


class Fixed(Condition):
    """A condition whose answer is given; it notes that it was asked."""

    def __init__(self, name: str, *, fires: bool | None) -> None:
        self.name, self.fires = name, fires

    def evaluate(self, look: Look) -> Answer:
        said = self.fires is not None
        part = Evaluation(
            condition=self.name,
            fired=bool(self.fires),
            evaluated=said,
            score=None,
            threshold=None,
            reason="given",
        )
        return Answer(self.fires, [part])


def fires(condition: Condition) -> bool | None:
    return condition.evaluate(Look(closed(), History())).fired


booleans = st.booleans().map(lambda b: Fixed("c", fires=b))


@settings(deadline=None)
@given(a=booleans, b=booleans, c=booleans)
def test_conditions_form_an_algebra(a: Fixed, b: Fixed, c: Fixed) -> None:
    x, y, z = a.fires, b.fires, c.fires
    assert fires(a & b) == fires(b & a) == (x and y)
    assert fires(a | b) == fires(b | a) == (x or y)
    assert fires(a & (b | c)) == fires((a & b) | (a & c))
    assert fires(a | (b & c)) == fires((a | b) & (a | c))
    assert fires((a & b) & c) == fires(a & (b & c)) == (x and y and z)
    assert fires(any_of(a, b, c)) == fires(at_least(1, a, b, c)) == (x or y or z)
    assert fires(at_least(2, a, b, c)) == (x + y + z >= 2)
    assert fires(at_least(3, a, b, c)) == fires(a & b & c)


@settings(deadline=None)
@given(answers=st.lists(st.booleans(), min_size=1, max_size=5))
def test_every_part_is_evaluated_and_reported_whatever_the_others_say(answers: list[bool]) -> None:
    parts = [Fixed(f"c{i}", fires=answer) for i, answer in enumerate(answers)]
    verdict, reason, evaluations = decide(
        at_least(2, *parts) if len(parts) > 1 else parts[0], closed(), History()
    )
    assert [(e.condition, e.fired) for e in evaluations] == [(f"c{i}", a) for i, a in enumerate(answers)]
    # The reason names the parts that decided: those that fired of a yes, those that did not of a no.
    deciding = [f"c{i}" for i, a in enumerate(answers) if a == verdict] or [
        f"c{i}" for i in range(len(answers))
    ]
    assert [part.partition(":")[0] for part in reason.split("; ")] == deciding


def run(condition: Condition, windows: list[WindowClosed], history: History | None = None) -> list[int]:
    """Indices of the windows with a yes."""
    history, yes = history or History(), []
    for index, window in enumerate(windows):
        fired, _, _ = decide(condition, window, history)
        history = history.after(window, yes=fired)
        yes += [index] if fired else []
    return yes


def test_every_n_windows_counts_from_the_last_yes() -> None:
    windows = [closed(hour) for hour in range(10)]
    assert run(every(windows=3), windows) == [2, 5, 8]
    assert run(every(windows=1), windows) == list(range(10))


def test_seen_waits_for_enough_windows_and_then_stays_true() -> None:
    windows = [closed(hour) for hour in range(10)]
    assert run(seen(windows=4), windows) == list(range(3, 10))
    assert run(seen(windows=4) & every(windows=3), windows) == [3, 6, 9]


def test_labelled_rows_are_those_since_the_last_yes() -> None:
    assert run(labelled(rows=25), [closed(hour, rows=10) for hour in range(8)]) == [2, 5]
    assert run(labelled(rows=25), [closed(0, rows=25), closed(1, rows=24), closed(2, rows=1)]) == [0, 2]


def test_cooldown_is_event_time_since_the_last_yes_and_never_holds_back_the_first() -> None:
    windows = [closed(hour) for hour in (0, 1, 2, 5, 6, 50)]
    assert run(cooldown("3h"), windows) == [0, 3, 5]
    assert run(cooldown("2h") & every(windows=1), windows) == [0, 2, 3, 5]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(0, 40), max_size=25),
    n=st.integers(1, 5),
    need=st.integers(1, 60),
    cut=st.integers(0, 25),
)
def test_a_history_replayed_from_its_decisions_goes_on_as_if_never_interrupted(
    rows: list[int], n: int, need: int, cut: int
) -> None:
    condition = (every(windows=n) & labelled(rows=need)) | cooldown("9h")
    windows = [closed(hour, rows=r) for hour, r in enumerate(rows)]
    whole = run(condition, windows)
    cut = min(cut, len(windows))
    history = History()
    for index, window in enumerate(windows[:cut]):
        history = history.after(window, yes=index in whole)
    assert [cut + index for index in run(condition, windows[cut:], history)] == [i for i in whole if i >= cut]


@pytest.mark.parametrize("end_ms", [-(2**53), 2**53, 0, 1_359_349_200_000, 1_359_349_200_001])
def test_a_window_of_any_time_can_ask_for_a_job(end_ms: int) -> None:
    """One event with a time of long before any calendar must not stop a pipeline."""
    assert job_id("m", end_ms).startswith("m-")
    assert job_id("m", end_ms) != job_id("m", end_ms - 1)
