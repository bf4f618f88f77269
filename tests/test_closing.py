"""Windows of all kinds: which rows they hold and what is said of them depends on the rows alone.

Rows in time are told to several workers in any order, in any batches, with the announcer started anew in
between: every window closes once, under the id and with the bytes that its plain definition gives.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.window import Window, WindowAmended, WindowClosed
from streams.announce.fold import Announcer, Commit, Progress, accounts, remember_from_ms
from streams.clean import between
from streams.closing import Closing, Sessions, Turn, closing
from streams.ingest import Ingest
from streams.pipeline import Pipeline, Source
from streams.summary.account import Account
from streams.tag import Tag
from streams.window import Pane, Session, Sliding, Tumbling, Windowing
from tests.stream_fixtures import frame_of

NOW_MS = 10_000_000
LATENESS_MS = 70


class Event(msgspec.Struct):
    id: str
    at: int
    who: str | None
    value: float


KINDS: dict[str, Windowing] = {
    "tumbling": Tumbling("100ms", lateness="70ms", offset="30ms"),
    "sliding": Sliding("300ms", "100ms", lateness="70ms", offset="30ms"),
    "session": Session("60ms", lateness="70ms", longest="1h"),
    "session, cut": Session("60ms", lateness="70ms", longest="150ms"),
    "session by key": Session("60ms", by="who", lateness="70ms", longest="150ms"),
}


class Row(NamedTuple):
    at: int
    who: str | None
    value: float


def pipeline(window: Windowing) -> Pipeline:
    return Pipeline(
        name="p",
        source=Source("events", schema=Event, event_time="at", key="id"),
        clean=[between("value", -1e12, 1e12)],
        tag=[Tag("high", pl.col("value") > 0)],
        window=window,
    )


# ── the plain definition ────────────────────────────────────────────────────────────────────────────


def defined(window: Windowing, rows: Iterable[Row]) -> dict[Window, list[Row]]:
    """Windows and their rows, as one would say it."""
    found: dict[Window, list[Row]] = {}
    if isinstance(window, Sliding):
        for row in rows:
            last = (row.at - window.offset_ms) // window.pane_ms * window.pane_ms + window.offset_ms
            for start in range(last, row.at - window.size_ms, -window.pane_ms):
                found.setdefault(Window(start, start + window.size_ms), []).append(row)
        return found
    assert isinstance(window, Session)
    gap = window.pane_ms
    for key, own in itertools.groupby(sorted(rows, key=lambda r: _key(window, r)), lambda r: _key(window, r)):
        session: list[Row] = []
        for row in [*sorted(own, key=lambda r: r.at), None]:
            is_next = row is not None and bool(session) and row.at - session[-1].at < gap
            if is_next and row is not None:
                # Cut on the gap's own beat, so that where it is cut hangs on no row but the first.
                is_next = row.at // gap - session[0].at // gap < -(-window.longest_ms // gap)
            if session and not is_next:
                found[Window(session[0].at, session[-1].at + gap, key)] = session
                session = []
            if row is not None:
                session.append(row)
    return found


def _key(window: Windowing, row: Row) -> str:
    return (row.who or "") if window.by else ""


# ── told to workers ─────────────────────────────────────────────────────────────────────────────────


def commits(window: Windowing, told: list[list[Row]], marks_ms: list[int | None]) -> list[Commit]:
    """Each batch as a worker would commit it, with these watermarks of the pipeline."""
    ingest = Ingest(pipeline(window))
    made, offset = [], 0
    for version, (batch, mark_ms) in enumerate(zip(told, marks_ms, strict=True), start=1):
        values: list[bytes | None] = [
            json.dumps({"id": f"{offset + n}", "at": r.at, "who": r.who, "value": r.value}).encode()
            for n, r in enumerate(batch)
        ]
        prepared = ingest.prepare([frame_of(values, topic="events", first=offset)], now_ms=NOW_MS)
        offset += len(batch)
        metadata = json.loads(json.dumps({**prepared.metadata(), "watermark_ms": mark_ms}))
        made.append(Commit(version, metadata, prepared.by_source))
        ingest.settle(prepared)
        ingest.pipeline_watermark_ms = mark_ms
    return made


def fold(
    window: Windowing, log: list[Commit], anew: Iterable[int] = ()
) -> list[WindowClosed | WindowAmended]:
    """What is announced; at these versions by an announcer that starts anew."""
    declared = pipeline(window)
    said: list[WindowClosed | WindowAmended] = []
    progress = Progress(closing(window), version=0)
    for commit in log:
        if commit.version in anew:
            progress = replayed(declared, log[: commit.version - 1])
        announcer = Announcer(declared, "uri", progress, read_rows=no_reading)
        for each in announcer.apply(commit):
            contract = WindowClosed if "closed" in each.envelope.type else WindowAmended
            said.append(msgspec.json.decode(each.envelope.data, type=contract))
    return said


def no_reading(*_: Any, **__: Any) -> pl.DataFrame:
    raise AssertionError("nothing here asks for rows of old windows")


def replayed(declared: Pipeline, log: list[Commit]) -> Progress:
    progress = Progress(closing(declared.window), version=len(log))
    for commit in log:
        had_ms, mark_ms = progress.watermark_ms, commit.metadata["watermark_ms"]
        progress.watermark_ms = had_ms if mark_ms is None else mark_ms
        progress.windows.take(accounts(declared, commit), had_ms=had_ms, mark_ms=progress.watermark_ms)
        if progress.watermark_ms is not None:
            progress.tail_from_ms = remember_from_ms(declared, progress)
    return progress


rows_of = st.lists(
    st.builds(
        Row,
        at=st.integers(-300, 900),
        who=st.sampled_from(["a", "b/ü@", ""]) | st.none(),
        value=st.sampled_from([0.1, 0.2, 1e11, -1e11, 3.0]) | st.floats(-1e13, 1e13),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), rows=rows_of)
def test_rows_in_time_land_in_the_windows_of_the_definition_whatever_order_batches_and_restarts(
    kind: str, data: st.DataObject, rows: list[Row]
) -> None:
    window = KINDS[kind]
    heard: list[dict[str, bytes]] = []
    for _ in range(2):
        order = data.draw(st.permutations(rows))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=6)) | {0, len(rows)})
        told = [list(order[a:b]) for a, b in itertools.pairwise(cuts)]
        # As far as it may go while nothing that comes after is late.
        marks: list[int | None] = []
        for at in cuts[1:]:
            first = min((r.at for r in order[at:]), default=10**6)
            farthest = first + LATENESS_MS if first < 10**6 else 10**6
            mark = data.draw(st.none() | st.just(farthest)) if at < len(rows) else 10**6
            known = next((m for m in reversed(marks) if m is not None), None)
            marks.append(known if mark is None else max(mark, known or mark))
        log = commits(window, told, marks)
        assert not any("late" in tags for c in log for f in c.by_source.values() for tags in f["_tags"])
        said = fold(window, log, data.draw(st.sets(st.integers(2, 7), max_size=3)))
        assert all(isinstance(each, WindowClosed) for each in said)
        ids = [each.event_id() for each in said]
        assert len(ids) == len(set(ids)), "each closes once"
        good = [row for row in rows if abs(row.value) <= 1e12]
        expected = defined(window, good)
        with_rows = {each.window: each.summary for each in said if each.summary.rows}
        assert {w: len(own) for w, own in expected.items()} == {w: s.rows for w, s in with_rows.items()}
        for each, own in expected.items():
            assert with_rows[each].tags.get("high", 0) == sum(row.value > 0 for row in own)
            assert with_rows[each].columns["value"].max == max(row.value for row in own)
        heard.append({each.event_id(): msgspec.json.encode(each.summary) for each in said})
    assert heard[0] == heard[1], "the same id says the same bytes"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=rows_of, steps=st.lists(st.integers(0, 250), min_size=1, max_size=8))
def test_rows_that_come_late_are_counted_and_tagged_and_a_window_still_closes_once(
    kind: str, data: st.DataObject, rows: list[Row], steps: list[int]
) -> None:
    window = KINDS[kind]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(rows)), max_size=len(steps))) | {0, len(rows)})
    told = [rows[a:b] for a, b in itertools.pairwise(cuts)]
    marks = list(itertools.accumulate(steps[: len(told)], initial=-400))[1:]
    marks += [marks[-1]] * (len(told) - len(marks))
    log = commits(window, [*told, []], [*marks, 10**6])
    said = fold(window, log)
    assert said == fold(window, log, range(2, 20)), "whoever folds the log says the same"
    closed = [each for each in said if isinstance(each, WindowClosed)]
    amended = [each for each in said if isinstance(each, WindowAmended)]
    ids = [each.event_id() for each in said]
    assert len(ids) == len(set(ids))
    late = sum("late" in tags for c in log for f in c.by_source.values() for tags in f["_tags"])
    newest = {each.window: each.summary.rows for each in said}
    assert all(each.late_rows > 0 for each in amended)
    good = [row for row in rows if abs(row.value) <= 1e12]
    if isinstance(window, Sliding):
        assert newest == {w: len(own) for w, own in defined(window, good).items()} | {
            w: 0 for w, count in newest.items() if count == 0
        }, "each row is in all of its windows in the end"
        if window.size_ms == window.pane_ms:
            assert sum(each.late_rows for each in amended) == late
    else:
        assert sum(newest.values()) == len(good), "each row is in one session in the end"
        assert sum(each.late_rows for each in amended) <= late
        assert all(each.window.end_ms - each.window.start_ms >= 60 for each in closed)


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────


def of(*times_ms: int, gap_ms: int = 60, key: str = "") -> dict[Pane, Account]:
    """Accounts of rows at these times."""
    found: dict[Pane, Account] = {}
    for start_ms, own in itertools.groupby(sorted(times_ms), lambda t: t // gap_ms * gap_ms):
        times = list(own)
        found[Pane(start_ms, key)] = Account(rows=len(times), first_ms=times[0], last_ms=times[-1])
    return found


def turn(state: Closing, said: dict[Pane, Account], had_ms: int | None, mark_ms: int) -> list[Turn]:
    return state.take(said, had_ms=had_ms, mark_ms=mark_ms)


def test_a_late_row_amends_the_closed_session_near_it_whose_bounds_stay_as_said() -> None:
    state = Sessions(Session("60ms"))
    (closed,) = turn(state, of(100, 130), None, 500)
    assert (closed.window, closed.account.rows) == (Window(100, 190), 2)
    for late, rows in ((120, 3), (185, 4), (55, 5), (240, 6)):
        (amended,) = turn(state, of(late), 500, 500)
        assert (amended.window, amended.account.rows, amended.late_rows) == (Window(100, 190), rows, 1)


def test_a_late_row_near_no_session_makes_one_that_closes_at_once() -> None:
    state = Sessions(Session("60ms"))
    turn(state, of(100, 130), None, 1_000)
    (closed,) = turn(state, of(400), 1_000, 1_000)
    assert (closed.window, closed.late_rows) == (Window(400, 460), None)


def test_a_late_row_of_a_session_that_nobody_remembers_is_announced_as_what_came_since() -> None:
    state = Sessions(Session("60ms", by="who"))
    turn(state, of(100, key="k"), None, 1_000)
    turn(state, {}, 1_000, 10**6)
    assert not state.closed
    (amended,) = turn(state, of(100, key="k"), 10**6, 10**6)
    assert (amended.window, amended.account.rows, amended.late_rows) == (Window(100, 160, "k"), 1, 1)
    assert not state.open


def test_what_is_refused_makes_no_session_and_is_counted_in_the_one_of_its_pane() -> None:
    state = Sessions(Session("60ms"))
    refused = {Pane(60): Account(rejected={"r": 1}), Pane(600): Account(rejected={"r": 5})}
    turn(state, refused, None, 0)
    (closed,) = turn(state, of(100), 0, 10_000)
    assert closed.account.rejected == {"r": 1}
    assert not state.open


def test_a_stream_that_never_rests_has_sessions_too_and_memory_stays_bounded() -> None:
    state = Sessions(Session("60ms", longest="600ms"))
    mark: int | None = None
    windows = []
    for start in range(0, 60_000, 300):
        windows += [t.window for t in turn(state, of(*range(start, start + 300, 20)), mark, start)]
        mark = start
        assert len(state.open) <= 20
    assert len(windows) >= 95
    assert all(b.start_ms - a.start_ms == 600 for a, b in itertools.pairwise(windows))


def test_the_newest_sessions_are_found_by_their_end() -> None:
    state = Sessions(Session("60ms"))
    turn(state, of(0, 200, 400, 600), None, 10_000)
    assert state.newest_from_ms(1, 660) == 600
    assert state.newest_from_ms(2, 600) == 200
    assert state.newest_from_ms(9, 600) == 0
    assert state.newest_from_ms(1, -50) == -50, "no window ends by then: no rows"


def test_an_open_sliding_window_costs_a_commit_one_pane() -> None:
    window = Sliding("200s", "1s")
    rows = [Row(at, None, 1.0) for at in range(0, 200_000, 500)]
    (commit,) = commits(window, [rows], [0])
    assert len(commit.metadata["panes"]) == 200, "each row is accounted for once, not once a window"
    (last,) = commits(window, [rows[-1:]], [0])
    assert len(last.metadata["panes"]) == 1


def test_a_window_of_a_key_is_named_by_it_and_its_end_is_the_last_part_of_the_name() -> None:
    assert str(Window(5, 9, "a/b@c-d")) == "a%2Fb%40c-d@5-9"
    assert str(Window(-5, 9)) == "-5-9"
    assert msgspec.json.encode(Window(5, 9)) == b'{"start_ms":5,"end_ms":9}'
