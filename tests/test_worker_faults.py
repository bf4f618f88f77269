"""Workers are killed at exact places, frozen and outrun while events flow: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from streams.ledger.commit import Ledger
from tests.worker_fixtures import (
    Cluster,
    Outcome,
    Sent,
    Worker,
    assert_announced_whole,
    assert_exactly_once,
    flights,
    heartbeats,
    wait_until,
)

DAYS = 8
pytestmark = pytest.mark.timeout(400)


def with_bad_ones(records: list[Sent], seed: int) -> list[Sent]:
    """The records, with bad ones and repeats between them."""
    rng = random.Random(seed)
    mixed: list[Sent] = []
    for each in records:
        mixed.append(each)
        if rng.random() < 0.01:
            bad = rng.choice([b"{", b"[]", each.value[:-9] if each.value else b"", b'{"flight_id": null}'])
            mixed.append(Sent(each.topic, each.partition, each.key, bad, kind="bad"))
        if rng.random() < 0.01 and each.topic == "flights.scheduled":
            mixed.append(Sent(each.topic, each.partition, each.key, each.value, kind="repeat"))
    return mixed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("faults")) as cluster:
        yield cluster


# How each life of the worker ends: at an exact place of the commit. Kills at random instants, of brokers
# too, are those of `tidemill bench faults` (tests/test_faults.py).
LIVES = (
    ("before a commit", 2, "SIGKILL"),  # its dead letters are out, its rows are not in
    ("linking", 1, "SIGKILL"),  # its data file is written, its log entry is not there
    ("before the flush", 2, "SIGKILL"),  # its log entry is there, and a power cut could undo it: one does
    ("after a commit", 2, "SIGKILL"),  # its rows are in, nothing of them is announced
    ("announcing", 4, "SIGKILL"),  # some of what it announces, or of its dead letters, is out
)


def files_and_version(outcome: Outcome) -> tuple[int, int]:
    return len(list(outcome.uri.glob("*.parquet"))), outcome.version()


def power_cut(worker: Worker, outcome: Outcome) -> None:
    """The newest entry of the log was not on disk yet: a worker refuses what is left; the operator acts."""
    entry = max((outcome.uri / "_delta_log").glob("*.json"))
    entry.write_bytes(b"")
    assert worker.start().exit_code() not in (0, None)
    assert f"{entry.name} is not whole" in worker.log_tail()
    assert "move the entry away" in worker.log_tail()
    entry.rename(outcome.uri.parent / entry.name)


def test_nothing_is_lost_or_doubled_by_kills_at_exact_places(cluster: Cluster, tmp_path: Path) -> None:
    records = with_bad_ones(flights(DAYS), seed=1)
    edges = [len(records) * i // (2 * len(LIVES) + 2) for i in range(2 * len(LIVES) + 3)]
    parts = [records[a:b] for a, b in itertools.pairwise(edges)]
    outcome = Outcome(cluster, tmp_path / "killed", "killed")
    worker = Worker(cluster, tmp_path / "killed", "killed")

    def flowing() -> threading.Thread:
        """Some events that wait for the worker, and once it takes them in, more for two seconds."""
        version = outcome.version()
        cluster.push(parts.pop(0))
        wait_until(lambda: worker.has_ended() or outcome.version() > version, "a commit", within_s=90)
        return cluster.pushing(more := parts.pop(0), per_s=len(more) / 2)

    with contextlib.closing(worker):
        for strike in LIVES:
            where = strike[0]
            before = files_and_version(outcome) if where == "linking" else None
            worker.start(strike)
            player = flowing()
            assert worker.exit_code() == -signal.SIGKILL
            player.join(60)
            if before is not None:
                assert files_and_version(outcome) == (before[0] + 1, before[1])
            if where == "before the flush":
                power_cut(worker, outcome)
        worker.start()
        flowing().join(60)
        cluster.push(heartbeats(FIRST_DAY_MS + (DAYS + 1) * DAY_MS))
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "all in the dataset", within_s=90)
        wait_until(lambda: worker.assert_runs() and outcome.closed_all(), "all windows closed")
        assert worker.end() == 0
    assert_exactly_once(outcome)
    assert_announced_whole(outcome)
    assert outcome.version() > len(LIVES), "the kills fell between commits, not between lives"


def test_two_workers_share_the_work_and_a_frozen_one_is_fenced(cluster: Cluster, tmp_path: Path) -> None:
    first_day = 10  # after all that the test above pushed: the topics are the same
    parts = [list(flights(first_day + day + 1, start=first_day + day)) for day in range(2)]
    home = tmp_path / "shared"
    outcome = Outcome(cluster, home, "shared")
    one, two = Worker(cluster, home, "shared", "one"), Worker(cluster, home, "shared", "two")
    with contextlib.closing(one), contextlib.closing(two):
        two.start()
        one.start(("before a commit", 3, "SIGSTOP"))
        wait_until(lambda: len(cluster.shares("tidemill-shared")) == 2, "both have partitions", within_s=90)
        assert sum(cluster.shares("tidemill-shared").values()) == 13
        player = cluster.pushing(parts[0], per_s=len(parts[0]) / 3)
        wait_until(one.is_frozen, "the frozen worker stands before its commit", within_s=90)
        player.join(60)
        wait_until(lambda: two.assert_runs() and outcome.holds_all(), "the other takes over", within_s=60)
        one.signal(signal.SIGCONT)
        wait_until(lambda: one.assert_runs() and "fenced" in one.log(), "the woken one is fenced")
        player = cluster.pushing(parts[1], per_s=len(parts[1]) / 3)
        time.sleep(1)
        assert two.end() == 0
        player.join(60)
        cluster.push(heartbeats(FIRST_DAY_MS + (first_day + 3) * DAY_MS))
        wait_until(lambda: one.assert_runs() and outcome.holds_all(), "the woken one takes all", within_s=60)
        wait_until(outcome.closed_all, "all windows closed")
        assert one.end() == 0
    assert_exactly_once(outcome)
    assert_announced_whole(outcome)
    assert '"exception"' not in two.log()
    assert "Traceback" not in two.log()


# ── what ends a worker ──────────────────────────────────────────────────────────────────────────────


def test_a_dataset_of_other_columns_ends_the_worker_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "columns"
    Ledger(home / "dataset" / "columns", {"flight_id": pl.Int64()})
    with contextlib.closing(Worker(cluster, home, "columns")) as worker:
        assert worker.start().exit_code() not in (0, None)
        assert "has other columns than the pipeline" in worker.log_tail()
