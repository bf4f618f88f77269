"""A client with a list of keys, on a real broker to which a forger may write whatever he likes."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.client import ModelFollower
from schemas.client.refusals import Refusals
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration, Retryable
from schemas.model import AdoptionRefused, CurrentModel, ModelAdopted
from schemas.signature import SignerUnknown
from tests.client_fixtures import (
    QUESTION,
    Cluster,
    Store,
    answers,
    follower,
    published,
    rolled_back,
    serving,
    weights,
)
from trainers.keys import KeyFolder

FIRST, SECOND, THIRD = weights(1), weights(2), weights(3)


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        for content in (FIRST, SECOND, THIRD):
            store.put(content)
        yield store


@pytest.fixture
def name(topic: Callable[[str], str]) -> str:
    return topic("model")


def key_folder(path: Path) -> KeyFolder:
    keys = KeyFolder(path)
    keys.ensure()
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    return key_folder(tmp_path / "keys")


async def holds(cluster: Cluster, following: ModelFollower, version: int, content: bytes) -> None:
    await cluster.hear(ModelAdopted, name=following.name, version=version)
    assert following.current is not None
    assert following.current.version == version
    assert following.current.predict(QUESTION).tolist() == pytest.approx(answers(content))


async def test_only_signed_models_are_taken_and_a_forgery_holds_up_none_of_them(
    cluster: Cluster,
    store: Store,
    name: str,
    keys: KeyFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "schemas.client")
    # What an unknown key signed is looked at again and again, also among the other refusals.
    monkeypatch.setattr("schemas.client.follow._LIST_AGAIN_AFTER_S", 0.05)
    stranger = key_folder(tmp_path / "stranger")
    first, second, third = (
        published(name, version, content, store=store.url)
        for version, content in enumerate((FIRST, SECOND, THIRD), 1)
    )
    other = published(f"{name}-other", 9, SECOND, store=store.url)
    moved = msgspec.structs.replace(keys.signed(first), manifest=second.manifest)
    forgeries: list[tuple[CurrentModel, str]] = [
        (published(name, 500, SECOND, store=store.url), "SignatureRefused.*not signed"),
        (stranger.signed(published(name, 501, SECOND, store=store.url)), "SignerUnknown"),
        (moved, "SignatureRefused"),
        (rolled_back(first, from_version=1, version=502), "SignatureRefused.*not signed"),
    ]
    async with follower(
        name, cluster, store, tmp_path / "cache", trusted_keys=keys.trusted_file
    ) as following:
        await cluster.say(keys.signed(first))
        await holds(cluster, following, 1, FIRST)
        asked = len(store.requests)
        for forgery, _ in forgeries:
            await cluster.say(forgery)
        # Signed indeed, but about another model, and put under our key.
        await cluster.say(msgspec.structs.replace(keys.signed(other), name=name))
        for forgery, why in forgeries:
            (refused,) = await cluster.hear(AdoptionRefused, name=name, version=forgery.manifest.version)
            assert refused.kept_version == 1
            assert re.match(why, refused.reason)
        assert len(store.requests) == asked
        looked_at = caplog.text.count("version 501 is not taken")
        async with asyncio.timeout(30):
            while caplog.text.count("version 501 is not taken") < looked_at + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await cluster.say(keys.signed(third))
        await holds(cluster, following, 3, THIRD)
        await cluster.say(keys.signed(rolled_back(first, from_version=3, version=4)))
        await holds(cluster, following, 4, FIRST)
    await cluster.listen_on()
    assert {e.version for e in cluster.so_far(ModelAdopted, name=name)} == {1, 3, 4}
    refused = Counter(e.version for e in cluster.so_far(AdoptionRefused, name=name))
    assert refused == {forgery.manifest.version: 1 for forgery, _ in forgeries}


async def test_an_old_event_that_is_replayed_while_the_service_was_away_sets_it_back_by_nothing(
    cluster: Cluster, store: Store, name: str, keys: KeyFolder, tmp_path: Path
) -> None:
    old = keys.signed(published(name, 1, FIRST, store=store.url))
    new = keys.signed(published(name, 2, SECOND, store=store.url))
    trust = {"trusted_keys": [key.public for key in keys.listed()]}
    async with follower(name, cluster, store, tmp_path / "cache", **trust) as following:
        await cluster.say(old)
        await cluster.say(new)
        await holds(cluster, following, 2, SECOND)
    # On a compacted topic the replayed event is the only one left.
    await cluster.say(old, topics.MODELS_CURRENT)
    async with follower(name, cluster, store, tmp_path / "cache", **trust) as following:
        model = await asyncio.wait_for(following.settled(), 30)
        assert model is not None
        assert model.version == 2


async def test_after_a_restart_a_new_version_that_is_no_good_leaves_the_one_from_before(
    cluster: Cluster, store: Store, name: str, keys: KeyFolder, tmp_path: Path
) -> None:
    nan = weights(2, fill=float("nan"))
    store.put(nan)
    async with follower(
        name, cluster, store, tmp_path / "cache", trusted_keys=keys.trusted_file
    ) as following:
        await cluster.say(keys.signed(published(name, 1, FIRST, store=store.url)))
        await holds(cluster, following, 1, FIRST)
    await cluster.say(keys.signed(published(name, 2, nan, store=store.url)))
    async with follower(
        name, cluster, store, tmp_path / "cache", trusted_keys=keys.trusted_file
    ) as following:
        await cluster.hear(AdoptionRefused, name=name, version=2)
        model = await asyncio.wait_for(following.ready(), 30)
        assert model.version == 1
        await cluster.say(keys.signed(published(name, 3, THIRD, store=store.url)))
        await holds(cluster, following, 3, THIRD)


async def test_a_remembered_event_that_was_forged_on_disk_is_refused(
    cluster: Cluster, store: Store, name: str, keys: KeyFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / f"model-{name}"
    folder.mkdir(parents=True)
    forged = published(name, 99, SECOND, store=store.url)
    (folder / "adopted.json").write_bytes(forged.encoded())
    async with follower(
        name, cluster, store, tmp_path / "cache", trusted_keys=keys.trusted_file
    ) as following:
        await cluster.say(keys.signed(published(name, 1, FIRST, store=store.url)))
        await holds(cluster, following, 1, FIRST)
    for broken in (b"", b"{}", b"\xff\x00"):
        (folder / "adopted.json").write_bytes(broken)
        async with follower(
            name, cluster, store, tmp_path / "cache", trusted_keys=keys.trusted_file
        ) as following:
            model = await asyncio.wait_for(following.settled(), 30)
            assert model is not None
            assert model.version == 1


async def test_keys_are_rotated_under_a_running_client(
    cluster: Cluster, store: Store, name: str, keys: KeyFolder, tmp_path: Path
) -> None:
    (old,) = keys.listed()
    own_list = tmp_path / "list-of-the-service"
    own_list.write_text(keys.trusted_file.read_text())
    async with follower(name, cluster, store, tmp_path / "cache", trusted_keys=own_list) as following:
        await cluster.say(keys.signed(published(name, 1, FIRST, store=store.url)))
        await holds(cluster, following, 1, FIRST)
        keys.make()
        both = keys.signed(published(name, 2, SECOND, store=store.url))
        assert len(both.signatures) == 2
        await cluster.say(both)  # the service knows the old key alone
        await holds(cluster, following, 2, SECOND)
        keys.retire(old.id)
        await cluster.say(keys.signed(published(name, 3, THIRD, store=store.url)))
        (refused,) = await cluster.hear(AdoptionRefused, name=name, version=3)
        assert refused.reason.startswith("SignerUnknown")
        own_list.write_text(keys.trusted_file.read_text())
        await holds(cluster, following, 3, THIRD)
    assert len(cluster.so_far(AdoptionRefused, name=name)) == 1


class Canary:
    """Leaves a file behind if anybody ever unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


