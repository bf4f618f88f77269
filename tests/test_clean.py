"""Cleaning: who stays, who is refused and by which rule, and that batching changes neither."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from unittest.mock import patch

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.errors import InvalidConfiguration
from schemas.window import Window
from streams import compiled
from streams import dedupe as dedupes
from streams.clean import Rule, between, dedupe, failing, one_of, require, rule
from streams.dedupe import Seen, Sieve, come_again
from streams.ingest import Ingest
from streams.pipeline import Pipeline, Source
from streams.tag import Tag
from streams.window import Pane, Tumbling
from tests.stream_fixtures import Reading, frame_of

NOW_MS = 1_000_000_000
TOLD = pl.DataFrame(
    {
        "id": ["a", "b", "", None, "e"],
        "level": [1.0, -3.0, float("nan"), None, float("inf")],
        "count": [1, 2, 3, 4, 5],
    }
)


def positions(each: Rule) -> list[int]:
    return [f.position for f in failing(TOLD, [each])]


def test_a_required_column_holds_a_value() -> None:
    assert positions(require("id")) == [2, 3]
    assert positions(require("level")) == [3]
    assert positions(require("id", "level")) == [2, 3]
    with pytest.raises(InvalidConfiguration, match=r"test_clean\.py:\d+: require\(\) names no column"):
        require()


def test_a_number_between_its_ends_stays_and_nan_and_infinity_do_not() -> None:
    assert positions(between("level", -3, 1)) == [2, 4]
    assert positions(between("count", 2, 4)) == [0, 4]
    with pytest.raises(InvalidConfiguration, match="low end is above the high end"):
        between("level", 2, 1)


def test_one_of_the_allowed_values_stays_and_null_is_for_require() -> None:
    assert positions(one_of("id", ["a", "b"])) == [2, 4]


def test_a_condition_that_is_null_is_not_met() -> None:
    assert positions(rule("positive", pl.col("level") > 0)) == [1, 3]  # NaN counts as greater in Polars


@pytest.mark.parametrize("span", ["", "h", "1", "-1h", "1.5h", "1 h", "0s", "1h30", "1y", "∞"])
def test_a_span_that_is_none_is_refused(span: str) -> None:
    with pytest.raises(InvalidConfiguration, match="is no duration"):
        dedupe(within=span)


def test_the_first_rule_that_a_row_fails_is_its_reason() -> None:
    failed = failing(TOLD, [between("level", -9, 9), require("id")])
    assert [(f.position, f.rule) for f in failed] == [(2, 0), (3, 1), (4, 0)]


# ── through a pipeline ──────────────────────────────────────────────────────────────────────────────


def pipeline(**changes: object) -> Pipeline:
    arguments: dict = {
        "name": "readings",
        "source": Source("readings", schema=Reading, event_time="at", key="id"),
        "window": Tumbling("1s", lateness="100ms"),
    }
    return Pipeline(**{**arguments, **changes})


def record(**changes: object) -> bytes:
    base = {"id": "a", "at": 5_000, "level": 1.0, "count": 1, "good": True, "note": None}
    return json.dumps({**base, **changes}).encode()


def test_a_rule_that_fails_on_a_row_refuses_that_row_alone() -> None:
    """`strict` conversions raise for the whole frame."""
    numbers = rule("note_is_a_number", pl.col("note").cast(pl.Int64) > 0)
    frame = frame_of(
        [record(id=str(i), note=note) for i, note in enumerate(["1", "x", "3", "-4", "five", "6"])]
    )
    prepared = Ingest(pipeline(clean=[numbers])).prepare([frame], now_ms=NOW_MS)
    assert prepared.rows.get_column("id").to_list() == ["0", "2", "5"]
    letters = {letter.offset: letter for letter in prepared.dead_letters}
    assert set(letters) == {1, 3, 4}
    assert {letter.reason for letter in letters.values()} == {"rule"}
    assert {letter.rule for letter in letters.values()} == {"note_is_a_number"}
    assert "failed on it" in letters[1].detail
    assert letters[3].detail == "the rule note_is_a_number must hold"
    assert prepared.counts["readings"].rejected == {"note_is_a_number": 3}


def test_a_derived_column_or_a_tag_that_fails_on_a_row_refuses_that_row_alone() -> None:
    source = Source(
        "readings",
        schema=Reading,
        event_time="at",
        key="id",
        derive={"number": pl.col("note").cast(pl.Int64)},
    )
    tag = Tag("even", pl.col("id").cast(pl.Int64) % 2 == 0)
    frame = frame_of([record(id=i, note=n) for i, n in (("0", "7"), ("1", "x"), ("z", "8"), ("2", None))])
    prepared = Ingest(pipeline(source=source, tag=[tag])).prepare([frame], now_ms=NOW_MS)
    assert list(prepared.rows.select("id", "number", "_tags").iter_rows()) == [
        ("0", 7, ["even"]),
        ("2", None, ["even"]),
    ]
    assert [(x.offset, x.reason, x.rule) for x in prepared.dead_letters] == [
        (1, "rule", "derive(number)"),
        (2, "rule", "tag(even)"),
    ]


def test_an_event_time_far_ahead_of_the_clock_is_refused_and_opens_no_window() -> None:
    frame = frame_of([record(at=NOW_MS + 86_400_000), record(id="b", at=NOW_MS + 86_400_001)])
    prepared = Ingest(pipeline()).prepare([frame], now_ms=NOW_MS)
    assert [(x.offset, x.reason, x.rule) for x in prepared.dead_letters] == [
        (1, "future_event_time", "not_in_the_future(at)")
    ]
    assert list(prepared.accounts) == [Pane(NOW_MS + 86_400_000)]
    assert prepared.watermarks == {("readings", 0): NOW_MS + 86_400_000}


def test_a_missing_key_or_time_is_refused_also_where_the_contract_allows_it() -> None:
    class Loose(msgspec.Struct):
        id: str | None
        at: int | None

    source = Source("loose", schema=Loose, event_time="at", key="id")
    values = [
        b'{"id":"a","at":1}',
        b'{"id":null,"at":1}',
        b'{"id":"b","at":null}',
        b'{"id":"c","at":-9223372036854775808}',
    ]
    prepared = Ingest(pipeline(source=source)).prepare([frame_of(values, topic="loose")], now_ms=NOW_MS)
    assert prepared.rows.get_column("id").to_list() == ["a"]
    assert [(x.offset, x.reason) for x in prepared.dead_letters] == [
        (1, "missing"),
        (2, "missing"),
        (3, "out_of_range"),
    ]


@pytest.mark.parametrize(("at", "taken"), [(-(2**53), False), (-(2**52), True), (-(2**52) - 1, False)])
def test_a_time_whose_window_no_announcement_could_name_is_refused(at: int, *, taken: bool) -> None:
    prepared = Ingest(pipeline()).prepare([frame_of([record(at=at)])], now_ms=NOW_MS)
    assert prepared.rows.height == taken
    assert [x.reason for x in prepared.dead_letters] == ([] if taken else ["out_of_range"])
    for pane in prepared.accounts:
        window = Tumbling("1s").window(pane.start_ms)
        assert msgspec.json.decode(msgspec.json.encode(window), type=Window) == window


def test_every_event_is_a_row_a_dead_letter_or_dropped() -> None:
    values = [record(id=str(i % 7), at=5_000 + i, level=i) for i in range(60)] + [b"x", None, b"{}"]
    clean = [between("level", 0, 40), dedupe(within="5ms")]
    prepared = Ingest(pipeline(clean=clean)).prepare([frame_of(values)], now_ms=NOW_MS)
    counts = prepared.counts["readings"]
    assert counts.events == 63 == counts.rows + sum(counts.rejected.values()) + sum(counts.dropped.values())
    assert counts.rows == prepared.rows.height
    assert sum(counts.rejected.values()) == len(prepared.dead_letters)
    by_pane = prepared.accounts[Pane(5_000)]
    assert by_pane.rejected == {"between(level)": 10}
    assert counts.rejected == {"between(level)": 10, "level": 9, "value": 2, "id": 1}
    assert by_pane.dropped == counts.dropped


@given(
    values=st.lists(
        st.tuples(
            st.text("x ", max_size=1) | st.none(),
            st.none() | st.just(float("nan")),
            st.none() | st.booleans(),
        )
    )
)
def test_what_must_be_there_is_asked_for_the_same_whatever_the_types(values: list[tuple]) -> None:
    schema = pl.Schema({"a": pl.String, "b": pl.Float64, "c": pl.Boolean})
    rows = pl.DataFrame(values, schema=schema, orient="row")
    for names in (["a"], ["b"], ["a", "b", "c"]):
        asked = require(*names)
        by_type = asked.keep_of(schema).fill_null(value=False)
        assert rows.select(by_type.alias("x")).equals(rows.select(asked.keep.alias("x")))


# ── dedupe ──────────────────────────────────────────────────────────────────────────────────────────


class Stored:
    """A dataset's rows of one source, as far as a dedupe reads them."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.reads = 0

    def read(self, start_ms: int, end_ms: int) -> pl.DataFrame:
        self.reads += 1
        found = [row for row in self.rows if start_ms <= row[1] < end_ms]
        return pl.DataFrame(found, schema={"id": pl.String, "_time": pl.Int64}, orient="row")


