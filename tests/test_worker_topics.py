"""A topic under a worker's feet: it is given partitions, its records expire, it is made anew."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.structs import TopicPartition

from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from schemas import topics
from schemas.alert import AlertRaised
from schemas.envelope import unwrap_as
from schemas.topics import WATERMARK_HEADER
from tests.worker_fixtures import (
    Cluster,
    Outcome,
    Sent,
    Worker,
    assert_exactly_once,
    flights,
    heartbeats,
    wait_until,
)

MAIN = topics.FLIGHTS_SCHEDULED.name


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("topics")) as cluster:
        yield cluster


def ask(cluster: Cluster, what: str, argument: Any) -> None:
    async def do() -> None:
        admin = AIOKafkaAdminClient(**cluster.connection.client_arguments())
        await admin.start()
        try:
            await getattr(admin, what)(argument)
        finally:
            await admin.close()

    asyncio.run(do())


def alerts(cluster: Cluster, pipeline: str) -> list[AlertRaised]:
    """Those of a pipeline, repeats by id left out."""
    found = cluster.read(topics.ALERTS.name, pipeline=pipeline)
    return list({e.id: unwrap_as(e, AlertRaised) for _, e in found}.values())


def test_partitions_that_are_added_to_a_live_topic_are_read_and_count_for_the_watermark(
    cluster: Cluster, tmp_path: Path
) -> None:
    settings = {"TIDEMILL_WORKER__METADATA_MAX_AGE_MS": "1000"}
    with Worker(cluster, tmp_path / "wider", "wider", settings=settings) as worker:
        outcome = Outcome(cluster, worker.home, "wider")
        cluster.push(flights(1))
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "a day in the dataset")
        ask(cluster, "create_partitions", {MAIN: NewPartitions(total_count=6)})
        second = flights(2, start=1)
        moved = [Sent(s.topic, 4 + n % 2, s.key, s.value) for n, s in enumerate(second) if s.topic == MAIN]
        cluster.push(moved)
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "the new partitions' events")
        cluster.push([s for s in second if s.topic != MAIN])
        # All but the newest partition say that the two days are over: it may still bring some of them.
        after_ms = FIRST_DAY_MS + 3 * DAY_MS
        said = ((WATERMARK_HEADER, str(after_ms).encode()),)
        cluster.push([*heartbeats(after_ms), Sent(MAIN, 4, None, b"", said, "heartbeat")])
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "the heartbeats")
        second_day = f"wider/{FIRST_DAY_MS + DAY_MS}-{FIRST_DAY_MS + 2 * DAY_MS}/closed"
        assert second_day not in {e.id for _, e in outcome.announced()}
        cluster.push([Sent(MAIN, 5, None, b"", said, "heartbeat")])
        wait_until(
            lambda: worker.assert_runs() and second_day in {e.id for _, e in outcome.announced()},
            "the window closes once the newest partition has passed it",
        )
        assert worker.end() == 0
    assert_exactly_once(outcome)


def test_records_that_expired_unread_stop_the_worker_until_a_person_accepts_the_gap(
    cluster: Cluster, tmp_path: Path
) -> None:
    worker = Worker(cluster, tmp_path / "gap", "gap")
    outcome = Outcome(cluster, worker.home, "gap")
    with worker:
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "what was there")
        assert worker.end() == 0
        at = outcome.position(MAIN, 2)
        third = [s for s in flights(3, start=2) if (s.topic, s.partition) == (MAIN, 2)]
        cluster.push(third)
        first = at + 10
        ask(cluster, "delete_records", {TopicPartition(MAIN, 2): RecordsToDelete(before_offset=first)})
        version = outcome.version()
        assert worker.start().exit_code() not in (0, None)
        assert "10 records expired unread" in worker.log()
        assert "accept-gap" in worker.log()
        (alert,) = alerts(cluster, "gap")
        assert (alert.kind, alert.topic, alert.partition) == ("records_expired", MAIN, 2)
        assert (alert.stands_at, alert.first, alert.end) == (at, first, at + len(third))
        assert any("accept-gap" in choice for choice in alert.choices)
        assert outcome.version() == version, "nothing was decided for the operator"

        decided = accept(worker, 2)
        assert decided.returncode == 0, decided.stderr
        said = json.loads(decided.stdout)
        assert (said["from"], said["next"], said["decided_by"]) == (at, first, "somebody")
        recorded = outcome.dataset.commit(said["version"]).metadata
        assert recorded["skipped"] == {f"{MAIN}/2": [at, first]}
        assert recorded["decided_by"] == "somebody"
        assert accept(worker, 2).returncode != 0, "there is no gap any more"

        for offset in range(at, first):
            del cluster.pushed[MAIN, 2, offset]
        worker.start()
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "it goes on behind the gap")
        assert worker.end() == 0
    assert_exactly_once(outcome)


def accept(worker: Worker, partition: int) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "infra.command",
        "dataset",
        "accept-gap",
        "--yes",
        "--json",
        "--by",
        "somebody",
    ]
    named = {
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": worker.bootstrap_servers,
        "TIDEMILL_PATHS__HOME": str(worker.home),
        "TIDEMILL_WORKER__PIPELINE": str(worker.pipeline_file),
    }
    options = ["--yes", "--json", "--by", "somebody", "--topic", MAIN, "--partition", str(partition)]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, env={**os.environ, **named}
    )


def test_a_topic_made_anew_stops_the_worker_and_no_gap_can_be_accepted_there(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Last of this file: it deletes a topic that the others read."""
    home = tmp_path / "anew"
    outcome = Outcome(cluster, home, "anew")
    with Worker(cluster, home, "anew") as worker:
        wait_until(lambda: worker.assert_runs() and outcome.version() > 0, "a commit", within_s=90)
        wait_until(
            lambda: worker.assert_runs() and outcome.position(MAIN, 1) > 0, "that partition", within_s=90
        )
        version = outcome.version()
        cluster.make_anew(topics.FLIGHTS_SCHEDULED)
        assert worker.exit_code() not in (0, None)
        assert "made anew" in worker.log()
        assert "give the pipeline a new name" in worker.log()
        assert worker.start().exit_code() not in (0, None), "nor does it start again as if nothing were"
        # Its two new partitions are gone, and the others are empty: whichever is seen first.
        kinds = {alert.kind for alert in alerts(cluster, "anew")}
        assert kinds <= {"topic_made_anew", "partition_gone"}
        assert kinds
        refused = accept(worker, 1)
        assert refused.returncode == 1
        assert "no gap to accept" in refused.stderr.replace("\n", " ")
        assert "new name" in refused.stderr
    assert outcome.version() - version <= 1, "nothing of the new topic was taken for the old one's"
