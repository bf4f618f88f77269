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

import polars as pl
import pytest

from infra.dataset import IDENTITY, Dataset, DatasetUnreadable
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from schemas import topics
from schemas.window import Window
from streams.lab.rehearse import counts_of, offsets_of
from streams.lab.replay import version_name
from streams.ledger.exclude import exclude
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

    def replay(self, file: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TIDEMILL, "replay", file.name, "--against", "again.py", "--json", *options],
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

    def report(self, file: Path, *options: str, **settings: str) -> dict[str, Any]:
        process = self.replay(file, *options, **settings)
        said, complaint = process.communicate(timeout=200)
        assert process.returncode == 0, complaint
        return json.loads(said)

    def archived(self) -> list[str]:
        """All that was pushed, as archives of raw records, a file a topic; as options of a replay."""
        records: dict[str, list[dict[str, Any]]] = {}
        for (topic, partition, offset), sent in sorted(self.cluster.pushed.items()):
            headers = [{"key": name, "value": value} for name, value in sent.headers]
            row = {"partition": partition, "offset": offset, "key": sent.key, "value": sent.value}
            row |= {"headers": headers, "timestamp_ms": 1_700_000_000_000}
            records.setdefault(topic, []).append(row)
        schema = {
            "partition": pl.Int32, "offset": pl.Int64, "key": pl.Binary, "value": pl.Binary,
            "headers": pl.List(pl.Struct({"key": pl.String, "value": pl.Binary})), "timestamp_ms": pl.Int64,
        }  # fmt: skip
        options = []
        for topic, rows in records.items():
            file = self.home / f"{topic}.parquet"
            pl.DataFrame(rows, schema=schema).write_parquet(file)
            options += ["--file", f"{topic}={file}"]
        return options

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


def test_archived_raw_records_make_the_same_dataset_without_the_cluster(live: Live) -> None:
    file = live.rules("archived")
    away = {"TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    report = live.report(file, *live.archived(), **away)
    for source in report["sources"]:
        assert (source["lost"], source["gained"]) == (0, 0)
        assert source["live"] == source["edited"] == source["both"] > 0
    assert offsets_of(live.made(file)) == offsets_of(live.outcome.uri)
    # Files are read from their beginning again, and what is there is passed over.
    version = Dataset(live.made(file)).newest_version()
    live.report(file, *live.archived(), **away)
    assert Dataset(live.made(file)).newest_version() == version


def test_ctrl_c_ends_a_replay_that_goes_on_by_the_same_command(live: Live) -> None:
    file = live.rules("stopped")
    # Hundreds of commits, so that it is not through before it hears of the signal.
    process = live.replay(file, TIDEMILL_WORKER__BATCH_ROWS="10")
    made = live.made(file)

    def begun() -> bool:
        # The first commits may all be of another source.
        return (made / "_delta_log" / f"{3:020d}.json").exists() and MAIN in counts_of(made)

    wait_until(lambda: process.poll() is not None or begun(), "some commits", within_s=120)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    stopped_at = counts_of(made)[MAIN].events
    assert stopped_at < counts_of(live.outcome.uri)[MAIN].events
    report = live.report(file)
    assert report["events"] > 0
    for source in report["sources"]:
        assert (source["lost"], source["gained"]) == (0, 0)
        assert source["edited"] == source["live"]


def test_a_replay_stands_beside_a_dataset_of_which_a_span_is_excluded(live: Live) -> None:
    loaded = load_pipeline(str(live.home / "again.py"))
    span = Window(FIRST_DAY_MS, FIRST_DAY_MS + 1_000)
    exclude(loaded.pipeline, str(live.outcome.uri), span, reason="a test", by="ann")
    report = live.report(live.rules("beside"))
    assert all((source["lost"], source["gained"]) == (0, 0) for source in report["sources"])


def test_a_replay_beside_no_live_dataset_is_refused_with_the_way_out(live: Live, tmp_path: Path) -> None:
    file = live.rules("nowhere")
    process = live.replay(file, TIDEMILL_PATHS__HOME=str(tmp_path))
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "there is no live dataset again" in said
