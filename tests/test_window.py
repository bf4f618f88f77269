"""Windows: each row in exactly one pane, whatever its time, and in which windows that puts it."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InvalidConfiguration
from streams.window import Session, Sliding, Tumbling, assign

times = st.integers(-(2**53), 2**53)


@settings(deadline=None, max_examples=150)
@given(
    at=st.lists(times, min_size=1, max_size=20),
    size_ms=st.integers(1, 10**9),
    offset_ms=st.integers(0, 10**9),
)
def test_each_row_is_in_exactly_one_window(at: list[int], size_ms: int, offset_ms: int) -> None:
    starts = (
        pl.DataFrame({"t": at}).select(assign(pl.col("t"), size_ms=size_ms, offset_ms=offset_ms)).to_series()
    )
    for time_ms, start_ms in zip(at, starts, strict=True):
        assert start_ms <= time_ms < start_ms + size_ms
        assert (start_ms - offset_ms) % size_ms == 0, "windows stand side by side, so no other holds it"


def test_times_before_1970_floor_like_those_after() -> None:
    starts = pl.DataFrame({"t": [-1, 0, -1_000, -1_001, 999]}).select(assign(pl.col("t"), size_ms=1_000))
    assert starts.to_series().to_list() == [-1_000, 0, -1_000, -2_000, 0]


@settings(deadline=None, max_examples=150)
@given(
    at=times,
    every_ms=st.integers(1, 5_000),
    panes=st.integers(1, 12),
    offset_ms=st.integers(1, 5_000),
    by_ms=st.integers(-3_000, 90_000),
    after_ms=st.none() | st.integers(-3_000, 90_000),
)
def test_a_row_is_in_size_by_every_sliding_windows_and_each_closes_once(
    at: int, every_ms: int, panes: int, offset_ms: int, by_ms: int, after_ms: int | None
) -> None:
    size_ms = every_ms * panes
    window = Sliding(f"{size_ms}ms", f"{every_ms}ms", lateness="1ms", offset=f"{offset_ms}ms")
    pane_ms = pl.DataFrame({"t": [at]}).select(window.start(pl.col("t"))).item()
    assert pane_ms <= at < pane_ms + every_ms
    every = [pane_ms - n * every_ms for n in reversed(range(panes))]
    assert all(s <= at < s + size_ms and (s - offset_ms) % every_ms == 0 for s in every)
    ended = list(window.starts_over(pane_ms, closing_after_ms=None, closing_by_ms=at + 10**8))
    assert ended == every
    mark_ms, had_ms = at + by_ms, None if after_ms is None else at + after_ms
    closing = window.starts_over(pane_ms, closing_after_ms=had_ms, closing_by_ms=mark_ms)
    assert list(closing) == [
        s for s in every if s + size_ms + 1 <= mark_ms and (had_ms is None or s + size_ms + 1 > had_ms)
    ]
    # Late is a row of which a window may have closed: the first of its windows closes then.
    assert window.late_from_ms(pane_ms) == window.closes_at_ms(every[0])
    is_late = pl.DataFrame({"t": [at]}).select(window.is_late(pl.col("t"), mark_ms)).item()
    assert is_late == (window.closes_at_ms(every[0]) <= mark_ms)


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (lambda: Sliding("1h", "7m"), r"size \(1h\) is no multiple of every \(7m\)"),
        (lambda: Sliding("1h", "2h"), r"size \(1h\) is no multiple of every \(2h\)"),
        (lambda: Sliding("1d", "1m"), r"in 1440 windows.*at most 200"),
        (lambda: Sliding("1h", "30m", lateness="2h"), r"lateness \(2h\) is longer"),
        (lambda: Session("1h", longest="1m"), r"cut after 1m, which is shorter than its gap"),
        (lambda: Session("soon"), "is no duration"),
    ],
)
def test_windows_that_cannot_be_are_refused_by_their_line(declared: Any, problem: str) -> None:
    with pytest.raises(InvalidConfiguration, match=rf"test_window\.py:\d+: .*{problem}"):
        declared()


def test_a_window_shorter_than_its_lateness_is_refused_by_its_line() -> None:
    with pytest.raises(
        InvalidConfiguration, match=r"test_window\.py:\d+: the window's lateness \(2h\) is longer"
    ):
        Tumbling("1h", lateness="2h")


@pytest.mark.parametrize("size", ["0s", "", "5", "h", "-1h"])
def test_a_size_that_is_no_span_of_time_is_refused(size: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"is no duration.*6h"):
        Tumbling(size)
