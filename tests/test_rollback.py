"""Going back is a step ahead: an older artifact under a new version, in history and current, signed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.command.main import app
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.settings import Kafka, Paths, Settings
from infra.settings_model import Store
from schemas import topics
from schemas.client import ModelFollower
from schemas.contract import Announcement
from schemas.errors import InvalidConfiguration, Retryable
from schemas.model import CurrentModel, ModelAdopted, ModelPublished, RolledBack
from tests.client_fixtures import Cluster, follower, published, serving, weights
from tests.s3_fixtures import BUCKET, s3_server
from tests.trainer_fixtures import Topics
from trainers.artifact import ArtifactCorrupt, ArtifactStore, StoreAway
from trainers.bulletin import Bulletin
from trainers.keys import KeyFolder
from trainers.rollback import CannotRollBack, roll_back

HISTORY, CURRENT = topics.MODELS.name, topics.MODELS_CURRENT.name
FIRST, SECOND = weights(1), weights(2)


@pytest.fixture
async def connection(kafka: EmbeddedBroker) -> Connection:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    await ensure(topics.TOPICS, connection)
    return connection


@pytest.fixture
def settings(tmp_path: Path, connection: Connection) -> Settings:
    return Settings(
        paths=Paths(home=tmp_path / "home"), kafka=Kafka(bootstrap_servers=connection.bootstrap_servers)
    )


@pytest.fixture
def keys(settings: Settings) -> KeyFolder:
    folder = KeyFolder(settings.paths.signing_keys)
    folder.ensure()
    return folder


@pytest.fixture
async def name(topic: Callable[[str], str], settings: Settings, keys: KeyFolder, seen: Topics) -> str:
    """A model with two versions, whose artifacts are in the store."""
    name, store = topic("model"), ArtifactStore(settings.paths.artifacts)
    for version, content in ((1, FIRST), (2, SECOND)):
        store.put(content)
        event = keys.signed(published(name, version, content, store="http://store/"))
        for each in (HISTORY, CURRENT):
            await seen.say(each, event)
    return name


@pytest.fixture
async def seen(connection: Connection) -> AsyncIterator[Topics]:
    assert connection.bootstrap_servers is not None
    async with Topics(connection.bootstrap_servers) as seen:
        yield seen


def of(seen: Topics, name: str, topic: str) -> list[CurrentModel]:
    return [e for t, _, e in seen.events if t == topic and isinstance(e, CurrentModel) and e.name == name]


async def test_an_older_version_is_current_again_under_a_new_version_and_signed(
    settings: Settings, connection: Connection, keys: KeyFolder, seen: Topics, name: str
) -> None:
    event = await roll_back(
        settings, connection, name=name, to_version=1, reason="worse on Sundays", now_ms=lambda: 7
    )
    await seen.until(lambda: event in of(seen, name, CURRENT))
    assert of(seen, name, HISTORY)[-1] == of(seen, name, CURRENT)[-1] == event
    assert isinstance(event, RolledBack)
    first = of(seen, name, HISTORY)[0].manifest
    assert event.manifest.artifact == first.artifact
    assert (event.manifest.version, event.from_version, event.to_artifact_of_version) == (3, 2, 1)
    assert (event.reason, event.manifest.published_ms) == ("worse on Sundays", 7)
    assert keys.trusted().manifest(event.encoded()) == event.manifest
    # It is the champion now, and can itself be rolled back.
    again = await roll_back(settings, connection, name=name, to_version=2, reason="so it was")
    assert (again.manifest.version, again.from_version) == (4, 3)


async def test_a_service_follows_the_rollback(
    settings: Settings, connection: Connection, keys: KeyFolder, name: str, tmp_path: Path
) -> None:
    assert connection.bootstrap_servers is not None
    async with Cluster(connection.bootstrap_servers) as cluster, serving(settings.paths.artifacts) as store:
        trust = {"trusted_keys": keys.trusted_file}
        async with follower(name, cluster, store, tmp_path / "cache", **trust) as following:
            assert (await asyncio.wait_for(following.ready(), 30)).version == 2
            await roll_back(settings, connection, name=name, to_version=1, reason="worse on Sundays")
            await cluster.hear(ModelAdopted, name=name, version=3)
            assert following.current is not None
            assert (
                following.current.manifest.artifact.sha256
                == published(name, 1, FIRST, store="http://store/").manifest.artifact.sha256
            )


async def test_weights_that_lie_on_s3_alone_are_current_again_there_and_a_service_takes_them(
    settings: Settings,
    connection: Connection,
    keys: KeyFolder,
    seen: Topics,
    topic: Callable[[str], str],
    tmp_path: Path,
) -> None:
    name, bucket = topic("model"), f"s3://{BUCKET}/flights/"
    with s3_server(tmp_path / "s3") as server:
        store = Store.model_validate({**server.settings, "retries": 0, "timeout_s": 2.0})
        on_s3 = settings.model_copy(update={"store": store})
        digests: list[str] = []
        for version, content in ((1, FIRST), (2, SECOND)):
            event = keys.signed(published(name, version, content, store=bucket))
            digests.append(event.manifest.artifact.sha256)
            server.put(f"flights/{digests[-1]}.safetensors", content)
            for each in (HISTORY, CURRENT):
                await seen.say(each, event)
        # The folder of this machine has neither: it is new, or was tidied.
        event = await roll_back(on_s3, connection, name=name, to_version=1, reason="worse on Sundays")
        assert event.manifest.artifact.uri == f"{bucket}{digests[0]}.safetensors"
        assert [path.stem for path in server.files] == sorted(digests)
        async with ModelFollower(
            name,
            client={"bootstrap_servers": connection.bootstrap_servers},
            stores=[bucket],
            service="display",
            cache_dir=tmp_path / "cache",
            trusted_keys=keys.trusted_file,
            s3=server.options,
        ) as following:
            model = await asyncio.wait_for(following.ready(), 60)
            assert (model.version, model.sha256) == (3, digests[0])

        # What neither place has is no version to go back to.
        gone = next(path for path in server.files if path.stem == digests[1])
        gone.unlink()
        with pytest.raises(ArtifactCorrupt, match=digests[1]):
            await roll_back(on_s3, connection, name=name, to_version=2, reason="r")
        server.kill()
        with pytest.raises(StoreAway):
            await roll_back(on_s3, connection, name=name, to_version=2, reason="r")
    await seen.until(lambda: event in of(seen, name, CURRENT))
    assert [each.manifest.version for each in of(seen, name, HISTORY)] == [1, 2, 3]


async def test_what_cannot_be_gone_back_to_is_said_and_nothing_is_published(
    settings: Settings, connection: Connection, seen: Topics, name: str
) -> None:
    async def refused(model: str, version: int) -> str:
        with pytest.raises((CannotRollBack, ArtifactCorrupt)) as error:
            await roll_back(settings, connection, name=model, to_version=version, reason="r")
        return str(error.value)

    assert "no version 9; its history has 1, 2" in await refused(name, 9)
    assert "tidemill models" in await refused(f"{name}-unknown", 1)
    assert "very weights" in await refused(name, 2)
    store = ArtifactStore(settings.paths.artifacts)
    first = store.put(FIRST)
    store.path(first).write_bytes(b"damaged")
    assert first in await refused(name, 1)
    await seen.until(lambda: len(of(seen, name, CURRENT)) == 2)
    assert [type(e) for e in of(seen, name, HISTORY)] == [ModelPublished, ModelPublished]


async def test_a_model_that_strangers_signed_is_nothing_to_go_back_to(
    settings: Settings, connection: Connection, keys: KeyFolder, seen: Topics, name: str, tmp_path: Path
) -> None:
    stranger = KeyFolder(tmp_path / "stranger")
    stranger.ensure()
    await seen.say(HISTORY, stranger.signed(published(name, 3, weights(3), store="http://store/")))
    with pytest.raises(CannotRollBack, match="no version 3"):
        await roll_back(settings, connection, name=name, to_version=3, reason="r")
    # Its number is taken nonetheless: versions are unique, whoever claimed them.
    event = await roll_back(settings, connection, name=name, to_version=1, reason="r")
    assert event.manifest.version == 4


async def test_a_rollback_that_died_between_the_two_topics_is_finished(
    settings: Settings,
    connection: Connection,
    keys: KeyFolder,
    seen: Topics,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say = Bulletin.say

    async def dies(self: Bulletin, topic: str, event: Announcement) -> None:
        if topic == CURRENT:
            raise Retryable("the process was killed")
        await say(self, topic, event)

    monkeypatch.setattr(Bulletin, "say", dies)
    with pytest.raises(Retryable):
        await roll_back(settings, connection, name=name, to_version=1, reason="r")
    monkeypatch.undo()
    bulletin = Bulletin(connection, trusted=keys.trusted())
    await bulletin.start()
    try:
        unsaid = [e for e in bulletin.registry.unsaid_current() if e.name == name]
        assert [e.manifest.version for e in unsaid] == [3]
        assert bulletin.registry.champion(name) == unsaid[0].manifest
    finally:
        await bulletin.stop()


def test_a_rollback_without_a_reason_is_none() -> None:
    refused = CliRunner().invoke(app, ["rollback", "flights", "--to", "1", "--reason", " "])
    assert isinstance(refused.exception, InvalidConfiguration)


def test_the_command_says_what_it_did_and_why_it_could_not(settings: Settings, name: str) -> None:
    def rollback(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infra.command", "rollback", name, *arguments],
            env={
                **os.environ,
                "TIDEMILL_PATHS__HOME": str(settings.paths.home),
                "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    done = rollback("--to", "1", "--reason", "worse on Sundays", "--json")
    assert done.returncode == 0, done.stderr
    assert '"version": 3' in done.stdout
    again = rollback("--to", "1", "--reason", "once more")
    assert again.returncode == 1
    assert "very weights" in " ".join(again.stderr.split())
    assert "Traceback" not in again.stderr
