"""How stale a model may be: the service says it, answers show it, and its begin and end are events."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.client import ModelFollower, StaleModel, StalenessBound
from schemas.client.staleness import Known, next_s, over
from schemas.errors import InvalidConfiguration
from schemas.model import ModelAdopted, ModelFresh, ModelStale
from tests.client_fixtures import Cluster, Store, published, serving, weights

FIRST, SECOND, THIRD = weights(1), weights(2), weights(3)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        for content in (FIRST, SECOND, THIRD):
            store.put(content)
        yield store


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


def following(
    name: str, address: str, store: Store, cache: Path, service: str = "display", **bound: Any
) -> ModelFollower:
    return ModelFollower(
        name,
        client={"bootstrap_servers": address},
        stores=[store.url],
        service=service,
        cache_dir=cache / service,
        staleness=StalenessBound(**bound),
    )


seconds = st.floats(0, 1e9)
bounds = st.none() | st.floats(0.001, 1e9)


@given(age_s=seconds, behind_s=st.none() | seconds, unconfirmed_s=seconds, bound=st.tuples(*[bounds] * 3))
def test_a_model_is_stale_once_a_bound_is_passed_and_not_before(
    age_s: float, behind_s: float | None, unconfirmed_s: float, bound: tuple[float | None, ...]
) -> None:
    chosen = StalenessBound(age_s=bound[0], behind_s=bound[1], unconfirmed_s=bound[2])
    known = Known(age_s, behind_s, unconfirmed_s)
    passed = {each.bound for each in over(known, chosen)}
    values = {"age": age_s, "behind": behind_s, "unconfirmed": unconfirmed_s}
    for kind, at_most_s in zip(values, bound, strict=True):
        value = values[kind]
        assert (kind in passed) == (value is not None and at_most_s is not None and value > at_most_s)
    left_s = next_s(known, chosen)
    if left_s is None:
        bounded = zip(values.values(), bound, strict=True)
        assert len(passed) == sum(None not in each for each in bounded)
    else:
        later_s = left_s * (1 + 1e-9) + 1e-6 * max(age_s, behind_s or 0.0, unconfirmed_s, 1.0)
        later = Known(
            age_s + later_s, None if behind_s is None else behind_s + later_s, unconfirmed_s + later_s
        )
        assert len(over(later, chosen)) > len(passed)


@pytest.mark.parametrize(
    "wrong", [{"age_s": 0}, {"behind_s": -1.0}, {"unconfirmed_s": float("nan")}, {"then": "hope"}]
)
def test_a_bound_that_is_none_is_a_mistake_of_configuration(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration, match=next(iter(wrong)).replace("then", "hope")):
        StalenessBound(**wrong)


async def test_a_service_that_is_behind_serves_flags_or_waits_as_it_chose(
    cluster: Cluster, store: Store, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name, given_out = topic("model"), asyncio.Event()

    async def once_it_is_let(_: web.Request, content: bytes) -> web.StreamResponse:
        await given_out.wait()
        return web.Response(body=content)

    store.faults[store.put(SECOND)] = once_it_is_let

    def one(then: str, service: str = "", **more: Any) -> ModelFollower:
        servers, service = cluster.bootstrap_servers, service or then
        return following(name, servers, store, tmp_path, service, behind_s=0.3, then=then, **more)

    async with (
        one("serve") as serves,
        one("flag") as flags,
        one("wait") as waits,
        one("wait", "impatient", patience_s=0.2) as impatient,
    ):
        assert await flags.answering() is None
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await cluster.hear(ModelAdopted, name=name, version=1, count=4)
        answering = await waits.answering()
        assert answering is not None
        assert (answering.model.version, answering.why) == (1, "")
        await cluster.say(published(name, 2, SECOND, store=store.url))
        begun = await cluster.hear(ModelStale, name=name, count=4)
        chosen = {"serve": "serve", "flag": "flag", "wait": "wait", "impatient": "wait"}
        assert {e.service: e.then for e in begun} == chosen
        for event in begun:
            assert (event.version, event.newest_version) == (1, 2)
            assert [each.bound for each in event.over] == ["behind"]
            assert event.since_ms <= event.noted_ms
        answering = await serves.answering()
        assert answering is not None
        assert (answering.model.version, answering.stale) == (1, ())
        assert serves.stale
        answering = await flags.answering()
        assert answering is not None
        assert answering.model.version == 1
        assert answering.why.startswith("a newer version is known for ")
        waiting = asyncio.create_task(waits.answering())
        with pytest.raises(StaleModel, match=f"{name} is stale, and a question waits 0.2 s at most: a newer"):
            await impatient.answering()
        assert not waiting.done()
        given_out.set()
        answering = await asyncio.wait_for(waiting, 30)
        assert answering is not None
        assert (answering.model.version, answering.stale) == (2, ())
        ended = await cluster.hear(ModelFresh, name=name, count=4)
        assert {e.service for e in ended} == set(chosen)
        assert {(e.version, e.stale_version) for e in ended} == {(2, 1)}
        assert flags.stale == ()
    await cluster.listen_on()
    assert len(cluster.so_far(ModelStale, name=name)) == len(cluster.so_far(ModelFresh, name=name)) == 4


async def test_a_model_grows_old_and_a_question_from_its_own_time_is_not_stale(
    cluster: Cluster, store: Store, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name = topic("model")
    now_ms = int(time.time() * 1000)
    long_ago_ms, later_ms = now_ms - 7_200_000, now_ms - 5_400_000
    async with following(name, cluster.bootstrap_servers, store, tmp_path, age_s=3600) as display:
        await cluster.say(published(name, 1, FIRST, store=store.url, published_ms=long_ago_ms))
        (first,) = await cluster.hear(ModelStale, name=name)
        assert [each.bound for each in first.over] == ["age"]
        assert abs(first.since_ms - (long_ago_ms + 3_600_000)) < 60_000
        # Still too old, and another version: that is said anew, and no end of the first's in between.
        await cluster.say(published(name, 2, SECOND, store=store.url, published_ms=later_ms))
        await cluster.hear(ModelStale, name=name, version=2)
        now, then = await display.answering(), await display.answering(later_ms - 1)
        assert now is not None
        assert then is not None
        assert (now.model.version, now.why) == (2, "published 90 min ago")
        assert (then.model.version, then.why) == (1, "")
        await cluster.say(published(name, 3, THIRD, store=store.url))
        (fresh,) = await cluster.hear(ModelFresh, name=name)
        assert (fresh.version, fresh.stale_version) == (3, 2)


async def test_a_cluster_that_does_not_answer_leaves_unconfirmed_what_is_newest(
    kafka: EmbeddedBroker, cluster: Cluster, store: Store, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name, pid = topic("model"), kafka.pid
    async with following(name, cluster.bootstrap_servers, store, tmp_path, unconfirmed_s=2.0) as display:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await cluster.hear(ModelAdopted, name=name)
        # Longer than the bound: an end that nothing moves is confirmed again and again.
        await asyncio.sleep(2.5)
        assert display.stale == ()
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(30):
                while not (answering := await display.answering()) or not answering.stale:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert answering.model.version == 1
        assert answering.why.startswith("the end of the models' log was last confirmed ")
        async with asyncio.timeout(30):
            while display.stale:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        (ended,) = await cluster.hear(ModelFresh, name=name)
        (began,) = cluster.so_far(ModelStale, name=name)
        assert [each.bound for each in began.over] == ["unconfirmed"]
        assert ended.stale_since_ms == began.since_ms < ended.fresh_ms
