"""A switch to a replayed dataset and back, beside real workers that are fenced, end and are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra.dataset import Dataset
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from infra.exclusion import excluded_at
from infra.switched import SwitchedAway, goes_on_by, live_dataset, refuse_others
from schemas import topics
from schemas.decision import Decision
from schemas.envelope import unwrap_as
from schemas.window import DatasetSwitched, Window, WindowClosed
from streams.ingest import dataset_schema
from streams.lab.replay import version_name
from streams.ledger.commit import Ledger
from streams.ledger.exclude import exclude
from streams.ledger.switch import NothingToSwitch, fence, point
from streams.load import load_pipeline
from tests.worker_fixtures import (
    PIPELINE,
    Cluster,
    Outcome,
    Worker,
    assert_exactly_once,
    flights,
    heartbeats,
    wait_until,
)

TIDEMILL = Path(sys.executable).with_name("tidemill")
NAME = "switched"
MAIN = topics.FLIGHTS_SCHEDULED.name


class Road:
    """A pipeline under old and new rules: the new ones tag what the old ones do not."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster, self.home = cluster, home
        home.mkdir()
        text = PIPELINE.format(name=NAME)
        self.old, self.new = home / f"{NAME}.py", home / "other.py"
        self.old.write_text(text)
        self.new.write_text(text.replace("1_500", "700"))
        self.replayed = version_name(load_pipeline(str(self.new)))
        self.days = 0

    def worker(self, file: Path) -> Worker:
        worker = Worker(self.cluster, self.home, NAME)
        worker.pipeline_file = file
        return worker

    def tidemill(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TIDEMILL, *arguments],
            cwd=self.home,
            env={
                **os.environ,
                "TIDEMILL_PATHS__HOME": str(self.home),
                "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": self.cluster.connection.bootstrap_servers,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answered(self, *arguments: str) -> Any:
        process = self.tidemill(*arguments, "--json")
        said, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint
        return json.loads(said.splitlines()[0])

    def day(self) -> None:
        """Push one more day, and that it is over."""
        self.days += 1
        after_ms = FIRST_DAY_MS + self.days * DAY_MS
        self.cluster.push([*flights(self.days, start=self.days - 1), *heartbeats(after_ms + DAY_MS // 4)])

    def outcome(self, dataset: str) -> Outcome:
        outcome = Outcome(self.cluster, self.home, NAME)
        outcome.uri = self.home / "dataset" / dataset
        outcome.dataset = Dataset(outcome.uri)
        return outcome

    def said(self, contract: type[Any]) -> list[Any]:
        """All announcements of a kind, as they were said: a repeat, too."""
        name = topics.DECISIONS.name if contract is Decision else topics.WINDOWS.name
        kind = {WindowClosed: "window.closed", Decision: "decision.made", DatasetSwitched: "dataset.switched"}
        read = self.cluster.read(name)
        return [unwrap_as(e, contract) for _, e in read if e.type == f"tidemill.{kind[contract]}.v1"]

    def featured(self) -> list[str]:
        frames = [pl.read_ipc_stream(e.data) for _, e in self.cluster.read(topics.FEATURES.name)]
        return [key for frame in frames for key in frame.get_column("flight_id").to_list()]

    def closed(self, days: int) -> bool:
        return len({each.window for each in self.said(WindowClosed)}) >= days


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    with Cluster(tmp_path_factory.mktemp("switch")) as cluster:
        yield Road(cluster, cluster.home / "home")


def test_a_switch_and_its_taking_back_lose_nothing_and_say_nothing_twice(road: Road) -> None:
    old, new = road.outcome(NAME), road.outcome(road.replayed)
    span = Window(FIRST_DAY_MS, FIRST_DAY_MS + 3_600_000)
    with road.worker(road.old) as worker:
        road.day()
        road.day()
        wait_until(lambda: worker.assert_runs() and old.holds_all() and road.closed(1), "two days")
        exclude(load_pipeline(str(road.old)).pipeline, str(old.uri), span, reason="a test", by="ann")
        road.answered("replay", road.new.name, "--against", road.old.name)
        road.day()  # after the replay, and perhaps not all of it before the switch
        told = road.answered(
            "switch", road.new.name, "--against", road.old.name, "--reason", "long haul is 700 miles"
        )
        assert (told["before"], told["to"], told["epoch"]) == (NAME, road.replayed, 1)
        assert worker.exit_code() != 0, "who was started for the other dataset ends"
        assert "start the worker" in worker.log().lower()
    assert live_dataset(road.home / "dataset", NAME)[0].name == road.replayed
    assert [each.span for each in excluded_at(str(new.uri))] == [span]
    with pytest.raises(SwitchedAway, match="Start the worker with that file"):
        refuse_others(road.home / "dataset", NAME, load_pipeline(str(road.old)).sha256)
    ended_at = old.version()
    with road.worker(road.new) as worker:
        wait_until(lambda: worker.assert_runs() and new.position(MAIN, 0) > 0, "it reads on")
        worker.kill()
        worker.start(("after a commit", 1, "SIGKILL"))
        road.day()
        wait_until(worker.has_ended, "it dies behind a commit")
        worker.start()
        road.day()
        wait_until(
            lambda: worker.assert_runs() and new.holds_all() and road.closed(4), "five days", within_s=90
        )
        assert_exactly_once(new)
        assert old.version() == ended_at, "nothing is committed to it any more"
        long_haul = new.rows().filter(pl.col("_tags").list.contains("long_haul"))
        assert long_haul.get_column("distance").min() < 1_500  # type: ignore[operator]
        told = road.answered(
            "switch", road.old.name, "--against", road.new.name, "--back", "--reason", "it was better before"
        )
        assert (told["before"], told["to"], told["epoch"]) == (road.replayed, NAME, 2)
        wait_until(worker.has_ended, "it ends")
    with road.worker(road.old) as worker:
        road.day()
        wait_until(lambda: worker.assert_runs() and old.holds_all() and road.closed(road.days), "six days")
        flown = old.rows().filter(pl.col("_source") == MAIN).get_column("flight_id").to_list()
        wait_until(lambda: worker.assert_runs() and set(road.featured()) >= set(flown), "all handed out")
        assert worker.end() == 0
    assert_exactly_once(old)
    switches = {s.epoch: s for s in road.said(DatasetSwitched)}.values()
    assert [(s.epoch, s.before, s.dataset) for s in switches] == [
        (1, NAME, road.replayed),
        (2, road.replayed, NAME),
    ]
    # Each window was decided on once, by whichever dataset was live when it closed.
    closings = {c.event_id(): c for c in road.said(WindowClosed)}
    assert len({c.window for c in closings.values()}) == len(closings) == road.days
    by_dataset = Counter(Path(c.dataset_uri).name for c in closings.values())
    assert {NAME, road.replayed} <= by_dataset.keys(), by_dataset
    assert len({d.event_id() for d in road.said(Decision)}) == len(closings)
    for closed in closings.values():
        rows = Dataset(closed.dataset_uri).rows(
            MAIN, version=closed.dataset_version, start_ms=closed.window.start_ms, end_ms=closed.window.end_ms
        )
        assert rows.height == closed.summary.rows
    # Each flight whose time has passed was handed out for prediction; a crash may do that twice, by one id.
    envelopes = {e.id: e for _, e in road.cluster.read(topics.FEATURES.name)}
    frames = [pl.read_ipc_stream(e.data) for e in envelopes.values()]
    featured = Counter(key for frame in frames for key in frame.get_column("flight_id").to_list())
    assert [key for key, count in featured.items() if count > 1] == []
    assert sorted(featured) == sorted(flown)


def test_a_switch_that_was_broken_off_lets_no_worker_begin_and_goes_on(road: Road) -> None:
    dataset_dir, old, new = road.home / "dataset", load_pipeline(str(road.old)), load_pipeline(str(road.new))
    with pytest.raises(NothingToSwitch, match="no dataset nowhere"):
        fence(old.pipeline, dataset_dir, to="nowhere", partitions=4, rules_sha256="", reason="r", by="ann")
    with pytest.raises(NothingToSwitch, match="is the live dataset"):
        fence(old.pipeline, dataset_dir, to=NAME, partitions=4, rules_sha256="", reason="r", by="ann")
    # As if it were killed behind the commit: the rest is not announced.
    half = fence(
        old.pipeline,
        dataset_dir,
        to=road.replayed,
        partitions=4,
        rules_sha256=new.sha256,
        reason="once more",
        by="ann",
    )
    assert half.epoch == 3
    with road.worker(road.new) as worker:
        assert worker.exit_code() != 0
        assert "is half made" in worker.log()
    told = road.answered("switch", road.new.name, "--against", road.old.name, "--reason", "once more")
    assert told["epoch"] == 3
    with road.worker(road.new) as worker:
        # The dataset may hold all already: that alone does not say that the worker can be asked to end.
        wait_until(lambda: worker.assert_runs() and "Starting..." in worker.log(), "it has begun")
        wait_until(lambda: worker.assert_runs() and road.outcome(road.replayed).holds_all(), "it runs")
        assert worker.end() == 0
    assert_exactly_once(road.outcome(road.replayed))
    # The other way round the commit is in the replayed dataset first: then the name's does not tell yet.
    half = fence(
        new.pipeline, dataset_dir, to=NAME, partitions=4, rules_sha256=old.sha256, reason="back", by="ann"
    )
    assert live_dataset(dataset_dir, NAME)[0].name == road.replayed
    with pytest.raises(SwitchedAway, match="is half made"):
        refuse_others(dataset_dir, NAME, new.sha256)
    told = road.answered("switch", road.old.name, "--against", road.new.name, "--back", "--reason", "back")
    assert told["epoch"] == half.epoch == 4
    refuse_others(dataset_dir, NAME, old.sha256)
    assert {s.epoch for s in road.said(DatasetSwitched)} == {1, 2, 3, 4}


def test_a_live_dataset_that_is_not_there_is_not_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / f"{NAME}.py"
    file.write_text(PIPELINE.format(name=NAME))
    old = load_pipeline(str(file))
    for folder in (NAME, f"{NAME}@12345678"):
        Ledger(tmp_path / folder, dataset_schema(old.pipeline))
    to = f"{NAME}@12345678"
    fence(old.pipeline, tmp_path, to=to, partitions=4, rules_sha256=old.sha256, reason="r", by="ann")
    refuse_others(tmp_path, NAME, old.sha256)
    (tmp_path / to).rename(tmp_path / "elsewhere")
    with pytest.raises(SwitchedAway, match="is not there: restore it"):
        refuse_others(tmp_path, NAME, old.sha256)


def test_a_worker_that_was_ended_by_a_switch_goes_on_by_the_file_with_its_rules(tmp_path: Path) -> None:
    old_file, new_file = tmp_path / f"{NAME}.py", tmp_path / "other.py"
    old_file.write_text(PIPELINE.format(name=NAME))
    new_file.write_text(PIPELINE.format(name=NAME).replace("1_500", "700"))
    old, new = load_pipeline(str(old_file)), load_pipeline(str(new_file))
    to, back = version_name(new), {"to": NAME, "rules_sha256": old.sha256, "rules": old_file}
    for folder in (NAME, to):
        Ledger(tmp_path / folder, dataset_schema(old.pipeline))
    assert goes_on_by(tmp_path, NAME, old_file, since=0) is None
    forth = {"to": to, "rules_sha256": new.sha256, "rules": new_file}
    fence(old.pipeline, tmp_path, partitions=4, reason="r", by="ann", **forth)
    assert goes_on_by(tmp_path, NAME, old_file, since=0) == (1, new_file)
    assert goes_on_by(tmp_path, NAME, old_file, since=1) is None
    half = fence(new.pipeline, tmp_path, partitions=4, reason="r", by="ann", **back)
    assert goes_on_by(tmp_path, NAME, new_file, since=1) == (2, None), "the name's dataset does not tell yet"
    point(old.pipeline, tmp_path, half)
    assert goes_on_by(tmp_path, NAME, new_file, since=1) == (2, old_file)
    fence(old.pipeline, tmp_path, partitions=4, reason="r", by="ann", **forth)
    # Whoever edits the file in place goes on by the very same.
    old_file.write_bytes(new_file.read_bytes())
    assert goes_on_by(tmp_path, NAME, old_file, since=2) == (3, old_file)
    for file in (old_file, new_file):
        file.write_text("# other rules\n")
    with pytest.raises(SwitchedAway, match=f"start again by the file whose SHA-256 is {new.sha256[:8]}"):
        goes_on_by(tmp_path, NAME, old_file, since=2)
