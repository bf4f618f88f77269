"""The service's client against a real broker and a real store that misbehaves."""

from __future__ import annotations

import asyncio
import errno
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from aiohttp import web

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import client, topics
from schemas.client import ModelFollower, UnfitColumns
from schemas.client.fit import check_fit, check_inputs
from schemas.client.load import LoadedModel
from schemas.client.memory import Memory
from schemas.client.stores import Stores
from schemas.envelope import Envelope
from schemas.errors import InvalidConfiguration
from schemas.examples import announced
from schemas.model import AdoptionRefused, Artifact, Field, ModelAdopted, ModelPublished
from tests.client_fixtures import (
    CONFIG,
    QUESTION,
    Cluster,
    Store,
    answers,
    follower,
    in_float64,
    overflowing,
    published,
    rolled_back,
    serving,
    weights,
)

FIRST = weights(1)


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        store.put(FIRST)
        yield store


@pytest.fixture
def name(topic: Callable[[str], str]) -> str:
    return topic("model")


async def adopted(cluster: Cluster, following: ModelFollower, version: int) -> ModelAdopted:
    (event,) = await cluster.hear(ModelAdopted, name=following.name, version=version)
    assert following.current is not None
    assert following.current.version == version
    return event


async def keeps_the_first(cluster: Cluster, following: ModelFollower, *, version: int = 2) -> str:
    """Version 2 was refused in public, the first still answers, and a third is taken; gives the reason."""
    (event,) = await cluster.hear(AdoptionRefused, name=following.name, version=version)
    assert (event.kept_version, event.service) == (1, following.service)
    assert following.last_refusal == event
    assert following.current is not None
    assert following.current.predict(QUESTION).tolist() == pytest.approx(answers(FIRST))
    return event.reason


def flipped(content: bytes) -> bytes:
    """The last weight's lowest bit is another: same size, still safetensors, another digest."""
    return content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]


