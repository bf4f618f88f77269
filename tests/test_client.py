"""The service's client against a real broker and a real store that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.model import ModelAdopted
from tests.client_fixtures import (
    QUESTION,
    Cluster,
    Store,
    answers,
    follower,
    published,
    serving,
    weights,
)


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        yield store


@pytest.fixture
def name(topic: Callable[[str], str]) -> str:
    return topic("model")


async def test_a_published_model_is_adopted_and_answers(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    first, second = weights(1), weights(2)
    store.put(first)
    store.put(second)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, first, store=store.url))
        model = await asyncio.wait_for(following.ready(), 30)
        assert model.version == 1
        assert model.predict(QUESTION).tolist() == pytest.approx(answers(first))
        await cluster.say(published(name, 2, second, store=store.url))
        (adopted,) = await cluster.hear(ModelAdopted, name=name, version=2)
        assert (adopted.previous_version, adopted.service) == (1, following.service)
        assert following.current is not None
        assert following.current.predict(QUESTION).tolist() == pytest.approx(answers(second))
