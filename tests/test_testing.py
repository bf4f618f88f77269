"""The public testing module says what a worker would have said, and an engineer's test can rely on it."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from infra.demo.flights import FIRST_DAY_MS, events
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.topics import Topic, Version
from streams import testing
from streams.clean import between, dedupe, rule
from streams.load import load_pipeline
from streams.pipeline import Labels, Pipeline, Source
from streams.streak import FailsOnAll
from streams.tag import Tag
from streams.testing import Record, run
from streams.training import Training, last
from streams.trigger import every
from streams.window import Session, Tumbling
from tests.stream_fixtures import ARROW_HEADERS, Reading, arrow_of

MAIN, TRUTH = "testing.readings", "testing.truths"
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000

PIPELINE = Pipeline(
    name="tested",
    source=Source(MAIN, schema=Reading, event_time="at", key="id"),
    labels=Labels(
        Source(
            TRUTH,
            schema=Reading,
            event_time="at",
            key="id",
            derive={"truth": (pl.col("level") > 0).cast(pl.Float64)},
        ),
        column="truth",
    ),
    clean=[between("count", 0, 10), dedupe(within="1h")],
    tag=[Tag("warm", pl.col("level") > 20)],
    columns=["level"],
    window=Tumbling("1h"),
    train_when=every(windows=2),
    train=Training("trainers.models.flights:train", data=last(windows=1)),
)


@pytest.fixture(autouse=True)
def _declared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (MAIN, TRUTH):
        own = Topic(
            name=name,
            purpose="",
            producer="",
            consumers=(),
            key="id",
            versions=(Version(number=1, contracts=(Reading,)),),
        )
        monkeypatch.setitem(topics._OWN, name, own)


def reading(number: int, *, at: int | None = None, **said: object) -> dict[str, object]:
    at = NOW_MS + number * 60_000 if at is None else at
    return {"id": f"r{number}", "at": at, "level": 1.0, "count": 1, "good": True, "note": None, **said}


def test_the_exported_names_are_these() -> None:
    assert testing.__all__ == ["Events", "Ran", "Record", "run"]


def test_rows_dead_letters_repeats_and_tags_come_out_and_add_up() -> None:
    told = [
        reading(0),
        reading(1, level=30.0),
        reading(2, count=11),
        reading(0),
        b"{",
        reading(3, level=99.0),
    ]
    ran = run(PIPELINE, {MAIN: told}, now_ms=NOW_MS + HOUR_MS)
    assert ran.rows().get_column("id").to_list() == ["r0", "r1"]
    assert ran.tagged("warm").get_column("id").to_list() == ["r1"]
    assert [letter.reason for letter in ran.dead_letters] == ["malformed", "out_of_range", "out_of_range"]
    assert ran.refused("between(count)") == 1
    counts = ran.counts[MAIN]
    assert (counts.events, counts.rows, counts.dropped) == (6, 2, {"dedupe": 1})


def test_bytes_structs_frames_and_whole_records_are_taken() -> None:
    fields = reading(0)
    row = pl.DataFrame([reading(1)], schema_overrides={"note": pl.String}, strict=False)
    arrow = row.with_columns(id=pl.lit("r2"), extra=pl.lit(None, dtype=pl.Float64))
    forms = [
        [fields],
        [Reading(**fields)],  # type: ignore[arg-type]
        [json.dumps(fields).encode()],
        pl.DataFrame([fields], schema_overrides={"note": pl.String}),
        [Record(arrow_of(arrow), headers=ARROW_HEADERS)],
    ]
    for form in forms:
        assert run(PIPELINE, {MAIN: form}, now_ms=NOW_MS + HOUR_MS).rows().height == 1  # type: ignore[dict-item]


def test_every_window_closes_and_the_trigger_answers_for_each() -> None:
    told = [reading(n) for n in range(0, 240, 10)]
    truths = [reading(n, level=float(n % 20)) for n in range(0, 240, 10)]
    ran = run(PIPELINE, {MAIN: told, TRUTH: truths}, now_ms=NOW_MS + 10 * HOUR_MS)
    assert sum(window.summary.rows for window in ran.windows) == len(told)
    assert len(ran.decisions) == len(ran.windows) == 5
    assert [decision.verdict for decision in ran.decisions] == ["no", "yes", "no", "yes", "no"]
    assert [job.experiment.code for job in ran.jobs] == ["trainers.models.flights:train"] * 2
    assert ran.examples().get_column("truth").null_count() == 0
    assert ran.features.height == len(told)


def test_windows_stay_open_where_the_stream_has_not_passed_them() -> None:
    ran = run(PIPELINE, {MAIN: [reading(0), reading(90)]}, now_ms=NOW_MS + HOUR_MS, close=False)
    assert len(ran.windows) == 1
    assert run(PIPELINE, {MAIN: [reading(0)]}, now_ms=NOW_MS, close=False).windows == []


def test_a_row_behind_a_closed_window_is_kept_tagged_late_and_amends_it() -> None:
    told = [*(reading(n) for n in range(0, 200, 10)), reading(5)]
    ran = run(PIPELINE, {MAIN: told}, now_ms=NOW_MS + 10 * HOUR_MS, batch_rows=5)
    assert ran.tagged("late").get_column("id").to_list() == ["r5"]
    assert [amended.late_rows for amended in ran.amended] == [1]


def test_a_time_too_far_ahead_of_the_clock_is_refused_and_closes_nothing() -> None:
    told = [reading(0), reading(1, at=NOW_MS + 400 * 24 * HOUR_MS)]
    ran = run(PIPELINE, {MAIN: told}, now_ms=NOW_MS, close=False)
    assert [letter.reason for letter in ran.dead_letters] == ["future_event_time"]
    assert ran.windows == []


def test_sessions_close_too() -> None:
    by_gap = replace(PIPELINE, window=Session("10m"))
    told = [reading(n) for n in (0, 5, 60, 65, 300)]
    ran = run(by_gap, {MAIN: told}, now_ms=NOW_MS + 10 * HOUR_MS)
    assert [window.summary.rows for window in ran.windows] == [2, 2, 1]


def test_nothing_in_is_nothing_out() -> None:
    ran = run(PIPELINE, {MAIN: []})
    assert (ran.rows().height, ran.windows, ran.dead_letters, ran.features.height) == (0, [], [], 0)


def test_a_wrong_topic_and_a_pipeline_with_mistakes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no source 'testing.reading'; did you mean 'testing.readings'"):
        run(PIPELINE, {"testing.reading": []})
    with pytest.raises(InvalidConfiguration, match="levle"):
        run(replace(PIPELINE, columns=["levle"]), {MAIN: []})


def test_a_rule_that_fails_on_every_row_fails_the_test_that_runs_it() -> None:
    broken = rule("broken", pl.col("note").str.to_integer() > 0)
    told = [reading(n, note="x") for n in range(120)]
    with pytest.raises(FailsOnAll, match="broken"):
        run(replace(PIPELINE, clean=[broken]), {MAIN: told}, now_ms=NOW_MS + 10 * HOUR_MS)


def test_the_dataset_goes_with_its_result_unless_it_was_given_a_place(tmp_path: Path) -> None:
    ran = run(PIPELINE, {MAIN: [reading(0)]}, now_ms=NOW_MS)
    folder = ran.dataset
    assert folder.is_dir()
    del ran
    gc.collect()
    assert not folder.exists()
    kept = run(PIPELINE, {MAIN: [reading(0)]}, now_ms=NOW_MS, home=tmp_path).dataset
    assert kept == tmp_path / "tested"
    assert kept.is_dir()


def test_batches_do_not_show_in_what_the_demos_pipeline_makes_of_real_flights() -> None:
    pipeline = load_pipeline("streams.pipelines.flights").pipeline
    known = events(days=2)
    told = {
        topic: [value.encode() for value in known.filter(pl.col("topic") == topic).get_column("value")]
        for topic in pipeline.sources()
    }
    runs = [run(pipeline, told, batch_rows=rows) for rows in (400, 3_000)]
    assert runs[0].rows().height > 1_000
    assert runs[0].rows().equals(runs[1].rows())
    one, other = ([w.summary for w in ran.windows] for ran in runs)
    assert one == other
    assert runs[0].windows[0].window.start_ms == FIRST_DAY_MS
