"""Rows are tagged by a published model, and their commit says by which version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.client.load import LoadedModel, load
from schemas.errors import InvalidConfiguration
from schemas.model import Field, ModelAdopted
from streams.by_model import Following
from streams.check.pipeline import problems
from streams.ingest import Ingest
from streams.pipeline import Pipeline, Source
from streams.tag import ByModel, Tag, by_model
from streams.transport.frame import Frame
from streams.window import Pane, Tumbling
from tests.client_fixtures import Cluster, published, serving, weights
from tests.stream_fixtures import frame_of

NOW_MS = 1_764_000_000_000


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    at: int
    carrier: str | None
    distance: float | None


EVERY: tuple[Any, ...] = (("UA", 1400.0), ("AA", None), (None, 300.0), ("B6", 9_000.0), ("zz", -1.0))


def pipeline(*tags: ByModel | Tag) -> Pipeline:
    return Pipeline(
        name="asked",
        source=Source("asked", schema=Asked, event_time="at", key="id"),
        tag=tags,
        window=Tumbling("1h"),
    )


def mistakes(declared: Pipeline) -> list[str]:
    told = [problem.text for problem in problems(declared)]
    return [text for text in told if "is not declared in schemas/topics.py" not in text]


def frame() -> Frame:
    told = [{"id": str(i), "at": i, "carrier": c, "distance": d} for i, (c, d) in enumerate(EVERY)]
    return frame_of([json.dumps(each).encode() for each in told], topic="asked")


class Held:
    def __init__(self, **models: LoadedModel) -> None:
        self.models = models

    def current(self, name: str) -> LoadedModel | None:
        return self.models.get(name)


def model(seed: int, version: int, **changes: Any) -> LoadedModel:
    content = weights(seed)
    return load(published("risk", version, content, store="http://x/", **changes).manifest, content)


def answered(held: LoadedModel) -> list[float]:
    columns = {"carrier": [c for c, _ in EVERY], "distance": [d for _, d in EVERY]}
    return [float(chance) for chance in held.predict(columns)]


def test_rows_that_the_model_gives_the_chance_carry_the_tag_and_the_commit_says_the_version() -> None:
    held = model(1, 7)
    chances = answered(held)
    above = sorted(chances)[2]
    tags = (Tag("far", pl.col("distance") > 5_000), by_model("risky", "risk", above=above))
    prepared = Ingest(pipeline(*tags), models=Held(risk=held)).prepare([frame()], now_ms=NOW_MS)
    far = [False, False, False, True, False]
    expected = [
        [*(["far"] if is_far else []), *(["risky"] if chance >= above else [])]
        for is_far, chance in zip(far, chances, strict=True)
    ]
    assert prepared.rows.get_column("_tags").to_list() == expected
    assert prepared.accounts[Pane(0)].tags == {"far": 1, "risky": 3}
    assert prepared.metadata()["models"] == {"risky": {"model": "risk", "version": 7}}


def test_a_model_that_is_not_there_or_asks_for_more_than_the_row_has_tags_nothing_and_it_is_said() -> None:
    tag = by_model("risky", "risk", above=0.0)
    none = Ingest(pipeline(tag)).prepare([frame()], now_ms=NOW_MS)
    assert none.rows.get_column("_tags").to_list() == [[]] * len(EVERY)
    assert none.metadata()["models"]["risky"]["version"] is None
    inputs = [Field(name=n, type="float") for n in ("distance", "weather")]
    greedy = model(1, 2, inputs=inputs, example={"distance": 1.0, "weather": 1.0, "carrier": "UA"})
    more = Ingest(pipeline(tag), models=Held(risk=greedy)).prepare([frame()], now_ms=NOW_MS)
    assert more.rows.get_column("_tags").to_list() == [[]] * len(EVERY)
    assert "weather" in more.metadata()["models"]["risky"]["why"]
    assert "models" not in Ingest(pipeline()).prepare([frame()], now_ms=NOW_MS).metadata()


def test_a_tag_by_model_is_checked_like_any_other() -> None:
    assert not mistakes(pipeline(by_model("risky", "risk", above=0.5)))
    twice = mistakes(pipeline(by_model("risky", "a", above=0.5), by_model("risky", "b", above=0.5)))
    assert any("declared twice" in problem for problem in twice)
    with pytest.raises(InvalidConfiguration, match="no chance"):
        by_model("risky", "risk", above=1.5)
    with pytest.raises(InvalidConfiguration, match=r"worker\.model_stores"):
        Following(["risk"], client={}, stores=[], service="w", cache_dir=Path("x"))


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


async def test_the_worker_follows_the_model_and_the_next_batch_is_tagged_by_the_next_version(
    cluster: Cluster, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("risk")
    async with serving(tmp_path / "store") as store:
        contents = {version: weights(version) for version in (1, 2)}
        for content in contents.values():
            store.put(content)
        await cluster.say(published(name, 1, contents[1], store=store.url))
        following = Following(
            [name],
            client={"bootstrap_servers": cluster.bootstrap_servers},
            stores=[store.url],
            service="worker-of-asked",
            cache_dir=tmp_path / "cache",
        )
        await following.start()
        try:
            ingest = Ingest(pipeline(by_model("risky", name, above=0.0)), models=following)
            first = await asyncio.to_thread(ingest.prepare, [frame()], now_ms=NOW_MS)
            assert first.metadata()["models"] == {"risky": {"model": name, "version": 1}}
            assert first.rows.get_column("_tags").to_list() == [["risky"]] * len(EVERY)
            await cluster.say(published(name, 2, contents[2], store=store.url))
            await cluster.hear(ModelAdopted, name=name, version=2)
            second = await asyncio.to_thread(ingest.prepare, [frame()], now_ms=NOW_MS)
            assert second.metadata()["models"] == {"risky": {"model": name, "version": 2}}
        finally:
            await following.stop()
