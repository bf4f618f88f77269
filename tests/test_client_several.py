"""Several models by one client: shared connections, and no model that holds the others up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.client import ModelFollowers, announce, log
from schemas.client.turns import Turns
from schemas.errors import InvalidConfiguration
from schemas.model import AdoptionRefused, ModelAdopted
from tests.client_fixtures import QUESTION, Cluster, Store, answers, published, serving, weights

CONTENTS = {version: weights(version) for version in (1, 2, 3)}


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        for content in CONTENTS.values():
            store.put(content)
        yield store


def followers(names: Any, address: str, store: Store, cache: Path, **more: Any) -> ModelFollowers:
    client = {"bootstrap_servers": address}
    return ModelFollowers(
        names, client=client, stores=[store.url], service="display", cache_dir=cache, **more
    )


async def test_a_bad_model_and_one_whose_store_hangs_hold_no_other_up(
    cluster: Cluster,
    store: Store,
    topic: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[type] = []

    class Consumer(AIOKafkaConsumer):
        async def start(self) -> None:
            made.append(AIOKafkaConsumer)
            await super().start()

    class Producer(AIOKafkaProducer):
        async def start(self) -> None:
            made.append(AIOKafkaProducer)
            await super().start()

    monkeypatch.setattr(log, "AIOKafkaConsumer", Consumer)
    monkeypatch.setattr(announce, "AIOKafkaProducer", Producer)
    names = [topic(each) for each in ("good", "bad", "hanging", "pinned")]
    good, bad, hanging, pinned = names
    nan, slow, asked, let_go = weights(0, fill=float("nan")), weights(9), asyncio.Event(), asyncio.Event()

    async def hangs(_: web.Request, content: bytes) -> web.StreamResponse:
        asked.set()
        await let_go.wait()
        return web.Response(body=content)

    store.put(nan)
    store.faults[store.put(slow)] = hangs
    for version in (1, 2):
        await cluster.say(published(pinned, version, CONTENTS[version], store=store.url))
    address = cluster.bootstrap_servers
    async with followers(names, address, store, tmp_path, own={pinned: {"pin_version": 1}}) as models:
        assert list(models) == names
        await cluster.say(published(hanging, 1, slow, store=store.url))
        await asyncio.wait_for(asked.wait(), 30)
        await cluster.say(published(bad, 1, nan, store=store.url))
        for version, content in CONTENTS.items():
            await cluster.say(published(good, version, content, store=store.url))
            await cluster.hear(ModelAdopted, name=good, version=version)
            current = models[good].current
            assert current is not None
            assert current.predict(QUESTION).tolist() == pytest.approx(answers(content))
        (refused,) = await cluster.hear(AdoptionRefused, name=bad)
        assert "not finite" in refused.reason
        assert models[bad].current is models[hanging].current is None
        held = await asyncio.wait_for(models[pinned].ready(), 30)
        assert held.predict(QUESTION).tolist() == pytest.approx(answers(CONTENTS[1]))
        let_go.set()
        await cluster.hear(ModelAdopted, name=hanging)
        await asyncio.wait_for(models.settled(), 30)
    assert sorted(made, key=str) == [AIOKafkaConsumer, AIOKafkaProducer]
    await cluster.listen_on()
    mine = [e for name in names for e in cluster.so_far(ModelAdopted, name=name)]
    assert [(e.name, e.version) for e in mine] == [
        (good, 1),
        (good, 2),
        (good, 3),
        (hanging, 1),
        (pinned, 1),
    ]
    assert {e.service for e in mine} == {"display"}


async def test_a_turn_that_lasts_too_long_is_given_to_the_next_and_only_once() -> None:
    turns, order = Turns(1, longest_s=1.0), list[str]()
    leave = {name: asyncio.Event() for name in "abc"}

    async def take(name: str) -> None:
        async with turns.turn():
            order.append(name)
            await leave[name].wait()

    tasks = {name: asyncio.create_task(take(name)) for name in "abc"}
    await asyncio.sleep(0)
    assert order == ["a"]
    async with asyncio.timeout(10):
        while order != ["a", "b"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    # What "a" held was given back by the clock: its end frees no second turn.
    leave["a"].set()
    await tasks["a"]
    await asyncio.sleep(0)
    assert order == ["a", "b"]
    leave["b"].set()
    await tasks["b"]
    await asyncio.sleep(0)
    assert order == ["a", "b", "c"]
    leave["c"].set()
    await tasks["c"]


async def test_names_and_choices_that_fit_nothing_are_mistakes_of_configuration(tmp_path: Path) -> None:
    store = Store(tmp_path, url="http://127.0.0.1:9/")
    for names in ("flights", []):
        with pytest.raises(InvalidConfiguration, match="name the models"):
            followers(names, "127.0.0.1:9", store, tmp_path)
    with pytest.raises(InvalidConfiguration, match="choices are made for gates"):
        followers(["flights"], "127.0.0.1:9", store, tmp_path, own={"gates": {"pin_version": 1}})
    misspelt = ModelFollowers(
        ["flights"], client={"bootstrap_server": "x"}, stores=[store.url], service="s", cache_dir=tmp_path
    )
    with pytest.raises(TypeError):
        await misspelt.start()
    assert len(asyncio.all_tasks()) == 1, "what was begun has ended"
