"""Mending: a value is changed instead of refused, the row says so, and batches change nothing."""

from __future__ import annotations

import json
import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InvalidConfiguration
from streams.clean import Cleaning, between, cap, impute, matches, normalise_units, require, rule
from streams.ingest import Ingest, Prepared
from streams.pipeline import Pipeline, Source
from streams.streak import FailsOnAll
from streams.tag import Tag
from streams.transport.frame import Frame
from streams.window import Tumbling
from tests.stream_fixtures import Reading, frame_of

NOW_MS = 1_000_000_000


def record(**changes: object) -> bytes:
    base = {"id": "a", "at": 5_000, "level": 1.0, "count": 1, "good": True, "note": None}
    return json.dumps({**base, **changes}).encode()


def prepared(
    clean: list[Cleaning], records: list[bytes], *, tag: tuple[Tag, ...] = (), **source: object
) -> Prepared:
    pipeline = Pipeline(
        name="readings",
        source=Source("readings", schema=Reading, event_time="at", key="id", **source),  # type: ignore[arg-type]
        clean=clean,
        tag=tag,
        window=Tumbling("1s"),
    )
    return Ingest(pipeline).prepare([frame_of(records)], now_ms=NOW_MS)


def test_a_missing_value_is_imputed_and_the_row_says_so() -> None:
    clean = [impute("extra", 2.5), impute("note", "none"), require("extra", "note")]
    done = prepared(clean, [record(id="a"), record(id="b", extra=1.0, note="x"), record(id="c", note="y")])
    assert list(done.rows.select("id", "extra", "note", "_tags").iter_rows()) == [
        ("a", 2.5, "none", ["imputed(extra)", "imputed(note)"]),
        ("b", 1.0, "x", []),
        ("c", 2.5, "y", ["imputed(extra)"]),
    ]
    assert done.dead_letters == []
    [account] = done.accounts.values()
    assert account.tags == {"imputed(extra)": 2, "imputed(note)": 1}


def test_a_value_may_be_imputed_from_the_rows_own_columns_and_carry_a_tag_of_ones_own() -> None:
    done = prepared([impute("extra", pl.col("level") * 2, tag="guessed")], [record(level=4.0)])
    assert list(done.rows.select("extra", "_tags").iter_rows()) == [(8.0, ["guessed"])]


def test_a_number_beyond_an_end_is_capped_and_steps_and_tags_see_the_mended_value() -> None:
    clean = [cap("level", -5, 5), between("level", -5, 5, unit="m"), cap("count", high=3)]
    tag = Tag("high", pl.col("level") >= 5)
    records = [
        record(id=str(i), level=level, count=i) for i, level in enumerate([-50.0, 4.0, 5.0, 50.0, 0.0])
    ]
    done = prepared(clean, records, tag=(tag,))
    assert list(done.rows.select("level", "count", "_tags").iter_rows()) == [
        (-5.0, 0, ["capped(level)"]),
        (4.0, 1, []),
        (5.0, 2, ["high"]),
        (5.0, 3, ["capped(level)", "high"]),
        (0.0, 3, ["capped(count)"]),
    ]


def test_units_are_brought_to_one_and_a_row_of_an_unknown_unit_is_refused() -> None:
    clean = [normalise_units("level", unit_in="note", to="C", factors={"F": (5 / 9, -160 / 9), "dC": 0.1})]
    records = [
        record(id=str(i), level=level, note=unit)
        for i, (level, unit) in enumerate([(50.0, "F"), (10.0, "C"), (50.0, "dC"), (5.0, "K"), (5.0, None)])
    ]
    done = prepared(clean, records)
    assert done.rows.get_column("level").to_list() == pytest.approx([10.0, 10.0, 5.0])
    assert done.rows.get_column("note").to_list() == ["C"] * 3
    assert done.rows.get_column("_tags").to_list() == [[]] * 3
    assert [(x.offset, x.reason, x.rule, x.detail) for x in done.dead_letters] == [
        (offset, "out_of_range", "normalise_units(level)", "note must be one of C, F, dC")
        for offset in (3, 4)
    ]