async def test_each_newer_version_is_adopted_and_said_so(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    second = weights(2)
    store.put(second)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        assert await asyncio.wait_for(following.settled(), 30) is None
        await cluster.say(published(name, 1, FIRST, store=store.url))
        model = await asyncio.wait_for(following.ready(), 30)
        assert (model.version, model.manifest.name) == (1, name)
        assert model.predict(QUESTION).tolist() == pytest.approx(answers(FIRST))
        await cluster.say(published(name, 2, second, store=store.url))
        event = await adopted(cluster, following, 2)
        assert (event.previous_version, event.service) == (1, following.service)
        assert following.current is not None
        assert following.current.predict(QUESTION).tolist() == pytest.approx(answers(second))


async def test_a_model_of_a_megabyte_is_swapped_in_well_under_a_second(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    config = CONFIG | {"hidden": [448, 512]}
    large = weights(3, config)
    assert 900_000 < len(large) < 1_300_000
    store.put(large)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        said = time.perf_counter()
        await cluster.say(published(name, 2, large, store=store.url, config=config))
        while following.current is None or following.current.version != 2:  # noqa: ASYNC110  (is the thing measured)
            await asyncio.sleep(0.002)
        took_ms = (time.perf_counter() - said) * 1000
        print(f"from event to swap: {took_ms:.0f} ms for {len(large):,} bytes")
        assert took_ms < 1000


async def test_a_broken_download_goes_on_where_it_ended(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    content = weights(2, CONFIG | {"hidden": [448, 512]})
    digest = store.put(content)
    half = len(content) // 2

    async def cut(request: web.Request, content: bytes) -> web.StreamResponse:
        if "range" in request.headers:
            return web.FileResponse(store.folder / f"{digest}.safetensors")
        answer = web.StreamResponse(headers={"content-length": str(len(content))})
        await answer.prepare(request)
        await answer.write(content[:half])
        assert request.transport is not None
        request.transport.close()
        return answer

    store.faults[digest] = cut
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        event = published(name, 1, content, store=store.url, config=CONFIG | {"hidden": [448, 512]})
        await cluster.say(event)
        await adopted(cluster, following, 1)
    (_, whole), (_, rest) = store.requests
    assert whole is None
    begins = re.fullmatch(r"bytes=(\d+)-", str(rest))
    assert begins is not None
    assert 0 < int(begins[1]) <= half


async def test_a_part_left_by_other_bytes_is_thrown_away_and_the_whole_is_fetched(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    digest = store.put(FIRST)
    folder = tmp_path / "cache" / f"model-{name}"
    folder.mkdir(parents=True)
    (folder / f"{digest}.part").write_bytes(b"\0" * 100)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
    assert [asked for _, asked in store.requests] == ["bytes=100-", None]
    assert {each.name for each in folder.iterdir()} == {f"{digest}.safetensors", "adopted.json", ".lock"}


async def answers_with(content: bytes, request: web.Request) -> web.StreamResponse:
    return web.Response(body=content)


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one bit is flipped": (flipped, "ArtifactMismatch.*thrown away unopened"),
    "it is a byte short": (lambda good: good[:-1], "ArtifactMismatch.*gives"),
    "it is a byte long": (lambda good: good + b"\0", "ArtifactMismatch.*gives"),
    "it is a web page": (lambda _: b"<html>", "ArtifactMismatch"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_bytes_that_are_not_those_of_the_event_are_refused_unopened(
    cluster: Cluster, store: Store, name: str, tmp_path: Path, fault: str
) -> None:
    second, third = weights(2), weights(3)
    change, reason = FAULTS[fault]
    store.faults[store.put(second)] = lambda request, content: answers_with(change(content), request)
    store.put(third)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        await cluster.say(published(name, 2, second, store=store.url))
        assert re.match(reason, await keeps_the_first(cluster, following))
        await cluster.say(published(name, 3, third, store=store.url))
        assert (await adopted(cluster, following, 3)).previous_version == 1
    kept = {each.name for each in (tmp_path / "cache" / f"model-{name}").glob("*.*")}
    assert kept == {f"{store.put(content)}.safetensors" for content in (FIRST, third)} | {
        "adopted.json",
        "adopted-before.json",
        ".lock",
    }


async def test_an_endless_answer_is_cut_at_the_promised_size(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    second = weights(2)
    sent = 0

    async def endless(request: web.Request, content: bytes) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"\0" * 65_536)
            sent += 65_536

    store.faults[store.put(second)] = endless
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        await cluster.say(published(name, 2, second, store=store.url))
        assert "gives more bytes" in await keeps_the_first(cluster, following)
    assert sent < 64 * 2**20


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uri": "http://elsewhere.invalid/model.bin"}, "StoreNotAllowed.*elsewhere"),
        ({"uri": "file:///etc/passwd"}, "StoreNotAllowed"),
        ({"uri": "not an address"}, "StoreNotAllowed"),
        ({"size_bytes": 10**12}, "ArtifactMismatch.*at most"),
        ({"format": "pickle"}, "ModelUnusable.*format 'pickle'"),
        ({"format": "../../x"}, "ModelUnusable.*format"),
        ({"architecture": "os.system"}, "ModelUnusable.*architecture 'os.system'"),
    ],
)
async def test_an_event_that_leads_astray_is_refused_before_anything_is_asked(
    cluster: Cluster, store: Store, name: str, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    second = weights(2)
    store.put(second)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        await cluster.say(published(name, 2, second, store=store.url, **changes))
        assert re.match(reason, await keeps_the_first(cluster, following))
    assert len(store.requests) == 1


@pytest.mark.parametrize(
    ("content", "changes", "reason"),
    [
        (b"\x80\x04\x95 pickled", {}, "ModelUnusable.*Error"),
        (b"\xff" * 64, {}, "ModelUnusable.*Error"),
        (weights(2, fill=float("nan")), {}, "ModelUnusable.*not finite"),
        (in_float64(1e300), {}, "ModelUnusable.*not finite"),
        (overflowing(), {}, r"ModelUnusable.*answers its own example with \[nan\]"),
        (weights(2, CONFIG | {"hidden": [24]}), {}, "ModelUnusable.*size mismatch"),
        (weights(2), {"config": CONFIG | {"hidden": [10**9]}}, "ModelUnusable.*asks for more"),
        (weights(2), {"config": {}}, "ModelUnusable.*KeyError"),
        (weights(2), {"example": {}}, "ModelUnusable.*takes columns that are not given"),
        (safetensors.torch.save({"code": torch.zeros(1000)}), {}, "ModelUnusable.*Missing key"),
    ],
    ids=[
        "pickle",
        "noise",
        "nan",
        "too large for a float",
        "overflow",
        "other sizes",
        "huge",
        "no config",
        "no example",
        "other names",
    ],
)
async def test_right_bytes_that_make_no_model_are_refused(
    cluster: Cluster,
    store: Store,
    name: str,
    tmp_path: Path,
    content: bytes,
    changes: dict[str, Any],
    reason: str,
) -> None:
    store.put(content)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        await cluster.say(published(name, 2, content, store=store.url, **changes))
        assert re.search(reason, await keeps_the_first(cluster, following), re.DOTALL)


async def test_a_redirect_to_another_host_is_not_followed(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    second = weights(2)
    async with serving(tmp_path / "elsewhere") as elsewhere:
        elsewhere.put(second)

        async def redirect(request: web.Request, content: bytes) -> web.StreamResponse:
            raise web.HTTPFound(elsewhere.url + request.match_info["name"])

        store.faults[store.put(second)] = redirect
        async with follower(name, cluster, store, tmp_path / "cache") as following:
            await cluster.say(published(name, 1, FIRST, store=store.url))
            await adopted(cluster, following, 1)
            await cluster.say(published(name, 2, second, store=store.url))
            assert re.match("StoreNotAllowed.*redirects to 'http", await keeps_the_first(cluster, following))
        assert elsewhere.requests == []


async def test_an_artifact_of_a_store_that_moved_is_found_by_its_digest(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    async with serving(tmp_path / "old") as old:
        old.put(FIRST)
        async with follower(name, cluster, store, tmp_path / "cache") as following:
            await cluster.say(published(name, 1, FIRST, store=old.url))
            await adopted(cluster, following, 1)
        assert old.requests == []
    assert len(store.requests) == 1


async def test_a_store_that_is_away_is_said_once_and_asked_again(
    cluster: Cluster, name: str, tmp_path: Path, unused_port: int
) -> None:
    address = f"http://127.0.0.1:{unused_port}/"
    async with follower(name, cluster, address, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=address))
        (event,) = await cluster.hear(AdoptionRefused, name=name)
        assert event.reason.startswith("StoreUnavailable")
        assert event.kept_version is None
        async with serving(tmp_path / "store", port=unused_port) as store:
            store.put(FIRST)
            await adopted(cluster, following, 1)
        assert len(cluster.so_far(AdoptionRefused, name=name)) == 1


async def test_a_restart_serves_from_the_cache_while_the_store_is_away(
    cluster: Cluster, store: Store, name: str, tmp_path: Path, unused_port: int
) -> None:
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
    away = f"http://127.0.0.1:{unused_port}/"
    async with follower(name, cluster, away, tmp_path / "cache") as following:
        model = await asyncio.wait_for(following.settled(), 30)
        assert model is not None
        assert model.predict(QUESTION).tolist() == pytest.approx(answers(FIRST))
    assert len(store.requests) == 1


async def test_a_cached_artifact_that_was_changed_is_fetched_anew(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / f"model-{name}"
    folder.mkdir(parents=True)
    kept = folder / f"{store.put(FIRST)}.safetensors"
    kept.write_bytes(flipped(FIRST))
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
    assert kept.read_bytes() == FIRST
    assert len(store.requests) == 1


async def test_versions_never_go_back(cluster: Cluster, store: Store, name: str, tmp_path: Path) -> None:
    second = weights(2)
    store.put(second)
    old, new = published(name, 1, FIRST, store=store.url), published(name, 2, second, store=store.url)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(old)
        await adopted(cluster, following, 1)
        await cluster.say(new)
        await adopted(cluster, following, 2)
        for replayed in (old, new, old):
            await cluster.say(replayed)
        # A roll back is a step ahead: an older artifact under a version of its own.
        await cluster.say(rolled_back(old, from_version=2, version=3))
        assert (await adopted(cluster, following, 3)).previous_version == 2
        assert following.current is not None
        assert following.current.predict(QUESTION).tolist() == pytest.approx(answers(FIRST))
        assert [e.version for e in cluster.so_far(ModelAdopted, name=name)] == [1, 2, 3]


async def test_a_pinned_version_is_held_whatever_is_published(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    second, third = weights(2), weights(3)
    for version, content in enumerate((FIRST, second, third), 1):
        store.put(content)
        await cluster.say(published(name, version, content, store=store.url))
    async with follower(name, cluster, store, tmp_path / "cache", pin_version=2) as following:
        model = await asyncio.wait_for(following.settled(), 30)
        assert model is not None
        assert model.version == 2
        assert model.predict(QUESTION).tolist() == pytest.approx(answers(second))


async def test_events_of_other_models_and_broken_ones_change_nothing(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    good = published(name, 1, FIRST, store=store.url)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        broken = Envelope(
            id="x",
            type="tidemill.model.published.v1",
            source="/x",
            subject="x",
            time_ms=0,
            data=b"{}",
            key=name,
        )
        await cluster.send(broken, topics.MODELS_CURRENT)
        await cluster.say(published(name + "-other", 9, FIRST, store=store.url), topics.MODELS_CURRENT)
        # Under our key, but about another model.
        wrong = ModelPublished(name=name, manifest=published("other", 7, FIRST, store=store.url).manifest)
        await cluster.say(wrong, topics.MODELS_CURRENT)
        await cluster.say(good)
        await adopted(cluster, following, 1)
        assert [e.version for e in cluster.so_far(ModelAdopted, name=name)] == [1]


async def test_no_question_fails_while_models_are_swapped(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    expected = {}
    events = []
    for version in range(1, 9):
        content = weights(version)
        store.put(content)
        expected[version] = answers(content)
        events.append(published(name, version, content, store=store.url))
    stopped = threading.Event()
    wrong: list[object] = []
    seen = {version: threading.Event() for version in expected}

    def ask_on() -> int:
        asked = 0
        while not stopped.is_set():
            try:
                model = following.current
                assert model is not None
                assert model.predict(QUESTION).tolist() == pytest.approx(expected[model.version])
                seen[model.version].set()
                asked += 1
            except BaseException as error:
                wrong.append(error)
        return asked

    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(events[0])
        await adopted(cluster, following, 1)
        askers = [asyncio.create_task(asyncio.to_thread(ask_on)) for _ in range(3)]
        await asyncio.to_thread(seen[1].wait, 30)
        for event in events[1:]:
            await cluster.say(event)
            await adopted(cluster, following, event.manifest.version)
            await asyncio.to_thread(seen[event.manifest.version].wait, 30)
        stopped.set()
        asked = await asyncio.gather(*askers)
    assert wrong == []
    assert min(asked) > 0
    assert all(answered.is_set() for answered in seen.values())


async def test_a_model_that_takes_what_the_service_cannot_give_is_refused_before_it_is_fetched(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    second = weights(2)
    digest = store.put(second)
    given = {"carrier": "string", "distance": "int", "weather": "string"}
    async with follower(name, cluster, store, tmp_path / "cache", inputs=given) as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        wider = [*published(name, 2, second, store="").manifest.inputs, Field(name="gate", type="string")]
        example = {"carrier": "UA", "distance": 1400.0, "gate": "A1"}
        await cluster.say(published(name, 2, second, store=store.url, inputs=wider, example=example))
        why = await keeps_the_first(cluster, following)
        assert why.startswith("ModelUnfit: it takes columns that this service cannot give: gate; it gives ")
        assert digest not in {asked.partition(".")[0] for asked, _ in store.requests}
        await cluster.say(published(name, 3, second, store=store.url))
        await adopted(cluster, following, 3)


def test_a_models_columns_are_held_against_those_of_the_service() -> None:
    takes = published("m", 1, FIRST, store="http://x/").manifest
    for fits in (None, ["distance", "carrier", "more"], {"carrier": "string", "distance": "int"}):
        check_fit(takes, fits)
    with pytest.raises(client.ModelUnfit, match="carrier as string, and is given float"):
        check_fit(takes, {"carrier": "float", "distance": "float"})
    with pytest.raises(client.ModelUnfit, match="cannot give: carrier, distance; it gives none"):
        check_fit(takes, [])
    of_a_whole_number = published("m", 1, FIRST, store="", inputs=[Field(name="distance", type="int")])
    with pytest.raises(client.ModelUnfit, match="distance as int, and is given float"):
        check_fit(of_a_whole_number.manifest, {"distance": "float"})
    for outputs in ([], [Field(name="logit", type="float")], [*takes.outputs, *takes.outputs]):
        with pytest.raises(
            client.ModelUnfit, match=r"answers with .*takes one column, probability \(float\)"
        ):
            check_fit(published("m", 1, FIRST, store="", outputs=outputs).manifest, None)
    for inputs in ("carrier", {"carrier": "words"}):
        with pytest.raises(InvalidConfiguration):
            check_inputs(inputs)


async def test_a_question_with_unfit_columns_is_refused_by_name(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        model = await asyncio.wait_for(following.ready(), 30)
    with pytest.raises(UnfitColumns, match="distance"):
        model.predict({"carrier": ["UA"], "distanc": [1.0]})
    with pytest.raises(UnfitColumns, match="carrier 2, distance 1"):
        model.predict({"carrier": ["UA", "AA"], "distance": [1.0]})
    with pytest.raises(UnfitColumns, match="cannot take"):
        model.predict({"carrier": ["UA"], "distance": ["far"]})
    assert len(model.predict({"carrier": [], "distance": []})) == 0


@pytest.mark.parametrize(
    "uri",
    [
        "http://store.test:8700/models/../secret",
        "http://store.test:8700/models/%2e%2e/secret",
        "http://store.test:8700/models/a//b",
        "http://store.test:8700/models/x?y=http://elsewhere",
        "http://store.test:8700/models/x#y",
        "http://store.test:8700/models/",
        "http://store.test:8700/modelsx",
        "http://store.test/models/x",
        "https://store.test:8700/models/x",
        "http://me:secret@store.test:8700/models/x",
        "http://store.test:8700@elsewhere/models/x",
        "http://elsewhere/http://store.test:8700/models/x",
        "ftp://store.test:8700/models/x",
        "//store.test:8700/models/x",
        "http://[::1/x",
    ],
)
def test_only_addresses_below_a_store_are_asked(uri: str) -> None:
    stores = Stores(["http://store.test:8700/models"])
    good = Artifact(uri="http://STORE.test:8700/models/2013/x.safetensors", size_bytes=1, sha256="0" * 64)
    assert str(stores.addresses(good)[0]) == "http://store.test:8700/models/2013/x.safetensors"
    with pytest.raises(client.StoreNotAllowed):
        stores.addresses(Artifact(uri=uri, size_bytes=1, sha256="0" * 64))


def test_a_stores_password_goes_to_the_store_and_into_no_message() -> None:
    stores = Stores(["https://me:secret@store.test/models/"])
    asked = stores.addresses(Artifact(uri="https://store.test/models/x", size_bytes=1, sha256="0" * 64))
    assert {(each.host, each.userinfo) for each in asked} == {("store.test", b"me:secret")}
    with pytest.raises(client.StoreNotAllowed) as refused:
        stores.addresses(Artifact(uri="https://elsewhere/x", size_bytes=1, sha256="0" * 64))
    assert "https://store.test/models/" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "stores", [[], "http://store/", ["store"], ["file:///x"], ["http:///x"], ["http://x?y"]]
)
def test_stores_that_are_no_base_addresses_are_a_mistake_of_configuration(stores: Any) -> None:
    with pytest.raises(InvalidConfiguration):
        Stores(stores)


def test_the_exported_names_are_these() -> None:
    assert client.__all__ == [
        "ModelFollower",
        "ModelFollowers",
        "Answering",
        "StalenessBound",
        "LoadedModel",
        "UnfitColumns",
        "ArtifactMismatch",
        "StoreNotAllowed",
        "ModelUnfit",
        "ModelUnusable",
        "StaleModel",
        "StoreUnavailable",
        "CacheUnavailable",
    ]
    assert all(hasattr(client, each) for each in client.__all__)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def test_a_client_starts_before_its_cluster_and_outlives_the_clusters_death(
    store: Store, name: str, tmp_path: Path, unused_port: int
) -> None:
    second, third = weights(2), weights(3)
    store.put(third)
    asked, dead = asyncio.Event(), asyncio.Event()

    async def once_it_is_dead(request: web.Request, content: bytes) -> web.StreamResponse:
        asked.set()
        await dead.wait()
        return web.Response(body=content)

    store.faults[store.put(second)] = once_it_is_dead
    broker = EmbeddedBroker(tmp_path / "kafka", port=unused_port)
    address = f"127.0.0.1:{unused_port}"
    started = time.perf_counter()
    async with ModelFollower(
        name,
        client={"bootstrap_servers": address},
        stores=[store.url],
        service=f"service-of-{name}",
        cache_dir=tmp_path / "cache",
    ) as following:
        assert time.perf_counter() - started < 5
        try:
            await asyncio.to_thread(broker.start)
            await ensure(topics.TOPICS, connect_to(Kafka(), address))
            async with Cluster(address) as cluster:
                await cluster.say(published(name, 1, FIRST, store=store.url))
                await adopted(cluster, following, 1)
                await cluster.say(published(name, 2, second, store=store.url))
                await asyncio.wait_for(asked.wait(), 30)
            await asyncio.to_thread(broker.kill)
            dead.set()
            async with asyncio.timeout(30):
                while following.current is None or following.current.version != 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert following.current.predict(QUESTION).tolist() == pytest.approx(answers(second))
            await asyncio.to_thread(broker.start)
            async with Cluster(address) as cluster:
                await cluster.say(published(name, 3, third, store=store.url))
                await adopted(cluster, following, 3)
            async with Cluster(address, from_the_start=True) as cluster:
                await cluster.hear(ModelAdopted, name=name, version=3)
            # Said once each, but for repeats under one id.
            said = {event.event_id(): event.version for event in cluster.so_far(ModelAdopted, name=name)}
            assert list(said.values()) == [1, 2, 3]
        finally:
            await asyncio.to_thread(broker.stop)


def test_a_question_is_the_models_that_was_live_when_it_stood(tmp_path: Path) -> None:
    follower = ModelFollower(
        "m",
        client={"bootstrap_servers": "127.0.0.1:9"},
        stores=["http://127.0.0.1:9/"],
        service="s",
        cache_dir=tmp_path,
    )
    event = next(e for e in announced() if isinstance(e, ModelPublished))

    def model(version: int, published_ms: int) -> LoadedModel:
        manifest = msgspec.structs.replace(event.manifest, version=version, published_ms=published_ms)
        return LoadedModel(manifest, None)

    assert follower.as_of(5) is None
    follower.current = model(1, 50)
    assert follower.as_of(49) is None, "nothing was live before the first version"
    assert follower.as_of(50) is follower.current
    follower.current = model(4, 100)
    assert follower.as_of(5) is follower.as_of(200) is follower.current
    follower._before, follower.current = follower.current, model(5, 200)
    assert follower.as_of(199) is follower._before
    assert follower.as_of(200) is follower.as_of(5) is follower.current


async def test_a_restarted_service_still_holds_the_model_before_the_one_it_had_adopted(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    second = weights(2)
    store.put(second)
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await adopted(cluster, following, 1)
        await cluster.say(published(name, 2, second, store=store.url))
        await adopted(cluster, following, 2)
        assert following.current is not None
        assert following._before is not None
        first, newest = following._before.manifest, following.current.manifest
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        assert await following.settled() is following.as_of(newest.published_ms)
        former = following.as_of(first.published_ms)
        assert former is not None
        assert former.version == (1 if first.published_ms < newest.published_ms else 2)
        assert following._before is not None
        assert following._before.predict(QUESTION).tolist() == pytest.approx(answers(FIRST))


async def test_of_the_versions_that_were_there_before_it_a_service_takes_up_the_newest_alone(
    cluster: Cluster, store: Store, name: str, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        content = weights(version)
        store.put(content)
        await cluster.say(published(name, version, content, store=store.url))
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        model = await asyncio.wait_for(following.ready(), 30)
        assert model.version == 3
        await cluster.hear(ModelAdopted, name=name, version=3)
    assert len(store.requests) == 1
    assert [event.version for event in cluster.so_far(ModelAdopted, name=name)] == [3]


def test_what_was_adopted_before_is_kept_also_where_a_file_has_one_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, f"{self} cannot be another name of {target}")

    events = [published("m", version, FIRST, store="http://models/").encoded() for version in (1, 2, 3)]
    for folder in ("links", "none"):
        memory = Memory(tmp_path / folder)
        (tmp_path / folder).mkdir()
        for event in (events[0], events[1], events[1], events[2]):
            memory.keep(event)
        assert (memory.recall_former(), memory.recall()) == (events[1], events[2])
        assert sorted(each.name for each in (tmp_path / folder).iterdir()) == [
            "adopted-before.json",
            "adopted.json",
        ]
        monkeypatch.setattr(Path, "hardlink_to", has_no_links)
