"""Windows: each row in exactly one, whatever its time, and when one closes."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InvalidConfiguration
from streams.window import Tumbling, assign

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


@settings(deadline=None, max_examples=60)
@given(starts=st.sets(st.integers(-50, 50)), watermark_ms=st.none() | st.integers(-2_000, 8_000))
def test_a_window_closes_when_the_watermark_has_passed_its_end_and_lateness(
    starts: set[int], watermark_ms: int | None
) -> None:
    window = Tumbling("100ms", lateness="30ms")
    aligned = {s * 100 for s in starts}
    closed = window.closed_by(aligned, watermark_ms)
    assert closed == sorted(s for s in aligned if watermark_ms is not None and s + 130 <= watermark_ms)


def test_a_window_shorter_than_its_lateness_is_refused_by_its_line() -> None:
    with pytest.raises(
        InvalidConfiguration, match=r"test_window\.py:\d+: the window's lateness \(2h\) is longer"
    ):
        Tumbling("1h", lateness="2h")


@pytest.mark.parametrize("size", ["0s", "", "5", "h", "-1h"])
def test_a_size_that_is_no_span_of_time_is_refused(size: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"is no duration.*6h"):
        Tumbling(size)