def test_text_matches_a_pattern_from_end_to_end() -> None:
    records = [
        record(id=str(i), note=note) for i, note in enumerate(["N14228", "N1422x8", "xN14228", None, ""])
    ]
    done = prepared([matches("note", r"N\d+")], records)
    assert done.rows.get_column("id").to_list() == ["0", "3"]
    assert {x.detail for x in done.dead_letters} == {r"note must match N\d+"}


def test_a_rule_with_a_unit_says_it_in_the_dead_letter() -> None:
    done = prepared([between("level", 0, 9, unit="metres")], [record(level=-3.0)])
    assert done.dead_letters[0].detail == "level must lie in [0, 9] metres"


def test_a_value_that_cannot_be_computed_on_a_row_refuses_that_row_alone() -> None:
    clean = [impute("extra", pl.col("note").cast(pl.Float64))]
    done = prepared(clean, [record(id="a", note="7"), record(id="b", note="x"), record(id="c", extra=1.0)])
    assert list(done.rows.select("id", "extra").iter_rows()) == [("a", 7.0), ("c", 1.0)]
    assert [(x.offset, x.reason, x.rule) for x in done.dead_letters] == [(1, "rule", "impute(extra)")]


# Failing on all rows.

NOT_A_NUMBER = pl.col("note").cast(pl.Int64)


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ({"clean": [rule("numbered", NOT_A_NUMBER > 0)]}, "rule numbered"),
        ({"clean": [impute("extra", NOT_A_NUMBER)]}, "impute(extra)"),
        ({"clean": [], "tag": (Tag("numbered", NOT_A_NUMBER > 0),)}, "tag(numbered)"),
        ({"clean": [], "derive": {"number": NOT_A_NUMBER}}, "derive(number)"),
    ],
    ids=["rule", "mend", "tag", "derive"],
)
def ingest_of(*, clean: tuple[Cleaning, ...] = (), tag: tuple[Tag, ...] = (), **source: object) -> Ingest:
    declared = Source("readings", schema=Reading, event_time="at", key="id", **source)  # type: ignore[arg-type]
    pipeline = Pipeline(name="readings", source=declared, clean=clean, tag=tag, window=Tumbling("1s"))
    return Ingest(pipeline)


def bad_frame(first: int, rows: int, *, partition: int = 0, good: int = 0) -> Frame:
    notes = ["none"] * (rows - good) + ["7"] * good
    told = [record(id=str(first + i), note=note) for i, note in enumerate(notes)]
    return frame_of(told, partition=partition, first=first)


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ({"clean": (rule("numbered", NOT_A_NUMBER > 0),)}, "rule numbered"),
        ({"clean": (impute("extra", NOT_A_NUMBER),)}, "impute(extra)"),
        ({"tag": (Tag("numbered", NOT_A_NUMBER > 0),)}, "tag(numbered)"),
        ({"derive": {"number": NOT_A_NUMBER}}, "derive(number)"),
    ],
    ids=["rule", "mend", "tag", "derive"],
)
def test_what_fails_on_every_row_of_many_fetches_stops_with_its_line_and_column(
    declared: dict, what: str
) -> None:
    frames = [bad_frame(0, 400, partition=number) for number in range(3)]
    with pytest.raises(FailsOnAll, match=r"test_mend\.py:\d+: ") as stopped:
        ingest_of(**declared).prepare(frames, now_ms=NOW_MS)
    assert what in str(stopped.value)
    assert "reads 'note'" in str(stopped.value)
    assert "all 1,200 rows" in str(stopped.value)
    # One good row among them: then they may be bad themselves, and are refused.
    ingest = ingest_of(**declared)
    mixed = ingest.prepare([*frames[:2], bad_frame(0, 400, partition=2, good=1)], now_ms=NOW_MS)
    assert (mixed.rows.height, len(mixed.dead_letters)) == (1, 1_199)


RAISES = (rule("numbered", NOT_A_NUMBER > 0),)


