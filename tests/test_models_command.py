"""What people see of models: each version, what the gate found, whose key signed it, who answers with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from io import StringIO
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from infra.command.main import app
from infra.command.models import table
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.model_board import Models
from infra.page.models import ModelNews
from schemas import topics
from schemas.contract import Announcement
from schemas.errors import InvalidConfiguration
from schemas.examples import announced
from schemas.model import (
    AdoptionRefused,
    CurrentModel,
    ModelAdopted,
    ModelFresh,
    ModelPublished,
    ModelStale,
    OverBound,
)
from tests.client_fixtures import canaried, published, rolled_back, weights
from tests.trainer_fixtures import Topics
from trainers.keys import KeyFolder
from trainers.trial import NoCanary

FIRST, SECOND = (published("m", version, weights(version), store="http://x/") for version in (1, 2))


def adopted(event: CurrentModel, service: str, at_ms: int) -> ModelAdopted:
    manifest = event.manifest
    return ModelAdopted(
        name=event.name,
        service=service,
        version=manifest.version,
        sha256=manifest.artifact.sha256,
        previous_version=None,
        adopted_ms=at_ms,
        load_ms=1.0,
    )


def rows(*events: Any) -> list[dict[str, Any]]:
    models = Models()
    for event in events:
        models.note(event, trusted=True)
    return models.rows()


def test_the_account_is_one_whatever_order_its_events_come_in() -> None:
    events = (FIRST, SECOND, adopted(FIRST, "a", 1), adopted(SECOND, "a", 2), adopted(FIRST, "b", 1))
    expected = rows(*events)
    assert [(row["version"], row["live"], row["adopted_by"]) for row in expected] == [
        (2, True, {"a": 2}),
        (1, False, {"b": 1}),
    ]
    assert all(rows(*order, *order) == expected for order in permutations(events))


def stale(event: CurrentModel, service: str, at_ms: int) -> ModelStale:
    return ModelStale(
        name=event.name,
        service=service,
        version=event.manifest.version,
        sha256=event.manifest.artifact.sha256,
        newest_version=event.manifest.version,
        over=[OverBound(bound="age", for_s=600.0, at_most_s=60.0)],
        then="flag",
        since_ms=at_ms,
        noted_ms=at_ms,
    )


def fresh(event: CurrentModel, service: str, at_ms: int) -> ModelFresh:
    return ModelFresh(
        name=event.name,
        service=service,
        version=event.manifest.version,
        sha256=event.manifest.artifact.sha256,
        stale_version=1,
        stale_since_ms=0,
        fresh_ms=at_ms,
    )


def test_where_a_model_is_stale_is_said_until_the_service_says_otherwise_or_begins_anew() -> None:
    went = (adopted(FIRST, "a", 1), stale(FIRST, "a", 2))
    why = "published 10 min ago"
    for events, expected in (
        (went, {"a": why}),
        ((*went, adopted(FIRST, "b", 5)), {"a": why}),
        ((*went, fresh(FIRST, "a", 3)), {}),
        ((*went, fresh(FIRST, "a", 3), stale(FIRST, "a", 4)), {"a": why}),
        ((*went, adopted(FIRST, "a", 3)), {}),
    ):
        for order in permutations(events):
            (row,) = rows(FIRST, *order, *order)
            assert row["stale_at"] == expected
            news = ModelNews()
            for event in (FIRST, *order):
                news.note(event, trusted=True)
            said = news.adoptions()
            assert [each["stale"] for each in said["now"] if each["service"] == "a"] == [
                expected.get("a", "")
            ]
            assert {each["what"] for each in said["history"]} >= {"adopted", "stale"}
    shown = Console(width=200, file=StringIO(), record=True)
    shown.print(table(rows(FIRST, *went)))
    assert f"stale at a: {why}" in shown.export_text()


def test_the_gates_numbers_are_those_of_the_event() -> None:
    event = next(each for each in announced() if isinstance(each, ModelPublished))
    manifest = event.manifest
    assert manifest.comparison is not None
    assert manifest.challenger is not None
    (row,) = rows(event)
    assert row["gate"]["metric"] == manifest.comparison.metric
    assert row["gate"]["low"] == manifest.comparison.overall.low
    assert row["challenger"]["auc"] == manifest.challenger.auc


def test_who_would_not_take_a_version_and_who_went_back_is_said() -> None:
    refused = AdoptionRefused(
        name="m",
        service="a",
        version=2,
        sha256=SECOND.manifest.artifact.sha256,
        kept_version=1,
        reason="too late",
        refused_ms=3,
    )
    back = rolled_back(FIRST, from_version=2, version=3)
    newest, second, _ = rows(FIRST, SECOND, refused, back)
    assert second["refused_by"] == {"a": "too late"}
    assert (newest["live"], newest["weights_of_version"], newest["reason"]) == (True, 1, back.reason)


def test_the_command_tells_forgeries_from_models(
    kafka: EmbeddedBroker, topic: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    name, keys = topic("model"), KeyFolder(tmp_path / "keys")
    keys.ensure()
    (key,) = keys.listed()
    signed = keys.signed(published(name, 1, weights(1), store="http://x/"))
    forged = published(name, 7, weights(2), store="http://x/")

    async def say() -> None:
        await ensure(topics.TOPICS, Connection(bootstrap_servers=kafka.bootstrap_servers))
        async with Topics(kafka.bootstrap_servers) as seen:
            for event in (forged, signed, adopted(signed, "scoring", 5)):
                await seen.say(topics.MODELS.name, event)

    asyncio.run(say())
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(tmp_path))
    monkeypatch.setenv("TIDEMILL_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    found = json.loads(CliRunner().invoke(app, ["models", name, "--json"]).stdout)["models"]
    assert [(row["version"], row["live"], row["trusted"], row["signed_by"]) for row in found] == [
        (7, False, False, []),
        (1, True, True, [key.id]),
    ]
    assert found[1]["adopted_by"] == {"scoring": 5}
    shown = CliRunner().invoke(app, ["models", name]).stdout
    assert "1 live" in shown
    assert "scoring" in shown
    assert "nobody (not trusted)" in shown
    unknown = CliRunner().invoke(app, ["models", f"{name}-unknown"])
    assert isinstance(unknown.exception, InvalidConfiguration)
    assert name in str(unknown.exception)


def test_a_trial_is_ended_by_hand_once_with_its_reason(
    kafka: EmbeddedBroker, topic: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, keys = topic("tried"), KeyFolder(tmp_path / "keys")
    keys.ensure()

    async def say(*events: Announcement) -> None:
        await ensure(topics.TOPICS, Connection(bootstrap_servers=kafka.bootstrap_servers))
        async with Topics(kafka.bootstrap_servers) as seen:
            for event in events:
                await seen.say(topics.MODELS.name, event)

    def on_trial(version: int, content: int) -> Announcement:
        return keys.signed(canaried(name, version, weights(content), store="http://x/", beside=1))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["models", *arguments])

    def answer(*arguments: str) -> Any:
        return json.loads(run(*arguments, "--json").stdout.splitlines()[-1])  # others' forgeries are logged

    first = keys.signed(published(name, 1, weights(1), store="http://x/"))
    asyncio.run(say(first, on_trial(2, 2)))
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(tmp_path))
    monkeypatch.setenv("TIDEMILL_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    live = answer(name)["models"][0]
    assert (live["version"], live["canary"]["version"], live["canary"]["state"]) == (1, 2, "on trial")
    assert isinstance(run("canary", name, "--withdraw", "--reason", " ").exception, InvalidConfiguration)

    withdrawn = answer("canary", name, "--withdraw", "--reason", "wrong at night")
    assert withdrawn == {
        "name": name,
        "outcome": "withdrawn",
        "version": 2,
        "reason": "by hand: wrong at night",
    }
    again = run("canary", name, "--promote", "--reason", "after all")
    assert isinstance(again.exception, NoCanary)
    assert f"tidemill models {name}" in str(again.exception)

    asyncio.run(say(on_trial(3, 3)))
    promoted = answer("canary", name, "--promote", "--reason", "sure enough")
    assert (promoted["outcome"], promoted["version"]) == ("promoted", 4)
    rows = answer(name)["models"]
    assert [(row["version"], row["live"], row["trusted"]) for row in rows] == [
        (4, True, True),
        (1, False, True),
    ]
