"""The live model falls off while a real worker runs, is killed and comes back: a training is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from aiokafka import AIOKafkaProducer

from infra.dataset import Dataset
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from schemas import topics
from schemas.decision import Decision
from schemas.envelope import unwrap_as, wrap
from schemas.prediction import Predictions
from streams.live.tally import Tally, assessment_of
from tests.worker_fixtures import (
    PIPELINE,
    Cluster,
    Outcome,
    Worker,
    assert_exactly_once,
    flights,
    heartbeats,
    known,
    wait_until,
)

TIDEMILL = Path(sys.executable).with_name("tidemill")
NAME = "judged"
DAYS, GOOD_DAYS = 6, 4
PATIENCE = "first(windows=2) | quality(baseline=2, minimum_rows=50) & cooldown('3d')"


class Answers:
    """A service's answers to some days' flights, by day: sure of the truth at first, then of its contrary."""

    def __init__(self, days: int) -> None:
        rows = [
            (topic, json.loads(value)) for topic, value in known(days).select("topic", "value").iter_rows()
        ]
        late = {r["flight_id"]: r["arr_delay"] > 15 for t, r in rows if t == topics.FLIGHTS_ARRIVED.name}
        self.by_day: dict[int, list[tuple[str, int, float]]] = {}
        self.labelled: dict[int, int] = {}
        for topic, row in rows:
            day = (row["scheduled"] - FIRST_DAY_MS) // DAY_MS if "scheduled" in row else days
            if topic != topics.FLIGHTS_SCHEDULED.name or day >= days:
                continue
            truth = late.get(row["flight_id"], False)
            chance = 0.8 if truth == (day < GOOD_DAYS) else 0.2
            self.by_day.setdefault(day, []).append((row["flight_id"], row["scheduled"], chance))

    async def publish(self, cluster: Cluster) -> None:
        producer = AIOKafkaProducer(**cluster.connection.client_arguments(), max_request_size=16_777_216)
        await producer.start()
        for day, answers in self.by_day.items():
            keys, times_ms, scores = map(list, zip(*answers, strict=True))
            said = Predictions(
                service="gate", name=NAME, version=1, sha256="0" * 64, features_id=f"{NAME}/{day}", keys=keys,
                times_ms=times_ms, scores=scores, newest_event_ms=max(times_ms), answered_ms=1,
            )  # fmt: skip
            key, value, headers = wrap(said, source="/test", time_ms=1).record()
            await producer.send_and_wait(topics.PREDICTIONS.name, key=key, value=value, headers=headers)
        await producer.stop()


def counted(uri: Path) -> dict[int, Tally]:
    """All that the log has counted, by day."""
    found: dict[int, Tally] = {}
    for record in Dataset(uri).commits():
        said = assessment_of(record.metadata)
        for pane in said.panes if said else ():
            day = (pane.start_ms - FIRST_DAY_MS) // DAY_MS
            found[day] = found.get(day, Tally()) + pane.whole
    return found


def test_a_model_that_falls_off_asks_for_a_training_and_each_answer_counts_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    text = PIPELINE.format(name=NAME).replace("every(windows=2) & labelled(rows=100)", PATIENCE)
    text = text.replace("import every, labelled", "import cooldown, first, quality")
    (home / f"{NAME}.py").write_text(text)
    answers = Answers(DAYS)
    with Cluster(tmp_path) as cluster, Worker(cluster, home, NAME) as worker:
        outcome = Outcome(cluster, home, NAME)
        asyncio.run(answers.publish(cluster))
        for day in range(DAYS):
            cluster.push([*flights(day + 1, start=day), *heartbeats(FIRST_DAY_MS + (day + 1) * DAY_MS)])
            if day == GOOD_DAYS:
                worker.kill()
                worker.start()
            wait_until(lambda: worker.assert_runs() and outcome.holds_all(), f"day {day} in the dataset")
            wait_until(
                lambda day=day: worker.assert_runs() and day in (c := counted(outcome.uri)) and
                c[day].labelled > 0.8 * len(answers.by_day[day]),
                f"the answers of day {day} are judged",
            )  # fmt: skip
        cluster.push(heartbeats(FIRST_DAY_MS + (DAYS + 4) * DAY_MS))
        wait_until(lambda: worker.assert_runs() and len(decided(cluster)) == DAYS, "all windows decided")
        decisions = decided(cluster)
        assert worker.end() == 0
        assert_exactly_once(outcome)
        verdicts = [each.verdict for each in decisions]
        # The second window asks for the first training, and none of the good ones for another.
        assert verdicts[:GOOD_DAYS].count("yes") == 1, verdicts
        assert verdicts[:2] == ["not_evaluated", "yes"], verdicts
        asked = [each for each in decisions[2:] if each.verdict == "yes"]
        assert asked, verdicts
        (part,) = [e for e in asked[0].evaluations if e.condition == "quality()"]
        assert part.fired
        assert part.score is not None
        assert part.threshold is not None
        assert part.score >= part.threshold
        assert part.reference is not None
        assert part.reference.startswith("the first 2 windows of version 1")
        tallies = counted(outcome.uri)
        assert {day: tallies[day].answers for day in range(DAYS)} == {
            day: len(rows) for day, rows in answers.by_day.items()
        }
        labels = outcome.rows().filter(_source=topics.FLIGHTS_ARRIVED.name).get_column("flight_id").to_list()
        for day, rows in answers.by_day.items():
            assert tallies[day].labelled == len({key for key, *_ in rows} & set(labels))
        said = why(cluster, home, asked[0])
        assert "quality()" in said
        assert "log loss has risen by" in said


def decided(cluster: Cluster) -> list[Decision]:
    found = {e.id: unwrap_as(e, Decision) for _, e in cluster.read(topics.DECISIONS.name)}
    return sorted(found.values(), key=lambda each: each.window)


def why(cluster: Cluster, home: Path, decision: Decision) -> str:
    """What `tidemill why` says of that window."""
    at = f"2013-01-{1 + (decision.window.start_ms - FIRST_DAY_MS) // DAY_MS:02d}T12:00"
    done = subprocess.run(
        [TIDEMILL, "why", NAME, "--not", at],
        env={
            **os.environ,
            "TIDEMILL_PATHS__HOME": str(home),
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": cluster.connection.bootstrap_servers,
            "COLUMNS": "300",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
