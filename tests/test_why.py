"""`tidemill why` answers from the events: what every condition saw, and what came of a yes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.why import NothingKnown, Told, why, why_not
from schemas import topics
from schemas.contract import Announcement
from schemas.decision import Decision, Evaluation
from schemas.envelope import wrap
from schemas.examples import announced
from schemas.job import JobAnswered, JobFailed, JobMerged, JobRequested, JobSkipped, JobStarted
from schemas.model import ModelPublished, ModelRefused
from schemas.window import Window

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
# Days that begin at midnight in New York, 1 January 2013 the first.
FIRST_MS = 1_357_016_400_000

EXAMPLES = {type(each): each for each in announced()}


def decision(day: int, *, verdict: str = "no", reason: str = "every(windows=7): 3 of 7 windows") -> Decision:
    window = Window(FIRST_MS + day * DAY_MS, FIRST_MS + (day + 1) * DAY_MS)
    return msgspec.structs.replace(
        EXAMPLES[Decision],  # type: ignore[arg-type]
        window=window,
        verdict=verdict,
        reason=reason,
        job_id=f"job-{day}" if verdict == "yes" else None,
        training=None,
    )


def job(day: int) -> JobRequested:
    return msgspec.structs.replace(EXAMPLES[JobRequested], job_id=f"job-{day}")  # type: ignore[arg-type]


def told(*said: Announcement) -> Told:
    heard = Told()
    for each in said:
        heard.take(each)
    return heard


def published(day: int) -> ModelPublished:
    example: ModelPublished = EXAMPLES[ModelPublished]  # type: ignore[assignment]
    lineage = msgspec.structs.replace(
        example.manifest.lineage, job_id=f"job-{day}", decision_id=decision(day).event_id()
    )
    return ModelPublished(name="flights", manifest=msgspec.structs.replace(example.manifest, lineage=lineage))


def test_a_model_is_explained_by_its_decision_its_training_and_its_gate() -> None:
    heard = told(
        decision(3), decision(6, verdict="yes", reason="drift(): wind is .1 off"), job(6), published(6)
    )
    answer = why(heard, "flights")
    assert answer["version"] == 2
    assert answer["challenger"]["auc"] == 0.771
    assert answer["champion"]["auc"] == 0.752
    assert answer["decision"]["window"] == {"start": "2013-01-07T05:00:00Z", "end": "2013-01-08T05:00:00Z"}
    assert answer["decision"]["reason"] == "drift(): wind is .1 off"
    assert [e["condition"] for e in answer["decision"]["evaluations"]] == ["every(windows=7)", "drift()"]
    assert answer["decision"]["outcome"] == "job job-6 became version 2 of flights"


def test_a_day_without_a_new_model_tells_what_was_decided_on_each_of_its_windows() -> None:
    heard = told(*(decision(day) for day in range(5)), job(9))
    # 3 January UTC holds the end of one New York day and most of the next.
    accounts = why_not(heard, "flights", "2013-01-03")
    assert [a["window"]["start"] for a in accounts] == ["2013-01-02T05:00:00Z", "2013-01-03T05:00:00Z"]
    assert {a["verdict"] for a in accounts} == {"no"}
    assert accounts[0]["reason"] == "every(windows=7): 3 of 7 windows"
    assert accounts[0]["outcome"] == "no training was asked for"
    [at_noon] = why_not(heard, "flights", "2013-01-03T12:00-05:00")
    assert at_noon == accounts[1]


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ([], "job job-1 waits for a trainer"),
        ([EXAMPLES[JobStarted]], "job job-1 is in training on cpu"),
        ([EXAMPLES[JobSkipped]], "job job-1 was skipped: 412 labelled rows, and the job asks for 1000"),
        ([EXAMPLES[JobFailed]], "job job-1 failed: the process ended with signal 9"),
        (
            [EXAMPLES[JobAnswered]],
            "job job-1 asked for a training that job flights-19ab3c-retrained had done already",
        ),
        (
            [EXAMPLES[JobMerged]],
            "job job-1 was still waiting when job flights-20130110T0500 asked for the same on newer data",
        ),
        (
            [EXAMPLES[ModelRefused]],
            f"job job-1 trained a model that the gate refused: {EXAMPLES[ModelRefused].reason}",  # type: ignore[attr-defined]
        ),
    ],
)
def test_a_yes_that_became_no_model_says_where_it_ended(said: list[Announcement], outcome: str) -> None:
    of_it = [msgspec.structs.replace(each, job_id="job-1") for each in said]
    heard = told(decision(1, verdict="yes"), job(1), *of_it)
    [account] = why_not(heard, "flights", "2013-01-02T12:00")
    assert (account["verdict"], account["outcome"]) == ("yes", outcome)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda t: why(t, "trains"),
            "no event tells of a model 'trains'; models and pipelines known: flights",
        ),
        (lambda t: why(t, "flights", version=9), "has versions 2 to 2, no 9"),
        (lambda t: why_not(t, "flights", "2014-01-01"), "its windows go from 2013-01-02T05:00:00Z to"),
        (lambda t: why_not(t, "flights", "Tuesday"), "'Tuesday' is no date; write 2013-01-08"),
        (lambda t: why(replace(t, published=[]), "flights"), "the newest decision is no: every(windows=7)"),
    ],
)
def test_what_the_events_do_not_tell_is_said_with_what_they_do(ask, says: str) -> None:
    with pytest.raises(NothingKnown) as caught:
        ask(told(decision(1), job(1), published(1)))
    assert says in str(caught.value)


def test_the_command_answers_from_a_real_cluster(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    name = f"why-{secrets.token_hex(4)}"
    unsaid = Evaluation(
        condition="drift()",
        fired=False,
        evaluated=False,
        score=None,
        threshold=0.02,
        reason="no reference yet",
    )
    said = [
        msgspec.structs.replace(
            decision(day), pipeline=name, verdict="not_evaluated", evaluations=[unsaid], reason="no reference"
        )
        for day in (1, 1, 2)  # an announcement may come twice
    ]

    async def announce() -> None:
        connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
        await ensure(topics.TOPICS, connection)
        async with AIOKafkaProducer(**connection.client_arguments()) as producer:
            for each in said:
                key, value, headers = wrap(each, source="/test", time_ms=0).record()
                await producer.send_and_wait(topics.DECISIONS.name, value, key=key, headers=headers)

    asyncio.run(announce())
    environment = {
        **os.environ,
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TIDEMILL_PATHS__HOME": str(tmp_path),
        "COLUMNS": "160",
    }

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.command", "why", name, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    answer = json.loads(ask("--not", "2013-01-02T12:00", "--json").stdout)
    assert [d["verdict"] for d in answer["decisions"]] == ["not_evaluated"]
    assert answer["decisions"][0]["evaluations"][0]["evaluated"] is False
    shown = ask("--not", "2013-01-02")
    assert "not evaluated" in shown.stdout
    assert "cannot say" in shown.stdout
    assert "no reference yet" in shown.stdout
    unknown = ask()
    assert unknown.returncode == 1
    assert "has been published yet" in unknown.stderr
    assert "Traceback" not in unknown.stderr
