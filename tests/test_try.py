"""Edited rules over past events: every difference from the live ones is counted, and shown by example."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from aiokafka import AIOKafkaProducer
from msgspec.structs import replace as struct_replace

from infra.command.lab import at_ms
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.report_page import page
from infra.scaffold import write
from schemas import examples
from schemas.contract import Announcement
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration
from schemas.job import JobRequested, JobSucceeded
from schemas.prediction import Predictions
from schemas.producer.source import FileUnreadable
from streams.clean import between, cap, dedupe, one_of
from streams.lab.against import load_against
from streams.lab.compare import Report, SourceDifference
from streams.lab.recorded import Feed, Recorded, from_cluster, from_files
from streams.lab.trial import attempt
from streams.load import load_pipeline
from streams.pipeline import Labels, Pipeline, Source
from streams.tag import Tag
from streams.training import Training, last
from streams.transport.frame import Frame
from streams.trigger import bias, cost, every, quality, rows
from streams.window import Tumbling
from tests.conftest import CreateTopic
from tests.stream_fixtures import Reading, heartbeat_headers
from tests.test_announce import Truth

START_MS = 1_600_000_000_000
MINUTE_MS = 60_000
TIDEMILL = Path(sys.executable).with_name("tidemill")


def reading(number: int, **said: object) -> dict[str, object]:
    """Levels 0 to 39, counts 0 to 4."""
    known = {"id": f"r{number}", "at": START_MS + number * MINUTE_MS, "level": float(number % 40)}
    return {**known, "count": number % 5, "good": True, "note": "ab"[number % 2], **said}


def pipeline(topic: str = "readings", **changed: object) -> Pipeline:
    made = Pipeline(
        name="tried",
        source=Source(topic, schema=Reading, event_time="at", key="id"),
        clean=[between("count", 0, 3), dedupe(within="1h")],
        tag=[Tag("warm", pl.col("level") >= 20)],
        columns=["level"],
        window=Tumbling("1h"),
        train_when=every(windows=2) & rows(20),
        train=Training("trainers.models.flights:train", data=last(windows=1)),
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def as_file(file: Path, told: Iterable[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in told))
    return file


async def tried(live: Pipeline, edited: Pipeline, file: Path, home: Path) -> SourceDifference:
    report = await report_of(live, edited, from_files(edited, {"readings": file}), home)
    (source,) = report.sources
    return source


async def report_of(live: Pipeline, edited: Pipeline, recorded: Recorded, home: Path) -> Report:
    return await attempt(live, edited, recorded, home, names=("live", "edited"), read="a file", batch_rows=97)


# The differences.


async def test_the_same_rules_differ_in_nothing(tmp_path: Path) -> None:
    told = [*(reading(n) for n in range(300)), reading(7)]
    file = as_file(tmp_path / "r.ndjson", told)
    report = await report_of(pipeline(), pipeline(), from_files(pipeline(), {"readings": file}), tmp_path)
    (source,) = report.sources
    assert not report.differs
    assert (source.events, source.live, source.edited, source.both) == (301, 240, 240, 240)
    assert source.rules == {"between(count)": (60, 60), "dedupe": (1, 1)}
    assert report.decisions.windows[0] == report.decisions.windows[1] > 0
    assert report.decisions.yes[0] == report.decisions.yes[1] > 0


async def test_rows_lost_and_gained_are_counted_by_rule_with_examples(tmp_path: Path) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n) for n in range(400)))
    edited = pipeline(clean=[between("level", 0, 29), dedupe(within="1h")])
    source = await tried(pipeline(), edited, file, tmp_path / "h")
    # count 4 was refused: of 400 every fifth; now level 30 and more: of 40 every fourth.
    assert source.rules == {"between(count)": (80, 0), "between(level)": (0, 100)}
    assert source.lost == sum(n % 40 >= 30 and n % 5 != 4 for n in range(400)) == 80
    assert source.gained == sum(n % 40 < 30 and n % 5 == 4 for n in range(400)) == 60
    assert source.both == source.live - source.lost == source.edited - source.gained
    by = {example.difference: example for example in source.examples}
    assert by["lost by between(level)"].rows == 80
    assert by["gained by between(count)"].rows == 60
    assert by["lost by between(level)"].some[0]["id"] == "r30"
    assert "level must lie in" in by["lost by between(level)"].some[0]["detail"]
    assert len(by["lost by between(level)"].some) == 3


async def test_a_longer_dedupe_loses_rows_as_repeats(tmp_path: Path) -> None:
    told = [
        *(reading(n) for n in range(200)),
        *(reading(n, at=START_MS + (n + 150) * MINUTE_MS) for n in (50, 60)),
    ]
    file = as_file(tmp_path / "r.ndjson", told)
    edited = pipeline(clean=[between("count", 0, 3), dedupe(within="1d")])
    source = await tried(pipeline(), edited, file, tmp_path / "h")
    assert source.rules["dedupe"] == (0, 2)
    assert [(e.difference, e.rows) for e in source.examples] == [("lost as a repeat", 2)]


async def test_tags_gained_and_lost_are_counted_among_rows_that_both_keep(tmp_path: Path) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n) for n in range(200)))
    edited = pipeline(tag=[Tag("warm", pl.col("level") >= 30), Tag("odd", pl.col("note") == "b")])
    source = await tried(pipeline(), edited, file, tmp_path / "h")
    tags = {t.tag: (t.live, t.edited, t.gained, t.lost) for t in source.tags}
    kept = [n for n in range(200) if n % 5 != 4]
    warm, warmer = sum(n % 40 >= 20 for n in kept), sum(n % 40 >= 30 for n in kept)
    assert tags == {
        "warm": (warm, warmer, 0, warm - warmer),
        "odd": (0, sum(n % 2 for n in kept), sum(n % 2 for n in kept), 0),
    }
    assert (source.lost, source.gained) == (0, 0)


async def test_a_column_whose_distribution_moves_is_named_and_one_that_only_shrinks_is_not(
    tmp_path: Path,
) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n) for n in range(2_000)))
    edited = pipeline(clean=[between("count", 0, 3), between("level", 0, 29)])
    source = await tried(pipeline(), edited, file, tmp_path / "h")
    moved = {column.column: column for column in source.columns if column.moved}
    assert set(moved) == {"level"}
    assert moved["level"].distance == pytest.approx(0.25, abs=0.01)
    assert moved["level"].live[-1] == (38.0, 1.0)  # 39 has a count of 4
    assert moved["level"].edited[-1] == (28.0, 1.0)
    constant = next(column for column in source.columns if column.column == "good")
    assert (constant.distance, constant.moved) == (None, False)
    assert "constant" in constant.reason


async def test_a_mended_value_is_a_change_with_both_values_in_its_example(tmp_path: Path) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n) for n in range(400)))
    edited = pipeline(clean=[cap("level", high=35), between("count", 0, 3)])
    source = await tried(pipeline(), edited, file, tmp_path / "h")
    level = next(column for column in source.columns if column.column == "level")
    assert level.changed == sum(n % 40 > 35 and n % 5 != 4 for n in range(400))
    example = next(e for e in source.examples if e.difference == "level has another value")
    assert (example.some[0]["level"], example.some[0]["level_edited"]) == (36.0, 35.0)


async def test_windows_that_are_decided_otherwise_are_named(tmp_path: Path) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n) for n in range(600)))
    edited = pipeline(train_when=every(windows=2) & rows(10_000))
    report = await report_of(pipeline(), edited, from_files(edited, {"readings": file}), tmp_path)
    live, now = report.decisions.yes
    assert live > 0
    assert now == 0
    assert [(d.live, d.edited) for d in report.decisions.differing] == [("yes", "no")] * live
    assert report.differs


async def test_every_step_has_its_cost(tmp_path: Path) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n) for n in range(500)))
    edited = pipeline(clean=[one_of("note", ["a", "b"]), cap("level", high=30), dedupe(within="1h")])
    report = await report_of(pipeline(), edited, from_files(edited, {"readings": file}), tmp_path)
    assert [c.step for c in report.costs["live"]] == ["decode", "between(count)", "dedupe", "tag(warm)"]
    steps = ["decode", "one_of(note)", "cap(level)", "dedupe", "tag(warm)"]
    assert [c.step for c in report.costs["edited"]] == steps
    assert all(0 < c.us_per_event < 1e4 and c.events == 500 for side in report.costs.values() for c in side)


# Where the records come from.


def archive(file: Path, told: list[tuple[int, int, int, dict[str, object]]]) -> Path:
    table = pl.DataFrame(
        [(p, o, ms, b"k", json.dumps(row).encode()) for p, o, ms, row in told],
        schema={
            "partition": pl.Int32,
            "offset": pl.Int64,
            "timestamp": pl.Datetime("ms"),
            "key": pl.Binary,
            "value": pl.Binary,
        },
        orient="row",
    )
    table.write_parquet(file)
    return file


async def frames_of(recorded: Recorded, rows_: int = 50) -> list[Frame]:
    found = [b async for b in recorded.batches(rows=rows_, idle_after_ms=10_000)]
    assert all(batch.rows <= rows_ for batch in found)
    return [frame for batch in found for frame in batch.frames]


async def test_an_archive_of_records_keeps_partitions_offsets_and_times_of_appending(tmp_path: Path) -> None:
    told = [(n % 2, 100 + n // 2, START_MS + n * 1000, reading(n)) for n in range(200)]
    recorded = from_files(pipeline(), {"readings": archive(tmp_path / "r.parquet", told)})
    assert recorded.records == 200
    frames = await frames_of(recorded)
    for number in (0, 1):
        mine = [frame for frame in frames if frame.partition == number]
        assert [offset for frame in mine for offset in frame.offsets] == list(range(100, 200))
        assert all(a.next == b.first for a, b in itertools.pairwise(mine))
        times = [frame.timestamp_of(i) for frame in mine for i in range(len(frame))]
        assert times == [START_MS + n * 1000 for n in range(number, 200, 2)]
    # Both partitions keep step: neither is ever read further ahead than a batch.
    ahead = [frame.timestamp_ms for frame in frames]
    assert all(later > earlier - 60_000 for earlier, later in itertools.pairwise(ahead))


async def test_a_far_future_time_in_an_archive_is_refused_as_it_was_live(tmp_path: Path) -> None:
    told = [(0, n, START_MS + n * MINUTE_MS, reading(n)) for n in range(100)]
    told[50] = (0, 50, START_MS + 50 * MINUTE_MS, reading(50, at=START_MS + 10**10))
    file = archive(tmp_path / "r.parquet", told)
    source = await tried(pipeline(), pipeline(), file, tmp_path / "h")
    assert source.rules["not_in_the_future(at)"] == (1, 1)
    assert {t.tag for t in source.tags} == {"warm"}  # and nothing behind it is late


async def test_events_alone_are_read_by_event_time_within_the_span(tmp_path: Path) -> None:
    told = [reading(n) for n in range(100)]
    table = pl.DataFrame(told)
    table.write_parquet(tmp_path / "r.parquet")
    for file in (as_file(tmp_path / "r.ndjson", told), tmp_path / "r.parquet"):
        span = {"from_ms": START_MS + 20 * MINUTE_MS, "to_ms": START_MS + 60 * MINUTE_MS}
        frames = await frames_of(from_files(pipeline(), {"readings": file}, **span))
        ids = [json.loads(value or b"")["id"] for frame in frames for value in frame.values]
        assert ids == [f"r{n}" for n in range(20, 60)]
    assert await frames_of(from_files(pipeline(), {"readings": as_file(tmp_path / "none.ndjson", [])})) == []


async def test_a_partition_that_is_silent_for_long_or_over_holds_nothing_open() -> None:
    def feed(number: int, times: list[int]) -> Feed:
        made = Feed(("t", number), 0, end=len(times))
        for offset, ms in enumerate(times):
            made.add(offset, b"x", None, (), ms, ms)
        return made

    async def fill(_: object) -> None:
        raise AssertionError("all is there")

    recorded = Recorded(
        [feed(0, list(range(0, 100_000, 1_000))), feed(1, [0, 90_000]), feed(2, [])], fill, None
    )
    batches = [b async for b in recorded.batches(rows=20, idle_after_ms=10_000)]
    assert batches[0].idle == {("t", 1): 1, ("t", 2): 0}
    idle = [
        (number, partition, at) for number, b in enumerate(batches) for (_, partition), at in b.idle.items()
    ]
    assert (1, 2) in [(partition, at) for _, partition, at in idle]  # over after its second
    assert [partition for _, partition, _ in idle].count(0) == 0  # who spoke last carries the watermark
    assert sum(b.rows for b in batches) == 102


async def test_a_file_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="no source other"):
        from_files(pipeline(), {"other": tmp_path / "x.ndjson"})
    with pytest.raises(FileUnreadable, match="there is no file"):
        from_files(pipeline(), {"readings": tmp_path / "x.ndjson"})
    backwards = archive(tmp_path / "r.parquet", [(0, n, START_MS, reading(n)) for n in (2, 1)])
    with pytest.raises(FileUnreadable, match="do not rise"):
        await frames_of(from_files(pipeline(), {"readings": backwards}))


async def test_a_clusters_records_come_by_partition_in_order_within_the_span(
    kafka: EmbeddedBroker, create_topic: CreateTopic
) -> None:
    name = await create_topic("tried", partitions=3, settings={"message.timestamp.type": "CreateTime"})
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for n in range(300):
            value = json.dumps(reading(n)).encode()
            await producer.send(name, value, partition=n % 2, timestamp_ms=START_MS + n * 1000)
        headers = [(key, value or b"") for key, value in heartbeat_headers(START_MS)]
        await producer.send(
            name, None, key=b"h", partition=1, timestamp_ms=START_MS + 300_000, headers=headers
        )
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    span: dict[str, Any] = {"from_ms": START_MS + 100_000, "to_ms": START_MS + 200_000}
    async with from_cluster(connection, [name], **span) as recorded:
        assert recorded.records == 100
        frames = await frames_of(recorded, 40)
    assert sorted(o for f in frames if f.partition == 0 for o in f.offsets) == list(range(50, 100))
    async with from_cluster(connection, [name]) as recorded:
        frames = await frames_of(recorded, 1_000)
        assert recorded.partitions == {(name, 0), (name, 1), (name, 2)}
    assert sum(map(len, frames)) == 301
    assert [h for f in frames for h in f.headers.values()] == [tuple(headers)]
    # Announcements are read with them, each topic from a time of its own, and hold no window open.
    said = await create_topic("said", settings={"message.timestamp.type": "CreateTime"})
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for n in range(20):
            await producer.send(said, b"{}", partition=0, timestamp_ms=START_MS + n * 10_000)
    for since_ms, count in ((None, 20), (span["from_ms"], 10)):
        async with from_cluster(
            connection, [name], **span, beside={said: since_ms, "nowhere": None}
        ) as recorded:
            batches = [b async for b in recorded.batches(rows=40, idle_after_ms=10_000)]
        heard = [frame for b in batches for frame in b.frames if frame.topic == said]
        assert sum(map(len, heard)) == count
        assert sum(b.rows for b in batches) == 100 + count
        assert {p[0] for b in batches for p in b.idle} == {name}
    with pytest.raises(InvalidConfiguration, match="not on the cluster"):
        async with from_cluster(connection, ["nowhere"]):
            pass


# The live model.

HOURS, GOOD_HOURS = 10, 6


def told_by(announcement: Announcement) -> tuple[bytes, bytes, list[dict[str, object]]]:
    key, value, headers = wrap(announcement, source="/test", time_ms=1).record()
    return key or b"", value, [{"key": name, "value": said} for name, said in headers]


def records(file: Path, said: Iterable[tuple[int, Announcement]]) -> Path:
    """An archive of announcements, each with the minute in which it was appended."""
    rows = [
        (0, n, START_MS + at * MINUTE_MS, *told_by(announcement)) for n, (at, announcement) in enumerate(said)
    ]
    names = ["partition", "offset", "timestamp_ms", "key", "value", "headers"]
    header = pl.List(pl.Struct({"key": pl.String, "value": pl.Binary}))
    schema = [pl.Int32, pl.Int64, pl.Int64, pl.Binary, pl.Binary, header]
    pl.DataFrame(rows, schema=dict(zip(names, schema, strict=True)), orient="row").write_parquet(file)
    return file


def answered(hours: int) -> Iterable[tuple[int, Announcement]]:
    """Ten readings an answer; sure of the truth for some hours, then of its contrary."""
    for first in range(0, hours * 60, 10):
        own = range(first, first + 10)
        yield (
            first + 10,
            Predictions(
                service="gate", name="tried", version=3, sha256="0" * 64, features_id=f"f/{first}",
                keys=[f"r{n}" for n in own], times_ms=[START_MS + n * MINUTE_MS for n in own],
                scores=[0.8 if (n // 2 % 2 == 1) == (n < GOOD_HOURS * 60) else 0.2 for n in own],
                newest_event_ms=0, answered_ms=1,
            ),
        )  # fmt: skip


def trained() -> Iterable[tuple[int, Announcement]]:
    job = next(each for each in examples.announced() if isinstance(each, JobRequested))
    done = next(each for each in examples.announced() if isinstance(each, JobSucceeded))
    asked = struct_replace(job.experiment, pipeline="tried", purpose="challenger")
    yield 0, struct_replace(job, job_id="j", experiment=asked)
    yield 1, struct_replace(done, job_id="j", train_s=2.0)


async def test_triggers_on_the_live_model_see_what_services_answered_and_say_why_when_they_cannot(
    tmp_path: Path,
) -> None:
    looks = (
        quality(baseline=2, minimum_rows=20)
        | bias("note", of="error", baseline=2, minimum_rows=5)
        | cost(per_loss=1, per_training_second=1e9, over="1d", baseline=2, minimum_rows=20)
    )
    truth = Labels(Source("truth", schema=Truth, event_time="came", key="id"), column="outcome", within="1h")
    live = pipeline(labels=truth, clean=[], train_when=looks)
    edited = replace(live, train_when=every(windows=100))
    minutes = range(HOURS * 60)
    came = [{"id": f"r{n}", "came": START_MS + (n + 5) * MINUTE_MS, "outcome": n // 2 % 2} for n in minutes]
    raw = {
        "readings": archive(
            tmp_path / "r.parquet", [(0, n, START_MS + n * MINUTE_MS, reading(n)) for n in minutes]
        ),
        "truth": archive(tmp_path / "t.parquet", [(0, n, each["came"], each) for n, each in enumerate(came)]),
    }
    said = {
        "tidemill.predictions": records(tmp_path / "p.parquet", answered(HOURS)),
        "tidemill.jobs": records(tmp_path / "j.parquet", trained()),
    }
    report = await report_of(live, edited, from_files(live, raw | said), tmp_path / "judged")
    decided = report.decisions
    assert report.events == 2 * len(minutes), "answers are no events"
    assert (decided.answers, decided.labelled) == ((HOURS * 60, 0), (HOURS * 60, 0))
    yes = sorted(d.window.start_ms for d in decided.differing if d.live == "yes")
    worse_ms = START_MS // 3_600_000 * 3_600_000 + GOOD_HOURS * 3_600_000
    assert worse_ms <= yes[0] <= worse_ms + 2 * 3_600_000, "it is found as soon as its labels are there"
    assert len(yes) == decided.yes[0] >= 2
    assert all("quality()" in d.reason for d in decided.differing if d.live == "yes"), decided.differing
    # No part says no before it has a baseline, and then each says something, the training's cost known.
    unsaid = {each.condition: each for each in decided.unsaid}
    assert unsaid.keys() == {"quality()", "bias('note', of=error)", "cost(over=1d)"}
    assert {(each.live, each.edited) for each in unsaid.values()} == {(unsaid["quality()"].live, 0)}
    assert 2 <= unsaid["quality()"].live <= 5
    drawn = page(msgspec.to_builtins(report, str_keys=True), title="tried")
    assert "Could not say" in drawn
    assert f"live {HOURS * 60:,} of {HOURS * 60:,}" in drawn
    # Nobody answered: each part says so for each window, and none is a silent no.
    report = await report_of(live, live, from_files(live, raw), tmp_path / "unheard")
    windows = report.decisions.windows[0]
    assert [(u.live, u.edited, u.reason) for u in report.decisions.unsaid] == [
        (windows, windows, "not evaluated: no answer of a live model is known yet")
    ] * 3
    assert report.decisions.yes == (0, 0)
    with pytest.raises(FileUnreadable, match="no archive of records"):
        from_files(live, {"tidemill.predictions": as_file(tmp_path / "p.ndjson", [{"a": 1}])})


# What it is held against.


def committed(folder: Path) -> Callable[[str], None]:
    def git(*arguments: str) -> None:
        known = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *known, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")

    def edit(to: str) -> None:
        file = folder / "pipeline.py"
        file.write_text(file.read_text().replace("1_000, unit", to))

    return edit


def test_the_command_holds_an_edited_file_against_the_committed_one(tmp_path: Path) -> None:
    write(tmp_path / "stand")
    edit = committed(tmp_path / "stand")
    edit("60, unit")
    subprocess.run(
        [sys.executable, "stand_events.py"], cwd=tmp_path / "stand", check=True, capture_output=True
    )
    files = [f"--file=stand.{which}=stand.{which}.ndjson" for which in ("visits", "outcomes")]
    done = subprocess.run(
        [TIDEMILL, "try", "pipeline.py", *files, "--to", "2024-01-02", "--json", "--html", "page.html"],
        cwd=tmp_path / "stand",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=Report)
    visits = report.sources[0]
    assert report.events == 720 + 710
    assert visits.rules["between(basket)"][0] == 0
    assert visits.lost == visits.rules["between(basket)"][1] > 0
    assert "between(basket)" in (tmp_path / "stand" / "page.html").read_text()
    assert not (tmp_path / "stand" / "tidemill-data").exists()


def test_two_versions_of_one_pipeline_bear_the_same_names_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "booth")
    edited = str(tmp_path / "booth" / "pipeline.py")
    with pytest.raises(InvalidConfiguration, match=r"--against FILE"):
        load_against(edited, "git:HEAD")
    committed(tmp_path / "booth")
    live = load_against(edited, "git:HEAD").pipeline
    assert load_pipeline(edited).pipeline.name == live.name == "booth"
    with pytest.raises(InvalidConfiguration, match=r"git has no pipeline\.py at v9"):
        load_against(edited, "git:v9")


@pytest.mark.parametrize("written", ["2024-05-01", "2024-05-01T00:00+00:00"])
def test_a_time_is_utc_unless_it_says_otherwise(written: str) -> None:
    assert at_ms(written) == 1_714_521_600_000


def test_what_is_no_time_is_refused() -> None:
    assert at_ms(None) is None
    assert isinstance(at_ms("6h"), int)
    with pytest.raises(InvalidConfiguration, match="is no time"):
        at_ms("yesterday")


# The page.


async def test_the_page_stands_alone_and_says_what_the_report_says(tmp_path: Path) -> None:
    file = as_file(tmp_path / "r.ndjson", (reading(n, note="<b>&") for n in range(2_000)))
    edited = pipeline(clean=[between("level", 0, 29), one_of("note", ["<b>&"])])
    report = await report_of(pipeline(), edited, from_files(edited, {"readings": file}), tmp_path)
    drawn = page(msgspec.to_builtins(report, str_keys=True), title="tried <once>")
    for source in report.sources:
        for number in (source.live, source.edited, source.lost, source.gained):
            assert f"{number:,}" in drawn
    assert "&lt;b&gt;&amp;" in drawn
    assert "<b>&" not in drawn.replace("&lt;b", "")
    assert "tried &lt;once&gt;" in drawn
    pictures = re.findall(r"<svg.*?</svg>", drawn, re.DOTALL)
    moved = [c for c in report.sources[0].columns if c.moved or c.changed]
    assert len(pictures) == len(moved) > 0
    for picture in pictures:
        ET.fromstring(picture)
        assert "var(--live)" in picture
        assert "#0102" not in picture
    # Nothing is fetched: the only addresses are the names of SVG's own namespaces.
    assert not re.search(r"(src|href)=\"(?!#)", drawn)
    assert "prefers-color-scheme: dark" in drawn
