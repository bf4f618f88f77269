"""The announcements of a log: the same, whoever folds it and however often he starts anew."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from infra.dataset import Dataset
from infra.point_in_time import compute
from schemas.decision import Decision
from schemas.envelope import unwrap_as
from schemas.features import AsOf, Trailing
from schemas.job import JobRequested
from schemas.profile import WindowProfiled
from schemas.sweep import Range, SweepPlan
from schemas.topics import DECISIONS, FEATURES, JOBS, PROFILES, WINDOWS
from schemas.window import WindowAmended, WindowClosed
from streams.announce.fold import Announced, Announcer, Commit, Progress
from streams.announce.log import keep, read_commit, recall
from streams.announce.outbox import Standing
from streams.announce.snapshot import Snapshot
from streams.clean import between, dedupe
from streams.closing import closing
from streams.ingest import Ingest, dataset_schema
from streams.ledger.commit import Ledger
from streams.pipeline import Labels, Pipeline, Source
from streams.summary.profiling import beginning
from streams.tag import Tag
from streams.training import Training, better_than_champion, last, sweep
from streams.trigger import (
    bias,
    cooldown,
    drift,
    edge_cases,
    every,
    hysteresis,
    label_drift,
    labelled,
    sustained,
)
from streams.unusual import outlier
from streams.watermark import of_pipeline
from streams.window import Session, Sliding, Tumbling
from tests.stream_fixtures import frame_of, heartbeat_headers

NOW_MS = 10_000_000


class Event(msgspec.Struct):
    id: str
    at: int
    place: str
    value: float


class Truth(msgspec.Struct):
    id: str
    came: int
    outcome: float


class Air(msgspec.Struct):
    place: str
    measured: int
    heat: float


PIPELINE = Pipeline(
    name="p",
    source=Source("events", schema=Event, event_time="at", key="id", disorder="200ms"),
    context=[Source("air", schema=Air, event_time="measured", key="place")],
    labels=Labels(Source("truth", schema=Truth, event_time="came", key="id"), column="outcome", within="2s"),
    clean=[between("value", -100, 100), dedupe(within="300ms")],
    tag=[
        Tag("high", pl.col("value") > 0),
        outlier("value", mad=1, over="2s", every="500ms", minimum_rows=3),
    ],
    columns=["place", "value"],
    features=[
        AsOf(source="air", by=("place",), columns={"heat": "heat"}, max_age_ms=400, age="heat_age"),
        Trailing(source="events", by=("place",), over_ms=500, aggregates={"mean_value": ("mean", "value")}),
    ],
    window=Tumbling("1s", lateness="200ms"),
    # Drift and bias watch too: what they look back on must survive a restart.
    train_when=(every(windows=2) & labelled(rows=3) & cooldown("1s"))
    | hysteresis(drift(minimum_rows=5), release=0.01) & sustained(drift("value", psi=0.1), windows=2)
    | (label_drift(minimum_rows=5) | bias("place", minimum_rows=5) | edge_cases("high", rows=1_000)),
    train=Training("nowhere:train", data=last(windows=3), sweep=sweep(every=2, vary={"rate": "0.0..1.0"})),
    publish_when=better_than_champion("auc"),
)
# Every kind of window over the same events.
PIPELINES = {
    "tumbling": PIPELINE,
    "sliding": replace(PIPELINE, window=Sliding("1s", "250ms", lateness="200ms")),
    "session": replace(PIPELINE, window=Session("70ms", lateness="200ms", longest="1s")),
    "session by key": replace(PIPELINE, window=Session("200ms", by="place", lateness="200ms")),
}
TOPICS = {"events": "at", "air": "measured", "truth": "came"}


def told(seed: int) -> list[tuple[str, int, dict]]:
    """Random records of all sources, roughly in event-time order, some far out of it: topic, time, fields."""
    rng = random.Random(seed)
    records: list[tuple[int, str, int, dict]] = []
    for number in range(150):
        at = number * 40
        place = rng.choice(["n", "s"])
        late_ms = rng.choice([0, 0, 0, 50, 150, 900, 2_500, 6_000]) if rng.random() < 0.3 else 0
        value = rng.choice([rng.uniform(-90, 90), 500.0])
        event = {"id": f"e{number - (rng.random() < 0.1)}", "at": at, "place": place, "value": value}
        records.append((at + late_ms, "events", at, event))
        if rng.random() < 0.6:
            records.append(
                (at + late_ms + 90, "air", at, {"place": place, "measured": at, "heat": rng.random()})
            )
        came = at + rng.choice([300, 800, 1_500, 3_000])
        truth = {"id": f"e{number}", "came": came, "outcome": float(rng.random() < 0.5)}
        records.append((came + late_ms, "truth", came, truth))
    return [(topic, time_ms, fields) for _, topic, time_ms, fields in sorted(records, key=lambda r: r[0])]


def committed(pipeline: Pipeline, uri: Path, seed: int) -> list[Commit]:
    """A dataset of random commits, made as the worker makes them; gives them as they were in memory."""
    rng = random.Random(seed)
    ledger = Ledger(uri, dataset_schema(pipeline))
    ingest = Ingest(
        pipeline,
        read_keys=lambda topic, key: (
            lambda a, b: Dataset(uri).rows(
                topic, version=ledger.version(), start_ms=a, end_ms=b, columns=[key]
            )
        ),
    )
    partitions = {(topic, 0) for topic in TOPICS}
    at = dict.fromkeys(TOPICS, 0)
    commits: list[Commit] = []
    records = told(seed)
    while records:
        chunk, records = records[: (n := rng.randint(1, 25))], records[n:]
        frames = []
        for topic in TOPICS:
            values: list[bytes | None] = [json.dumps(f).encode() for t, _, f in chunk if t == topic]
            headers = {}
            if topic != "events" and chunk:  # they lag by their labels: heartbeats say how far they are
                headers[len(values)] = heartbeat_headers(max(0, min(t for _, t, _ in chunk) - 100))
                values.append(None)
            if values:
                frames.append(frame_of(values, topic=topic, first=at[topic], headers=headers))
                at[topic] += len(values)
        ingest.watermarks = {p: w for p in partitions if (w := ledger.watermark(p)) is not None}
        ingest.pipeline_watermark_ms = ledger.pipeline_watermark()
        prepared = ingest.prepare(frames, now_ms=NOW_MS)
        marks = {p: prepared.watermarks.get(p, ledger.watermark(p)) for p in partitions}
        watermark_ms = of_pipeline(ledger.pipeline_watermark(), marks)
        metadata = {
            **prepared.metadata(),
            "watermark_ms": watermark_ms,
            "committed_ms": NOW_MS + len(commits),
        }
        version = ledger.commit(
            prepared.rows,
            advances=prepared.advances,
            watermarks=prepared.watermarks,
            pipeline_watermark_ms=watermark_ms,
            metadata=metadata,
        )
        ingest.settle(prepared)
        commits.append(Commit(version, metadata, prepared.by_source))
    return commits


def announcer(pipeline: Pipeline, uri: Path, progress: Progress) -> Announcer:
    return Announcer(pipeline, str(uri), progress, read_rows=Dataset(uri).rows, configuration_sha256="c")


def stood(announced: list[Announced], before: int) -> Standing:
    """What `outbox.standing` reads back of announcements of earlier versions."""
    found = Standing()
    for each in announced:
        envelope = each.envelope
        found.versions[envelope.id] = int(envelope.extensions["ledgerversion"])
        if each.topic == WINDOWS.name and envelope.type == "tidemill.window.closed.v1":
            found.closed.append(unwrap_as(envelope, WindowClosed))
        elif each.topic == DECISIONS.name:
            found.decisions[envelope.id] = unwrap_as(envelope, Decision)
        elif each.topic == PROFILES.name:
            found.profiles[envelope.id] = unwrap_as(envelope, WindowProfiled).profile
    return found


Folded = tuple[Pipeline, Path, list[list[Announced]]]


def fold_of(pipeline: Pipeline, uri: Path) -> Folded:
    """A dataset, and what a fold in one go announces of each version from memory."""
    commits = committed(pipeline, uri, seed=7)
    fold = announcer(
        pipeline, uri, Progress(closing(pipeline.window), version=0, history=beginning(pipeline))
    )
    return pipeline, uri, [fold.apply(commit) for commit in commits]


@pytest.fixture(scope="module", params=PIPELINES)
def of_each_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folded:
    return fold_of(PIPELINES[request.param], tmp_path_factory.mktemp("announce") / "p")


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Announced]]]:
    return fold_of(PIPELINE, tmp_path_factory.mktemp("announce") / "p")[1:]


def test_the_case_holds_all_that_can_be_announced(folded: tuple[Path, list[list[Announced]]]) -> None:
    flat = [each for announced in folded[1] for each in announced]
    kinds = {each.envelope.type for each in flat}
    topics = {FEATURES.name, WINDOWS.name, PROFILES.name, DECISIONS.name, JOBS.name}
    assert {each.topic for each in flat} == topics
    assert {"tidemill.window.closed.v1", "tidemill.window.amended.v1"} <= kinds
    verdicts = {msgspec.json.decode(e.envelope.data)["verdict"] for e in flat if e.topic == DECISIONS.name}
    assert verdicts == {"yes", "no", "not_evaluated"}
    ids = [each.envelope.id for each in flat]
    assert len(ids) == len(set(ids))


def test_a_training_need_not_wait_for_the_feature_rows_of_the_commit_that_asks_for_it(tmp_path: Path) -> None:
    commits = committed(PIPELINE, tmp_path / "p", seed=7)
    fold = announcer(
        PIPELINE,
        tmp_path / "p",
        Progress(closing(PIPELINE.window), version=0, history=beginning(PIPELINE)),
    )
    asked_beside_features = 0
    for commit in commits:
        portions = fold.portions(commit)
        first = next(portions)
        assert FEATURES.name not in {each.topic for each in first}
        rest = [each for portion in portions for each in portion]
        assert {each.topic for each in rest} <= {FEATURES.name}
        asked_beside_features += bool(rest) and JOBS.name in {each.topic for each in first}
    assert asked_beside_features > 0


def test_a_fold_taken_up_again_at_any_version_announces_the_same(of_each_kind: Folded) -> None:
    pipeline, uri, whole = of_each_kind
    for start in range(0, len(whole), 4):
        progress = recall(pipeline, str(uri), through_version=start)
        history = [each for announced in whole[:start] for each in announced]
        progress.history = stood(history, start).history_before(start + 1, beginning(pipeline))
        fold = announcer(pipeline, uri, progress)
        for version in range(start + 1, min(start + 4, len(whole)) + 1):
            again = fold.apply(read_commit(pipeline, str(uri), version, columns=fold.columns))
            expected = whole[version - 1]
            assert [each.envelope.id for each in again] == [each.envelope.id for each in expected]
            for mine, theirs in zip(again, expected, strict=True):
                assert mine == theirs, f"taken up after {start}, at {version}"


def test_a_fold_that_starts_anew_before_every_commit_announces_the_same(
    folded: tuple[Path, list[list[Announced]]],
) -> None:
    pipeline, (uri, whole) = PIPELINE, folded
    said: list[Announced] = []
    for version in range(1, len(whole) + 1):
        progress = recall(pipeline, str(uri), through_version=version - 1)
        progress.history = stood(said, version).history_before(version, beginning(pipeline))
        said += announcer(pipeline, uri, progress).apply(read_commit(pipeline, str(uri), version))
    assert said == [each for announced in whole for each in announced]


def test_a_snapshot_saves_reading_and_changes_nothing_and_a_bad_one_is_passed_over(
    of_each_kind: Folded, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, uri, whole = of_each_kind
    at, behind = len(whole) // 2, len(whole) - 1
    plain = recall(pipeline, str(uri), through_version=behind)
    keep(pipeline, str(uri), recall(pipeline, str(uri), through_version=at))
    read: list[int] = []
    real = Dataset.commit
    monkeypatch.setattr(Dataset, "commit", lambda self, v: (read.append(v), real(self, v))[1])
    (file,) = (uri / "_tidemill").glob("*.fold")

    def recalled(pipeline: Pipeline, through: int) -> Progress:
        read.clear()
        return recall(pipeline, str(uri), through_version=through)

    from_it = recalled(pipeline, behind)
    assert min(read) == at + 1
    assert (from_it.windows, from_it.tail_from_ms) == (plain.windows, plain.tail_from_ms)
    for topic, tail in plain.tail.items():
        assert_frame_equal(from_it.tail[topic].rows(), tail.rows())
    recalled(pipeline, at - 1)
    assert min(read) == 0, "it is one too far"
    other = replace(pipeline, window=Tumbling("3s"))
    recalled(other, behind)
    assert min(read) == 0, "it is of other windows"
    good = file.read_bytes()
    saved = msgspec.msgpack.decode(good, type=Snapshot)
    of_another_log = msgspec.msgpack.encode(msgspec.structs.replace(saved, entry_sha256="0" * 64))
    for bad in (b"", good[:-9], of_another_log):
        file.write_bytes(bad)
        assert recalled(pipeline, behind).windows == plain.windows
        assert min(read) == 0
    file.unlink()


def test_every_kind_of_window_counts_the_rows_of_the_dataset_and_asks_for_jobs_over_its_own_windows(
    of_each_kind: Folded,
) -> None:
    pipeline, uri, whole = of_each_kind
    dataset, jobs, windows = Dataset(uri), 0, []
    for each in (each for announced in whole for each in announced):
        if each.envelope.type == "tidemill.window.closed.v1":
            statement = unwrap_as(each.envelope, WindowClosed)
            windows.append(statement.window)
            rows = dataset.rows(
                "events",
                version=statement.dataset_version,
                start_ms=statement.window.start_ms,
                end_ms=statement.window.end_ms,
            )
            if pipeline.window.by is not None:
                rows = rows.filter(pl.col("place") == statement.window.key)
            assert statement.summary.rows == rows.height
            if rows.height:
                assert statement.summary.columns["value"].mean == pytest.approx(
                    rows.get_column("value").mean()
                )
            assert 0 <= statement.labelled <= rows.height
        elif each.topic == JOBS.name:
            jobs += 1
            experiment = msgspec.json.decode(each.envelope.data)["experiment"]
            judged, trained = experiment["evaluation"], experiment["training"]
            # The newest window alone judges; what trains ends where that begins.
            assert any(judged == judged | {"start_ms": w.start_ms, "end_ms": w.end_ms} for w in windows)
            assert trained["start_ms"] < trained["end_ms"] == judged["start_ms"]
    assert jobs > 1
    assert len(windows) == len(set(windows))


def test_every_row_gets_its_features_once_and_they_are_those_of_the_dataset_as_it_then_was(
    folded: tuple[Path, list[list[Announced]]],
) -> None:
    uri, whole = folded
    dataset = Dataset(uri)
    everything: dict[str, Any] = {"start_ms": -(10**9), "end_ms": 10**9}
    told_of: list[tuple[str, int]] = []
    for version, announced in enumerate(whole, start=1):
        records = [e.envelope.data for e in announced if e.topic == FEATURES.name]
        if not records:
            continue
        live = pl.concat(pl.read_ipc_stream(io.BytesIO(record)) for record in records).sort("id", "_time")
        told_of += live.select("id", "_time").rows()
        sources = {topic: dataset.rows(topic, version=version, **everything) for topic in TOPICS}
        mine = sources["events"].join(live.select("id", "_time"), on=["id", "_time"], how="semi")
        expected = compute(mine, sources, PIPELINE.spec()).sort("id", "_time")
        assert_frame_equal(live, expected, check_column_order=False, abs_tol=1e-9)
    mark_ms = Ledger(uri, dataset_schema(PIPELINE)).pipeline_watermark()
    rows = dataset.rows("events", version=len(whole), **everything).filter(pl.col("_time") < mark_ms)
    assert sorted(told_of) == sorted(rows.select("id", "_time").rows())


def test_every_window_is_closed_once_and_its_counts_are_those_of_its_rows(
    folded: tuple[Path, list[list[Announced]]],
) -> None:
    uri, whole = folded
    closed, amended = {}, {}
    for announced in whole:
        for each in announced:
            if each.envelope.type == "tidemill.window.closed.v1":
                statement = unwrap_as(each.envelope, WindowClosed)
                assert statement.window.start_ms not in closed
                closed[statement.window.start_ms] = statement
            elif each.envelope.type == "tidemill.window.amended.v1":
                statement = unwrap_as(each.envelope, WindowAmended)
                assert statement.window.start_ms in closed, "closed comes before amended"
                amended[statement.window.start_ms] = statement
    assert amended
    dataset = Dataset(uri)
    for start_ms, statement in {**closed, **amended}.items():
        rows = dataset.rows(
            "events", version=statement.dataset_version, start_ms=start_ms, end_ms=start_ms + 1_000
        )
        labels = dataset.rows(
            "truth", version=statement.dataset_version, start_ms=start_ms, end_ms=start_ms + 3_000
        )
        assert statement.summary.rows == rows.height
        assert statement.summary.tags.get("high", 0) == rows.filter(pl.col("value") > 0).height
        assert statement.summary.columns["value"].mean == pytest.approx(rows.get_column("value").mean())
        in_time = rows.join(labels.unique("id"), on="id").filter(
            pl.col("_time_right") - pl.col("_time") <= 2_000
        )
        assert statement.labelled == in_time.height
    late = dataset.rows("events", version=len(whole), start_ms=-(10**9), end_ms=10**9).filter(
        pl.col("_tags").list.contains("late")
    )
    assert late.height == sum(
        unwrap_as(e.envelope, WindowAmended).late_rows
        for announced in whole
        for e in announced
        if e.envelope.type == "tidemill.window.amended.v1"
    )


def test_a_yes_asks_for_one_job_by_the_window_that_said_it(
    folded: tuple[Path, list[list[Announced]]],
) -> None:
    for announced in folded[1]:
        decisions = {
            d["job_id"]: d
            for e in announced
            if e.topic == DECISIONS.name and (d := msgspec.json.decode(e.envelope.data))["verdict"] == "yes"
        }
        jobs = {
            j["job_id"]: j
            for e in announced
            if e.topic == JOBS.name and (j := msgspec.json.decode(e.envelope.data))
        }
        assert jobs.keys() == decisions.keys()
        for job_id, job in jobs.items():
            experiment, window = job["experiment"], decisions[job_id]["window"]
            assert experiment["evaluation"]["end_ms"] == window["end_ms"]
            assert (
                experiment["training"]["end_ms"] == experiment["evaluation"]["start_ms"] == window["start_ms"]
            )
            assert experiment["training"]["end_ms"] - experiment["training"]["start_ms"] == 3_000
            assert experiment["training"]["version"] == decisions[job_id]["dataset_version"]


def test_every_second_training_is_a_sweep_if_it_is_declared_so(
    folded: tuple[Path, list[list[Announced]]],
) -> None:
    jobs = [unwrap_as(e.envelope, JobRequested) for each in folded[1] for e in each if e.topic == JOBS.name]
    plan = SweepPlan(vary={"rate": Range(0.0, 1.0)})
    assert len(jobs) >= 2
    assert [job.sweep for job in jobs] == [None if number % 2 == 0 else plan for number in range(len(jobs))]
