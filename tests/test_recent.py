"""The rows that announcements may still look at: whatever the pieces, they are the rows that came."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from streams.announce import recent
from streams.announce.recent import Recent

COLUMNS = {"_offset": pl.Int64, "_time": pl.Int64}
# Times of a commit, and before which time rows are taken, or forgotten, after it; a partition that is behind
# brings old times again and again.
BEFORE_MS = st.none() | st.integers(-5, 55)
STEPS = st.lists(st.tuples(st.lists(st.integers(0, 50), max_size=12), BEFORE_MS, st.booleans()), max_size=40)


def of(times_ms: list[int], first: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"_offset": range(first, first + len(times_ms)), "_time": times_ms}, schema=COLUMNS, strict=False
    )


def as_set(rows: pl.DataFrame) -> set[tuple[int, int]]:
    found = list(rows.select("_offset", "_time").iter_rows())
    assert len(found) == len(set(found))
    return set(found)


@given(STEPS, st.integers(0, 50), st.integers(0, 20))
def test_what_is_taken_and_what_is_left_are_the_rows_that_came(
    steps: list[tuple[list[int], int | None, bool]], from_ms: int, span_ms: int
) -> None:
    rows, model = Recent(COLUMNS), set[tuple[int, int]]()
    came = forgotten_ms = 0
    for times_ms, before_ms, forgets in steps:
        rows.add(of(times_ms, came))
        model |= {(came + at, ms) for at, ms in enumerate(times_ms) if ms >= forgotten_ms}
        came += len(times_ms)
        if before_ms is not None:
            gone = {each for each in model if each[1] < before_ms}
            if forgets:
                rows.forget_before(before_ms)
                forgotten_ms = max(forgotten_ms, before_ms)
            else:
                taken = as_set(rows.take_before(before_ms))
                assert {each for each in taken if each[1] >= forgotten_ms} == gone
            model -= gone
        assert as_set(rows.rows()) == model
        asked = {each for each in model if from_ms <= each[1] < from_ms + span_ms}
        met = rows.between(from_ms, from_ms + span_ms)
        assert dict(met.schema) == COLUMNS
        assert as_set(met) == asked


def test_small_commits_come_together() -> None:
    rows, size = Recent(COLUMNS), 100
    commits = 10 * recent.PIECE_ROWS // size
    for commit in range(commits):
        rows.add(of([commit] * size, commit * size))
    assert rows.rows().n_chunks() < 30
    assert as_set(rows.between(7, 8)) == {(offset, 7) for offset in range(700, 800)}
    assert rows.take_before(commits).height == commits * size
    assert rows.rows().height == 0