async def test_a_pickle_is_never_opened_even_when_it_is_signed(
    cluster: Cluster, store: Store, name: str, keys: KeyFolder, tmp_path: Path
) -> None:
    mark = tmp_path / "unpickled"
    canary = pickle.dumps(Canary(mark))
    pickle.loads(canary)
    assert mark.exists()
    mark.rmdir()
    store.put(canary)
    padded = FIRST[:8] + canary + FIRST[8 + len(canary) :]
    store.put(padded)
    async with follower(
        name, cluster, store, tmp_path / "cache", trusted_keys=keys.trusted_file
    ) as following:
        await cluster.say(keys.signed(published(name, 1, FIRST, store=store.url)))
        await holds(cluster, following, 1, FIRST)
        for version, content in ((2, canary), (3, padded)):
            await cluster.say(keys.signed(published(name, version, content, store=store.url)))
            (refused,) = await cluster.hear(AdoptionRefused, name=name, version=version)
            assert refused.reason.startswith("ModelUnusable")
        pickled = published(name, 4, canary, store=store.url, format="pickle")
        await cluster.say(keys.signed(pickled))
        (refused,) = await cluster.hear(AdoptionRefused, name=name, version=4)
        assert "format 'pickle'" in refused.reason
    assert not mark.exists()


def test_a_refusal_is_said_once_for_each_version_and_kind_of_error_whatever_is_refused_between() -> None:
    one, two = (published("m", version, FIRST, store="http://x/").manifest for version in (1, 2))
    away, unknown = Retryable("the store is away"), SignerUnknown("who is this?")
    refusals = Refusals("m", service="s")
    said = [
        refusals.of(manifest, error, kept_version=None)
        for _ in range(3)
        for manifest in (one, two)
        for error in (away, unknown)
    ]
    assert [event and (event.version, event.reason) for event in said[:4]] == [
        (1, "Retryable: the store is away"),
        (1, "SignerUnknown: who is this?"),
        (2, "Retryable: the store is away"),
        (2, "SignerUnknown: who is this?"),
    ]
    assert said[4:] == [None] * 8
    assert refusals.last == said[3]


def test_what_was_refused_is_not_remembered_without_end() -> None:
    many = [published("m", version, FIRST, store="http://x/").manifest for version in range(1, 1_502)]
    refusals = Refusals("m", service="s")
    assert all(refusals.of(manifest, ValueError(), kept_version=None) for manifest in many)
    assert refusals.of(many[-1], ValueError(), kept_version=None) is None
    assert refusals.of(many[0], ValueError(), kept_version=None) is not None


def test_a_client_is_not_made_with_a_list_that_trusts_nobody(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="empty"):
        ModelFollower(
            "m",
            client={},
            stores=["http://x/"],
            service="s",
            cache_dir=tmp_path,
            trusted_keys=[],
        )


def test_the_envelope_carries_the_signed_bytes_untouched(keys: KeyFolder) -> None:
    event = keys.signed(published("m", 1, FIRST, store="http://x/"))
    _, value, _ = wrap(event, source="/x", time_ms=0).record()
    assert keys.trusted().manifest(value) == event.manifest
