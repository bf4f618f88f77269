"""A replay makes the live dataset anew, row for row; under other rules, what they change and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.dataset import IDENTITY, Dataset, DatasetUnreadable
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from schemas import topics
from streams.lab.rehearse import counts_of, offsets_of
from streams.lab.replay import version_name
from streams.load import load_pipeline
from tests.worker_fixtures import PIPELINE, Cluster, Outcome, Worker, flights, heartbeats, wait_until

MAIN = topics.FLIGHTS_SCHEDULED.name
TIDEMILL = Path(sys.executable).with_name("tidemill")


class Live:
    """A dataset that a real worker made of two days, the worker gone since."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster, self.home = cluster, home
        with Worker(cluster, home, "again") as worker:
            self.outcome = Outcome(cluster, home, "again")
            cluster.push([*flights(2), *heartbeats(FIRST_DAY_MS + 3 * DAY_MS)])
            wait_until(lambda: worker.assert_runs() and self.outcome.holds_all(), "two days in the dataset")
            assert worker.end() == 0

    def rules(self, name: str, old: str = "", new: str = "") -> Path:
        text = PIPELINE.format(name="again")
        assert old in text
        text = text.replace(old, new) if old else text
        file = self.home / f"{name}.py"
        file.write_text(f"{text}# {name}\n")
        return file

    def replay(self, file: Path, **settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TIDEMILL, "replay", file.name, "--against", "again.py", "--json"],
            cwd=self.home,
            env={
                **os.environ,
                "TIDEMILL_PATHS__HOME": str(self.home),
                "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": self.cluster.connection.bootstrap_servers,
                **settings,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def report(self, file: Path, **settings: str) -> dict[str, Any]:
        process = self.replay(file, **settings)
        said, complaint = process.communicate(timeout=200)
        assert process.returncode == 0, complaint
        return json.loads(said)

    def made(self, file: Path) -> Path:
        return self.home / "dataset" / version_name(load_pipeline(str(file)))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Cluster(tmp_path_factory.mktemp("replay")) as cluster:
        yield Live(cluster, cluster.home / "home")


def test_the_same_rules_make_the_same_dataset_and_the_live_one_is_not_touched(live: Live) -> None:
    before = live.outcome.version()
    file = live.rules("same")
    report = live.report(file)
    for source in report["sources"]:
        assert (source["lost"], source["gained"]) == (0, 0)
        assert source["live"] == source["edited"] == source["both"] > 0
        assert all(n == m for n, m in source["rules"].values())
        assert not any(c["moved"] or c["changed"] for c in source["columns"])
        assert not any(t["gained"] or t["lost"] for t in source["tags"])
    assert live.outcome.version() == before
    made = live.made(file)
    assert {p: end for p, (_, end) in offsets_of(made).items()} == live.cluster.ends()
    # Run again, it finds nothing that it has not read.
    assert live.report(file)["events"] == 0


def test_killed_in_the_middle_it_goes_on_where_it_was_and_nothing_is_twice_or_missing(live: Live) -> None:
    file = live.rules("killed", "0, 12_000", "0, 1_000")
    process = live.replay(file, TIDEMILL_WORKER__BATCH_ROWS="100")
    made = live.made(file)

    def version() -> int:
        try:
            return Dataset(made).newest_version()
        except DatasetUnreadable:
            return -1

    wait_until(lambda: process.poll() is not None or version() >= 4, "some commits", within_s=120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert counts_of(made)[MAIN].events < counts_of(live.outcome.uri)[MAIN].events
    report = live.report(file)
    main = next(source for source in report["sources"] if source["source"] == MAIN)
    assert main["events"] == counts_of(live.outcome.uri)[MAIN].events
    refused = main["rules"]["between(distance)"]
    assert refused[0] == 0
    assert main["lost"] == refused[1] > 0
    assert main["gained"] == 0
    assert [e["difference"] for e in main["examples"]] == ["lost by between(distance)"]
    rows = Dataset(made).rows(MAIN, version=version(), start_ms=-(2**62), end_ms=2**62)
    assert rows.height == main["edited"]
    assert not rows.select(IDENTITY).is_duplicated().any()
    assert rows.get_column("distance").max() <= 1_000  # type: ignore[operator]


def test_a_replay_beside_no_live_dataset_is_refused_with_the_way_out(live: Live, tmp_path: Path) -> None:
    file = live.rules("nowhere")
    process = live.replay(file, TIDEMILL_PATHS__HOME=str(tmp_path))
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "there is no live dataset again" in said