def survivors(
    events: Sequence[tuple[str, int]], cuts: Sequence[int], within_ms: int, *, lag_ms: int, restarts: bool
) -> list[int]:
    """Positions that stay, the events taken in chunks cut there; forgetting and restarting on the way.

    The slowest partition is so far behind the newest event.
    """
    stored = Stored()
    seen = Seen("id", within_ms, stored.read)
    kept: list[int] = []
    edges = [0, *sorted(cuts), len(events)]
    watermark_ms: int | None = None
    for start, end in itertools.pairwise(edges):
        chunk = list(enumerate(events))[start:end]
        frame = pl.DataFrame([e for _, e in chunk], schema={"id": pl.String, "_time": pl.Int64}, orient="row")
        stays = ~seen.repeats(seen.keys(frame))
        assert len(stays) == len(chunk)
        kept += [position for (position, _), stay in zip(chunk, stays, strict=True) if stay]
        stored.rows += [event for (_, event), stay in zip(chunk, stays, strict=True) if stay]
        watermark_ms = max([watermark_ms or -(10**9), *(t - lag_ms for _, (_, t) in chunk)])
        seen.remember(seen.keys(frame.filter(stays)), forget_before_ms=watermark_ms)
        if restarts:
            seen.recall(watermark_ms)
    return kept


