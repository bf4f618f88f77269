"""Watermarks: never back, held by the slowest, not held by the silent."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.watermark import advance, of_pipeline

maybe = st.none() | st.integers(-1_000, 1_000)


@settings(deadline=None)
@given(steps=st.lists(st.tuples(maybe, maybe, st.integers(0, 300)), max_size=30))
def test_a_partition_never_goes_back_and_never_runs_ahead_of_what_it_was_told(
    steps: list[tuple[int | None, int | None, int]],
) -> None:
    mark: int | None = None
    told = [-(10**9)]
    for newest_ms, heartbeat_ms, disorder_ms in steps:
        before = mark
        mark = advance(mark, newest_event_ms=newest_ms, heartbeat_ms=heartbeat_ms, disorder_ms=disorder_ms)
        told += [newest_ms - disorder_ms] if newest_ms is not None else []
        told += [heartbeat_ms] if heartbeat_ms is not None else []
        assert before is None or (mark is not None and mark >= before)
        assert mark == (max(told) if len(told) > 1 else None)


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abc"), maybe, min_size=1), st.sets(st.sampled_from("abc")))
    )
)
def test_the_pipelines_watermark_never_goes_back_and_no_live_partition_is_behind_its_last_step(
    steps: list[tuple[dict[str, int | None], set[str]]],
) -> None:
    mark: int | None = None
    for partitions, idle in steps:
        before = mark
        mark = of_pipeline(mark, partitions, idle=idle)
        live = [w for p, w in partitions.items() if p not in idle]
        if not live or None in live:
            assert mark == before, "nothing is known of one that has said nothing yet"
        else:
            smallest = min(w for w in live if w is not None)
            assert mark == (smallest if before is None else max(before, smallest))


def test_an_idle_partition_holds_no_window_open_and_one_that_wakes_does_not_pull_back() -> None:
    marks: dict[str, int | None] = {"a": 100, "b": None}
    assert of_pipeline(None, marks) is None
    assert of_pipeline(None, marks, idle={"b"}) == 100
    assert of_pipeline(100, {"a": 120, "b": 7}) == 100
    assert of_pipeline(100, {"a": 120, "b": 110}) == 110
    assert of_pipeline(100, marks, idle={"a", "b"}) == 100
