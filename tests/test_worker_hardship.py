"""A worker whose disk is full, whose partitions fall silent and speak late, whose cluster is dead."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from schemas import topics
from tests.worker_fixtures import Cluster, Outcome, Worker, assert_exactly_once, flights, wait_until


@contextlib.contextmanager
def small_disk(at: Path, size_bytes: int) -> Iterator[Path]:
    at.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("hardship")) as cluster:
        yield cluster


def test_a_full_disk_is_waited_out_and_does_not_keep_a_worker_from_ending(
    cluster: Cluster, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        settings = {"TIDEMILL_PATHS__DATASET": str(disk / "dataset")}
        worker = Worker(cluster, tmp_path / "full", "full", settings=settings)
        outcome = Outcome(cluster, disk, "full")
        ballast = disk / "ballast"

        def fill() -> None:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as filling:
                while True:
                    filling.write(b"\0" * 4096)

        with contextlib.closing(worker):
            worker.start()
            cluster.push(flights(1))
            wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "a day in the dataset")
            fill()
            cluster.push(flights(2, start=1))
            wait_until(lambda: worker.assert_runs() and "cannot commit" in worker.log(), "it says so")
            assert "free space" in worker.log()
            version = outcome.version()
            ballast.unlink()
            wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "it goes on by itself")
            fill()
            cluster.push(flights(3, start=2))
            tries = worker.log().count("cannot commit")
            wait_until(
                lambda: worker.assert_runs() and worker.log().count("cannot commit") > tries, "full again"
            )
            assert worker.end(within_s=20) == 0
            ballast.unlink()
            worker.start()
            wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "the next one has it all")
            assert worker.end() == 0
        assert outcome.version() > version
        assert_exactly_once(outcome)


def test_silent_partitions_hold_no_window_open_and_what_they_bring_later_is_late(
    cluster: Cluster, tmp_path: Path
) -> None:
    settings = {"TIDEMILL_WORKER__IDLE_TIMEOUT_MS": "1500"}
    main = topics.FLIGHTS_SCHEDULED.name
    later = [s for s in flights(6, start=3) if s.topic == main]
    goes_on = [s for s in later if s.partition == 0]
    delayed = [s for s in later if s.partition == 1][:50]
    with Worker(cluster, tmp_path / "silent", "silent", settings=settings) as worker:
        outcome = Outcome(cluster, worker.home, "silent")
        if not cluster.pushed:
            cluster.push(flights(3))
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "what was there")
        cluster.push(goes_on)
        third_day = f"silent/{FIRST_DAY_MS + 3 * DAY_MS}-{FIRST_DAY_MS + 4 * DAY_MS}/closed"
        wait_until(
            lambda: worker.assert_runs() and third_day in {e.id for _, e in outcome.announced()},
            "a window that the silent partitions have not passed is closed",
        )
        assert worker.end() == 0
        worker.start()  # that they are silent, and what was closed, is known to the next one
        cluster.push(delayed)
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "the late rows")
        wait_until(lambda: any("amended" in e.id for _, e in outcome.announced()), "the amendment")
        assert worker.end() == 0
    assert_exactly_once(outcome)
    rows = outcome.rows().filter(pl.col("_source") == main)
    late = rows.filter(pl.col("_tags").list.contains("late"))
    assert 0 < late.height <= len(delayed)
    assert set(late.get_column("_partition")) == {1}
    said = {e.id: e for _, e in outcome.announced()}
    closed = [json.loads(e.data) for e in said.values() if e.type.endswith("window.closed.v1")]
    amended = [json.loads(e.data) for e in said.values() if e.type.endswith("window.amended.v1")]
    assert sum(statement["late_rows"] for statement in amended) == late.height
    for statement in amended:
        start_ms, end_ms = statement["window"]["start_ms"], statement["window"]["end_ms"]
        in_window = rows.filter(pl.col("_time").is_between(start_ms, end_ms, closed="left"))
        assert statement["summary"]["rows"] == in_window.height
        before = next(c for c in closed if c["window"] == statement["window"])
        assert before["summary"]["rows"] == in_window.height - statement["late_rows"]
    # A late row still gets its features: every row is told of once.
    frames = [pl.read_ipc_stream(e.data) for e in said.values() if e.type.startswith("tidemill.features")]
    featured = pl.concat(frames).get_column("flight_id").to_list()
    assert len(featured) == len(set(featured))
    assert set(late.get_column("flight_id")) <= set(featured)


def test_a_cluster_that_dies_while_a_worker_starts_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    with contextlib.closing(Worker(cluster, tmp_path / "between", "between")) as worker:
        worker.start(("the cluster answered", 1, "SIGSTOP"), level="warn")
        wait_until(worker.is_frozen, "the worker knows that the cluster is there", within_s=90)
        cluster.broker.kill()
        worker.signal(signal.SIGCONT)
        wait_until(lambda: worker.assert_runs() and "no broker answers yet" in worker.log(), "it waits")
        cluster.broker.start()
        outcome = Outcome(cluster, worker.home, "between")
        if not cluster.pushed:
            cluster.push(flights(1))
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "all is taken", within_s=90)
        assert worker.end() == 0


def test_a_worker_ends_while_its_cluster_is_dead(cluster: Cluster, tmp_path: Path) -> None:
    """Last of this file: the broker does not come back."""
    with Worker(cluster, tmp_path / "dead", "dead") as worker:
        outcome = Outcome(cluster, worker.home, "dead")
        if not cluster.pushed:
            cluster.push(flights(1))
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "what was there")
        cluster.broker.kill()
        assert worker.end(within_s=60) == 0