def by_definition(events: Sequence[tuple[str, int]], within_ms: int) -> list[int]:
    kept: list[int] = []
    for position, (key, time_ms) in enumerate(events):
        if not any(events[k][0] == key and abs(events[k][1] - time_ms) <= within_ms for k in kept):
            kept.append(position)
    return kept


@pytest.mark.usefixtures("way")
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(events=[("a", 0), ("a", 20), ("a", 21)], cuts=[], within_ms=5, lag_ms=0, part=9, restarts=False)
@example(events=[("a", 0), ("a", 9), ("a", 18)], cuts=[1], within_ms=10, lag_ms=0, part=9, restarts=False)
@example(
    events=[("a", 0), ("a", 1_000), ("a", 0)], cuts=[1, 2], within_ms=1, lag_ms=0, part=9, restarts=False
)
@example(events=[("a", 10), ("a", 5)], cuts=[1], within_ms=5, lag_ms=40, part=1, restarts=False)
@example(events=[("a", 5), ("a", 10)], cuts=[1], within_ms=5, lag_ms=40, part=1, restarts=False)
@given(
    events=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-60, 60)), max_size=25),
    cuts=st.lists(st.integers(0, 25), max_size=4),
    within_ms=st.integers(1, 30),
    lag_ms=st.sampled_from([0, 40, 200]),
    part=st.sampled_from([1, 3, 50_000]),
    restarts=st.booleans(),
)
def test_the_same_rows_survive_a_dedupe_however_they_were_batched(
    events: list[tuple[str, int]], cuts: list[int], within_ms: int, lag_ms: int, part: int, *, restarts: bool
) -> None:
    cuts = [min(cut, len(events)) for cut in cuts]
    with patch.object(dedupes, "_PART_ROWS", part):
        kept = survivors(events, cuts, within_ms, lag_ms=lag_ms, restarts=restarts)
    assert kept == by_definition(events, within_ms)


