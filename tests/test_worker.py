"""A worker on a real broker, started and stopped as an engineer would: what comes out is counted apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import pytest

from infra.dataset import Dataset
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from infra.demo.flights import flights as flown
from infra.point_in_time import compute
from schemas import topics
from schemas.envelope import Envelope, unwrap_as
from schemas.job import JobRequested
from schemas.window import Window, WindowExcluded
from streams.ledger.exclude import exclude
from streams.load import load_pipeline
from tests.worker_fixtures import (
    Cluster,
    Outcome,
    Worker,
    assert_announced_whole,
    assert_exactly_once,
    flights,
    heartbeats,
    known,
    wait_until,
)

DAYS = 4
AFTER_MS = FIRST_DAY_MS + DAYS * DAY_MS
EXCLUDED = Window(FIRST_DAY_MS + 2 * DAY_MS, FIRST_DAY_MS + 2 * DAY_MS + 3_600_000)
# Fewer than a fetch brings: frames are parted.
BATCH_ROWS = 700


@dataclass
class Run:
    """Two lives of a worker: two days, a stop, two more days, and the end."""

    worker: Worker
    outcome: Outcome
    exit_codes: list[int]
    between: list[tuple[str, Envelope]]
    """Announced when the first life had ended."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("worker")
    few = {"TIDEMILL_WORKER__BATCH_ROWS": str(BATCH_ROWS)}
    with Cluster(home) as cluster, Worker(cluster, home / "steady", "steady", settings=few) as worker:
        outcome = Outcome(cluster, worker.home, "steady")
        cluster.push(flights(2))
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "two days in the dataset")
        wait_until(lambda: worker.assert_runs() and outcome.announced(), "a window closed")
        codes = [worker.end()]
        between = outcome.announced()
        worker.start()
        pushing = cluster.pushing([*flights(DAYS, start=2), *heartbeats(AFTER_MS + DAY_MS)], per_s=6_000)
        declared = load_pipeline(str(worker.pipeline_file)).pipeline
        exclude(declared, str(outcome.uri), EXCLUDED, reason="the feed was down", by="ann")
        pushing.join(60)
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "all days in the dataset")
        wait_until(lambda: worker.assert_runs() and outcome.closed_all(), "all windows closed")
        group = "tidemill-steady"
        wait_until(lambda: cluster.committed_offsets(group) == cluster.ends(), "Kafka's offsets to follow")
        codes.append(worker.end())
        yield Run(worker, outcome, codes, between)


def test_a_span_excluded_beside_it_is_announced_once_and_obeyed_by_what_it_asks_for_from_then_on(
    run: Run,
) -> None:
    told = [e for _, e in run.outcome.announced() if e.type.endswith("excluded.v1")]
    said = [unwrap_as(e, WindowExcluded) for e in told]
    assert [(each.window, each.reason, each.decided_by) for each in said] == [
        (EXCLUDED, "the feed was down", "ann")
    ]
    jobs = [unwrap_as(e, JobRequested) for t, e in run.outcome.announced() if t == topics.JOBS.name]
    after = [j for j in jobs if j.experiment.training.version >= said[0].dataset_version]
    assert after
    spans = [s for j in after for s in (j.experiment.training, j.experiment.evaluation) if s is not None]
    reach = [s for s in spans if s.start_ms < EXCLUDED.end_ms and s.end_ms > EXCLUDED.start_ms]
    assert all(s.excluded == (EXCLUDED,) for s in reach)
    assert reach


def test_sigterm_ends_it_cleanly(run: Run) -> None:
    assert run.exit_codes == [0, 0]
    assert '"exception"' not in run.worker.log()
    assert "Traceback" not in run.worker.log()


def test_each_event_is_in_the_dataset_once_with_its_values(run: Run) -> None:
    assert_exactly_once(run.outcome)


def test_no_commit_has_more_rows_than_a_batch_may(run: Run) -> None:
    dataset = Dataset(run.outcome.uri)
    commits = [dataset.commit(version).metadata for version in range(1, dataset.newest_version() + 1)]
    rows = [sum(each["rows"] for each in said.get("counts", {}).values()) for said in commits]
    assert sum(rows) == run.outcome.rows().height
    assert max(rows) == BATCH_ROWS


def test_counts_by_source_are_those_of_the_source_files(run: Run) -> None:
    said = {topic: dict(counts) for topic, counts in run.outcome.counts().items()}
    table = flown()
    in_time = pl.col("scheduled") < AFTER_MS
    expected = {
        "flights.scheduled": table.filter(in_time).height,
        "flights.departed": table.filter(pl.col("departed") < AFTER_MS).height,
        "flights.arrived": table.filter(pl.col("arrived") < AFTER_MS).height,
    }
    for topic, height in expected.items():
        assert said[topic] == {"events": height, "rows": height, "rejected": 0, "dropped": 0}
    by_source = Counter(run.outcome.rows().get_column("_source").to_list())
    assert by_source == Counter(known(DAYS).get_column("topic").to_list())


def test_every_window_decision_and_feature_row_is_announced(run: Run) -> None:
    assert_announced_whole(run.outcome)


def test_a_restart_announces_nothing_twice_and_changes_nothing_that_was_said(run: Run) -> None:
    everything = run.outcome.announced()
    ids = [e.id for _, e in everything]
    assert len(ids) == len(set(ids)), "a clean restart repeats nothing"
    for topic, envelope in run.between:
        assert (topic, envelope) in everything
    assert 0 < len(run.between) < len(everything)


def test_live_feature_rows_are_those_that_training_computes(run: Run) -> None:
    spec = load_pipeline(str(run.worker.home / "steady.py")).pipeline.spec()
    dataset = Dataset(run.outcome.uri)
    version = dataset.newest_version()
    sources = {
        t: dataset.rows(t, version=version, start_ms=0, end_ms=2**62)
        for t in ("flights.scheduled", "flights.departed", "weather.hourly")
    }
    trained = compute(sources["flights.scheduled"], sources, spec).sort("flight_id")
    frames = [pl.read_ipc_stream(e.data) for t, e in run.outcome.announced() if t == topics.FEATURES.name]
    live = pl.concat(frames).select(trained.columns).sort("flight_id")
    for name in spec.names():
        mine, theirs = live.get_column(name), trained.get_column(name)
        assert mine.null_count() == theirs.null_count() < live.height
        if mine.dtype.is_float():
            assert ((mine - theirs).abs() < 1e-9).all()
        else:
            assert mine.equals(theirs)


def test_a_windows_labels_are_counted_as_they_had_come(run: Run) -> None:
    rows = run.outcome.rows()
    labels = rows.filter(pl.col("_source") == "flights.arrived").select("flight_id", came="_time")
    mine = rows.filter(pl.col("_source") == "flights.scheduled").join(labels, on="flight_id")
    for topic, envelope in run.outcome.announced():
        if topic != topics.WINDOWS.name:
            continue
        said = json.loads(envelope.data)
        if "labelled" not in said:  # a span was excluded
            continue
        start_ms, end_ms = said["window"]["start_ms"], said["window"]["end_ms"]
        in_window = mine.filter(pl.col("_time").is_between(start_ms, end_ms, closed="left"))
        # Labels after the window's close may have come in the same commit; none can be missing from before.
        surely = in_window.filter(pl.col("came") < end_ms + 6 * 3_600_000).height
        assert surely <= said["labelled"] <= in_window.height