def test_a_lone_producers_bad_rows_are_refused_and_the_worker_goes_on() -> None:
    """A hundred rows, keyed, so on every partition; or thousands in one fetch; then again and again."""
    ingest = ingest_of(clean=RAISES)
    spread = [bad_frame(0, 25, partition=number) for number in range(4)]
    assert len(ingest.prepare(spread, now_ms=NOW_MS).dead_letters) == 100
    assert len(ingest.prepare([bad_frame(25, 800)], now_ms=NOW_MS).dead_letters) == 800
    for number in range(20):  # others' rows come in between: the rule works
        first = 1_000 * (number + 1)
        assert ingest.prepare([bad_frame(first, 10, good=10)], now_ms=NOW_MS).rows.height == 10
        assert len(ingest.prepare([bad_frame(first + 10, 500)], now_ms=NOW_MS).dead_letters) == 500


def test_a_streak_runs_on_over_batches_and_a_batch_that_is_read_again_counts_once() -> None:
    ingest = ingest_of(clean=RAISES)
    for _ in range(5):
        assert len(ingest.prepare([bad_frame(0, 450)], now_ms=NOW_MS).dead_letters) == 450
    assert len(ingest.prepare([bad_frame(450, 450)], now_ms=NOW_MS).dead_letters) == 450
    with pytest.raises(FailsOnAll, match=r"all 1,350 rows that came last.*900 before them are dead letters"):
        ingest.prepare([bad_frame(900, 450)], now_ms=NOW_MS)


def test_of_an_expression_that_has_worked_more_failures_are_borne() -> None:
    ingest = ingest_of(clean=RAISES)
    assert ingest.prepare([bad_frame(0, 1, good=1)], now_ms=NOW_MS).rows.height == 1
    for number in range(9):
        frame = bad_frame(1 + number * 1_100, 1_100)
        assert len(ingest.prepare([frame], now_ms=NOW_MS).dead_letters) == 1_100
    with pytest.raises(FailsOnAll):
        ingest.prepare([bad_frame(1 + 9 * 1_100, 1_100)], now_ms=NOW_MS)


# Whatever the batches.


@settings(deadline=None, max_examples=40)
@given(
    told=st.lists(
        st.tuples(st.floats(-50, 50), st.sampled_from(["C", "F", "K", None]), st.none() | st.floats(-9, 9)),
        max_size=25,
    ),
    seed=st.integers(0, 99),
)
def test_rows_and_tags_are_the_same_however_the_records_are_batched(told: list[tuple], seed: int) -> None:
    clean = [
        normalise_units("level", unit_in="note", to="C", factors={"F": (0.5, -10.0)}),
        cap("level", -20, 20),
        impute("extra", pl.col("level") / 2),
        rule("warm", pl.col("extra") > -8),
    ]
    records = [
        record(id=str(i), level=level, note=unit, extra=extra) for i, (level, unit, extra) in enumerate(told)
    ]
    columns = ["id", "level", "note", "extra", "_tags"]
    whole = prepared(clean, records)
    rng, rest, parts, letters = random.Random(seed), records, [], []
    while rest:
        chunk, rest = rest[: (n := rng.randint(1, 5))], rest[n:]
        done = prepared(clean, chunk)
        parts += list(done.rows.select(columns).iter_rows())
        letters += [(x.reason, x.rule, x.record_value) for x in done.dead_letters]
    assert parts == list(whole.rows.select(columns).iter_rows())
    assert sorted(letters) == sorted((x.reason, x.rule, x.record_value) for x in whole.dead_letters)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: cap("x"), "caps nothing"),
        (lambda: cap("x", 2, 1), "low end is above"),
        (lambda: matches("x", "("), "is no pattern"),
        (lambda: normalise_units("x", unit_in="u", to="C", factors={}), "name the other units"),
        (lambda: normalise_units("x", unit_in="u", to="C", factors={"C": 2, "F": 1}), "its factor 1"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_with_its_line(wrong, says: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"test_mend\.py:\d+: ") as caught:
        wrong()
    assert says in str(caught.value)
