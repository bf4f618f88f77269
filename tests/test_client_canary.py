"""A canary beside the current model: who gets it, what is refused, and that it never harms that one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.canary import in_share
from schemas.model import (
    AdoptionRefused,
    CanaryJudged,
    CanaryPublished,
    CanaryWithdrawn,
    ModelAdopted,
    ModelPublished,
)
from tests.client_fixtures import (
    QUESTION,
    Cluster,
    Store,
    answers,
    canaried,
    follower,
    published,
    serving,
    weights,
)
from trainers.keys import KeyFolder

FIRST, SECOND, THIRD, NAN = weights(1), weights(2), weights(3), weights(0, fill=float("nan"))
REQUESTS = [f"request-{number}" for number in range(400)]


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        for content in (FIRST, SECOND, THIRD, NAN):
            store.put(content)
        yield store


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    keys = KeyFolder(tmp_path / "keys")
    keys.ensure()
    return keys


def withdrawn(event: CanaryPublished) -> CanaryWithdrawn:
    manifest = event.manifest
    return CanaryWithdrawn(
        name=event.name,
        version=manifest.version,
        sha256=manifest.artifact.sha256,
        reason="worse",
        judged=CanaryJudged(look=1, pairs=50),
        withdrawn_ms=int(time.time() * 1000),
    )


BOTH = (topics.MODELS, topics.MODELS_CANARIES)


@given(
    name=st.text(max_size=10),
    version=st.integers(1, 2**40),
    share=st.floats(0.01, 0.5),
    more=st.floats(0, 0.5),
)
def test_the_share_is_as_declared_and_a_larger_one_keeps_whom_the_smaller_had(
    name: str, version: int, share: float, more: float
) -> None:
    def taken(share: float) -> set[int]:
        return {n for n in range(2_000) if in_share(f"id{n}", name=name, version=version, share=share)}

    found = taken(share)
    # Six standard errors of a fair draw.
    assert abs(len(found) / 2_000 - share) < 6 * (share * (1 - share) / 2_000) ** 0.5
    assert found <= taken(share + more)
    assert found == taken(share)


def test_the_same_id_goes_the_same_way_in_every_process_and_another_version_has_another_share() -> None:
    # Written down once: a service that is restarted with a newer client asks the same of the same ids.
    assert [n for n in range(20) if in_share(f"id{n}", name="flights", version=4, share=0.3)] == WRITTEN
    both = [
        sum(in_share(f"id{n}", name="flights", version=v, share=0.5) for v in (4, 5)) for n in range(4_000)
    ]
    assert 0.2 < both.count(2) / 4_000 < 0.3


WRITTEN = [0, 1, 2, 4, 6, 7, 10, 13]


async def test_a_canary_answers_its_share_until_it_is_withdrawn_and_is_not_taken_again(
    cluster: Cluster, store: Store, topic: Callable[[str], str], keys: KeyFolder, tmp_path: Path
) -> None:
    name, more = topic("model"), {"trusted_keys": keys.trusted_file, "canaries": True}
    await cluster.say(keys.signed(published(name, 1, FIRST, store=store.url)))
    event = keys.signed(canaried(name, 2, SECOND, store=store.url, beside=1))
    await cluster.say(event, *BOTH)
    async with follower(name, cluster, store, tmp_path / "cache", **more) as following:
        await cluster.hear(ModelAdopted, name=name, version=2, canary=True, previous_version=1)
        (adopted,) = cluster.so_far(ModelAdopted, name=name, version=1)
        assert not adopted.canary
        assert following.current is not None
        assert following.current.version == 1
        assert following.canary is not None
        assert following.canary.version == 2
        assert following.canary.predict(QUESTION).tolist() == pytest.approx(answers(SECOND))
        trial = following.canary_of(REQUESTS)
        assert trial is not None
        share = [n for n, r in enumerate(REQUESTS) if in_share(r, name=name, version=2, share=0.3)]
        assert trial[1] == share
        assert 60 < len(share) < 180
        for place in (share[0], next(n for n in range(400) if n not in share)):
            one = await following.answering(request=REQUESTS[place])
            assert one is not None
            beside = one.beside and one.beside.version
            assert (one.model.version, beside) == ((2, 1) if place in share else (1, None))
        # What stood before the canary was there, and who names no request, has the current model.
        before = await following.answering(event.manifest.published_ms - 1, request=REQUESTS[share[0]])
        unnamed = await following.answering()
        assert before is not None
        assert unnamed is not None
        assert before.model.version == unnamed.model.version == 1
        await cluster.say(withdrawn(event), *BOTH)
        async with asyncio.timeout(30):
            while following.canary is not None:  # noqa: ASYNC110  (its log has no event to wait for)
                await asyncio.sleep(0.02)
        assert following.canary_of(REQUESTS) is None
    # The same event again, as somebody would replay it, while the service was away and while it runs.
    await cluster.say(event, *BOTH)
    async with follower(name, cluster, store, tmp_path / "cache", **more) as following:
        await asyncio.wait_for(following.settled(), 30)
        await cluster.say(event, *BOTH)
        third = keys.signed(canaried(name, 3, THIRD, store=store.url, beside=1))
        await cluster.say(third, *BOTH)
        await cluster.hear(ModelAdopted, name=name, version=3)
        assert following.canary is not None
        assert following.canary.version == 3
        # A newer current version ends it, whatever the canaries' log says.
        await cluster.say(keys.signed(published(name, 4, SECOND, store=store.url)))
        await cluster.hear(ModelAdopted, name=name, version=4)
        assert following.canary is None
    heard = [(e.version, e.canary) for e in cluster.so_far(ModelAdopted, name=name)]
    assert heard == [(1, False), (2, True), (1, False), (3, True), (4, False)]


async def test_a_bad_canary_is_refused_and_the_current_model_answers_all(
    cluster: Cluster, store: Store, topic: Callable[[str], str], keys: KeyFolder, tmp_path: Path
) -> None:
    name, stranger = topic("model"), KeyFolder(tmp_path / "strangers-keys")
    stranger.ensure()
    more = {"trusted_keys": [each.public for each in keys.listed()], "canaries": True}
    current = keys.signed(published(name, 1, FIRST, store=store.url))
    await cluster.say(current)
    async with follower(name, cluster, store, tmp_path / "cache", **more) as following:
        await asyncio.wait_for(following.ready(), 30)

        def offered(version: int, content: bytes = SECOND, **changes: object) -> CanaryPublished:
            return canaried(name, version, content, store=store.url, beside=1, **changes)  # type: ignore[arg-type]

        signed = keys.signed(offered(8))
        assert signed.manifest.canary is not None
        flipped = msgspec.structs.replace(
            signed.manifest, canary=msgspec.structs.replace(signed.manifest.canary, share=0.5)
        )
        bad: list[tuple[CanaryPublished, str]] = [
            (offered(2), "SignatureRefused"),
            (stranger.signed(offered(3)), "SignatureRefused"),
            (msgspec.structs.replace(signed, manifest=flipped), "SignatureRefused"),
            # Signed as a current model: no canary under that signature.
            (
                msgspec.structs.replace(
                    offered(9),
                    signatures=keys.signed(
                        ModelPublished(name=name, manifest=offered(9).manifest)
                    ).signatures,
                ),
                "SignatureRefused",
            ),
            (keys.signed(offered(10, NAN)), "ModelUnusable"),
            (keys.signed(offered(11, architecture="of-tomorrow")), "ModelUnusable"),
            (keys.signed(offered(12, uri="http://127.0.0.1:1/x.safetensors")), "StoreNotAllowed"),
        ]
        for event, error in bad:
            await cluster.say(event, *BOTH)
            version = event.manifest.version
            (refused,) = await cluster.hear(AdoptionRefused, name=name, version=version)
            assert (refused.reason.partition(":")[0], refused.canary) == (error, True)
            assert refused.kept_version == 1
        # Nor is a canary's signature one of a current model; and an old one has had its time.
        await cluster.say(ModelPublished(name=name, manifest=signed.manifest, signatures=signed.signatures))
        (refused,) = await cluster.hear(AdoptionRefused, name=name, version=8, canary=False)
        assert refused.reason.startswith("SignatureRefused")
        await cluster.say(keys.signed(offered(13, published_ms=1_000)), *BOTH)
        await cluster.say(keys.signed(offered(14, THIRD)), *BOTH)
        await cluster.hear(ModelAdopted, name=name, version=14, canary=True)
        assert following.current is not None
        assert following.current.version == 1
    assert [e.version for e in cluster.so_far(ModelAdopted, name=name)] == [1, 14]


async def test_a_service_that_asks_for_no_canaries_has_none(
    cluster: Cluster, store: Store, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("model")
    async with follower(name, cluster, store, tmp_path / "cache") as following:
        await cluster.say(published(name, 1, FIRST, store=store.url))
        # Of versions that come while one is being taken, only the newest is: each is waited for.
        await cluster.hear(ModelAdopted, name=name, version=1)
        await cluster.say(canaried(name, 2, SECOND, store=store.url, beside=1), *BOTH)
        await cluster.say(published(name, 3, THIRD, store=store.url))
        await cluster.hear(ModelAdopted, name=name, version=3)
        assert following.canary is None
        one = await following.answering(request="anything")
        assert one is not None
        assert one.model.version == 3
        assert one.beside is None
    assert [e.version for e in cluster.so_far(ModelAdopted, name=name)] == [1, 3]