def test_a_repeat_of_long_ago_is_looked_up_in_the_dataset_and_news_are_not() -> None:
    stored = Stored()
    seen = Seen("id", 10, stored.read)
    schema = {"id": pl.String, "_time": pl.Int64}
    old = pl.DataFrame([("a", 0)], schema=schema, orient="row")
    stored.rows = [("a", 0)]
    seen.remember(seen.keys(old), forget_before_ms=10_000)
    news = pl.DataFrame([("a", 10_000), ("b", 10_001)], schema=schema, orient="row")
    assert seen.repeats(seen.keys(news)).tolist() == [False, False]
    assert stored.reads == 0
    assert seen.repeats(seen.keys(pl.concat([news, old]))).tolist() == [False, False, True]
    assert stored.reads == 1


@pytest.mark.usefixtures("way")
def test_many_repeats_of_one_key_cost_no_more_than_many_keys() -> None:
    """An attacker's batch: all rows of one key must not be compared each with each."""
    import time

    rows = pl.DataFrame({"id": ["a"] * 50_000, "_time": list(range(0, 5_000_000, 100))})
    seen = Seen("id", 50)
    began = time.perf_counter()
    keys = seen.keys(rows)
    assert not seen.repeats(keys).any()
    seen.remember(keys)
    assert seen.repeats(keys).all()
    assert time.perf_counter() - began < 5


@pytest.fixture(params=["compiled", "by numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are looked at by a compiled walk, or by numpy."""
    keys = compiled.loading().result().keys if request.param == "compiled" else None
    monkeypatch.setattr(dedupes, "_walk", lambda _: keys)


# Of one place and of many, near both ends.
HASHES = st.lists(st.integers(0, 40) | st.integers(2**64 - 9, 2**64 - 1) | st.integers(0, 2**64 - 1))


@pytest.mark.usefixtures("way")
@given(hashes=HASHES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hashes_that_come_more_than_once_are_all_found(hashes: list[int]) -> None:
    found = come_again(np.array(hashes, np.uint64))
    assert all(again for again, each in zip(found, hashes, strict=True) if hashes.count(each) > 1)


@pytest.mark.usefixtures("way")
def test_few_hashes_are_taken_for_such_that_come_again() -> None:
    hashes = np.random.default_rng(3).integers(0, 2**64 - 1, 50_000, dtype=np.uint64)
    assert come_again(hashes).sum() < 50_000 / 5


@pytest.mark.usefixtures("way")
def test_a_crowd_of_hashes_in_one_place_is_taken_for_such_that_come_again() -> None:
    """Chosen by an attacker: else each would go on where the one before it stands."""
    assert come_again(np.arange(200_000, dtype=np.uint64)).mean() > 0.99


@pytest.mark.usefixtures("way")
@given(parts=st.lists(HASHES, min_size=1, max_size=3))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sieve_lets_pass_all_that_was_put_in(parts: list[list[int]]) -> None:
    made, *later = (np.array(part, np.uint64) for part in parts)
    sieve = Sieve(made)
    for part in later:
        sieve.put(part)
    assert all(sieve.may_hold(part).all() for part in (made, *later))


@pytest.mark.usefixtures("way")
def test_a_sieve_holds_back_nearly_all_that_is_new_however_long_it_is_used() -> None:
    """Batch after batch is remembered and forgotten, over many times what is remembered at once."""
    seen = Seen("id", 100)
    passed = []
    for at in range(0, 400_000, 4_000):
        rows = pl.DataFrame({"id": [f"k{n}" for n in range(at, at + 4_000)], "_time": range(at, at + 4_000)})
        keys = seen.keys(rows)
        passed.append(int(seen._sieve.may_hold(keys.hashes).sum()))
        assert not seen.repeats(keys).any()
        seen.remember(keys, forget_before_ms=at - 20_000)
    assert max(passed) < 4_000 / 4
    assert seen._sieve._words.nbytes < 2**22
