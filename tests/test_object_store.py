"""An artifact store on S3, on a real server that is killed, full, slow, or refuses; beside the folder's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.command.store_check import artifact_store
from infra.doctor import Check
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.topics import ensure
from infra.settings_model import Paths, Settings, Store
from loadtest.faults.disk import Disk
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.raw import Flight
from streams.app import _models
from streams.pipeline import Pipeline, Source
from streams.tag import by_model
from streams.window import Tumbling
from tests.client_fixtures import Cluster, published, weights
from tests.s3_fixtures import BUCKET, S3Server, raw_server, s3_server
from trainers.artifact import ArtifactCorrupt, ArtifactStore, StoreAway, StoreNotWritable
from trainers.object_store import ObjectStore, object_store
from trainers.stores import Stores

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LARGE_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def opened(server: S3Server, **changes: Any) -> ObjectStore:
    store = object_store(Store(**{**server.settings, "retries": 2, "timeout_s": 10.0, **changes}))
    assert store is not None
    return store


def of_folder(server: S3Server, folder: str) -> ObjectStore:
    """A store of the test's own."""
    return opened(server, address=f"s3://{BUCKET}/{folder}")


async def test_artifacts_are_kept_listed_read_and_removed_as_in_a_folder(
    server: S3Server, tmp_path: Path
) -> None:
    on_s3, in_folder = of_folder(server, "like"), ArtifactStore(tmp_path / "store")
    server.put("like/notes.txt", b"somebody else's")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").touch()
    for _ in range(2):
        assert await on_s3.put(CONTENT) == in_folder.put(CONTENT) == DIGEST
    assert await on_s3.get(DIGEST) == in_folder.get(DIGEST) == CONTENT
    (there,), (here,) = await on_s3.kept(), in_folder.kept()
    assert there[:2] == here[:2] == (DIGEST, len(CONTENT))
    now_ms = time.time() * 1000
    assert abs(there.modified_ms - now_ms) < 60_000
    assert abs(here.modified_ms - now_ms) < 60_000
    for _ in range(2):
        await on_s3.remove(DIGEST)
        in_folder.remove(DIGEST)
    assert await on_s3.kept() == in_folder.kept() == []
    with pytest.raises(ArtifactCorrupt, match=DIGEST):
        await on_s3.get(DIGEST)


async def test_an_artifact_that_was_changed_on_s3_is_named_and_mended_by_putting_it_again(
    server: S3Server,
) -> None:
    store = of_folder(server, "changed")
    server.put(f"changed/{DIGEST}.safetensors", CONTENT[:-1] + b"S")
    with pytest.raises(ArtifactCorrupt, match="its SHA-256 is not its name"):
        await store.get(DIGEST)
    await store.put(CONTENT)
    assert await store.get(DIGEST) == CONTENT


async def test_a_wrong_secret_is_refused_by_name_and_shown_to_nobody(server: S3Server) -> None:
    stranger = opened(server, secret_access_key="wrong-secret")
    with pytest.raises(StoreNotWritable, match=r"403|Forbidden|lacked the necessary privileges") as refused:
        await stranger.put(CONTENT)
    assert "wrong-secret" not in str(refused.value)
    with pytest.raises(StoreAway):
        await stranger.kept()
    with pytest.raises(StoreNotWritable, match=r"NoSuchBucket|404|not found"):
        await opened(server, address="s3://nobodys").put(CONTENT)


async def test_a_store_where_nobody_listens_is_given_up_after_a_few_tries() -> None:
    away = object_store(
        Store(
            address="s3://models/x",
            endpoint=f"http://127.0.0.1:{free_port()}",
            region="us-east-1",
            access_key_id="x",
            secret_access_key="x",  # type: ignore[arg-type]
            retries=2,
            timeout_s=5.0,
        )
    )
    assert away is not None
    with pytest.raises(StoreNotWritable, match="after 2 retries"):
        await away.put(CONTENT)
    with pytest.raises(StoreAway):
        await away.get(DIGEST)


async def never(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def test_a_store_that_never_answers_is_given_up_in_bounded_time(server: S3Server) -> None:
    async with raw_server(never) as url:
        slow = opened(server, endpoint=url.rstrip("/"), timeout_s=0.5, retries=50)
        began_s = time.monotonic()
        with pytest.raises(StoreNotWritable):
            await slow.put(CONTENT)
        assert time.monotonic() - began_s < 20


async def test_a_full_store_refuses_the_artifact_shows_none_of_it_and_takes_it_once_there_is_room(
    tmp_path: Path,
) -> None:
    with Disk(tmp_path / "disk", 16 * 2**20) as disk:
        if not disk.is_small:
            pytest.skip("only root may mount a small disk")
        with s3_server(tmp_path / "disk") as server:
            store = opened(server, timeout_s=30.0)
            disk.fill()
            for content in (CONTENT, os.urandom(LARGE_BYTES)):
                with pytest.raises(StoreNotWritable):
                    await store.put(content)
            assert await store.kept() == []
            disk.make_room()
            assert await store.put(CONTENT) == DIGEST
            assert [each.sha256 for each in await store.kept()] == [DIGEST]


async def test_a_server_killed_in_the_middle_of_an_upload_shows_nothing_half_written(tmp_path: Path) -> None:
    content = os.urandom(LARGE_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    with s3_server(tmp_path) as server:
        store = opened(server, retries=0)
        upload = asyncio.create_task(store.put(content))
        async with asyncio.timeout(60):
            while not server.files:  # noqa: ASYNC110  (what is awaited happens on the server's disk)
                await asyncio.sleep(0.001)
        server.kill()
        with contextlib.suppress(StoreNotWritable):
            await upload
        server.start()
        seen = await store.kept()
        # All of it, had the last part just been confirmed; never a part.
        assert [each.size_bytes for each in seen] in ([], [LARGE_BYTES])
        assert await store.put(content) == digest
        assert await store.get(digest) == content


async def test_the_folder_gets_from_the_store_what_it_lacks(server: S3Server, tmp_path: Path) -> None:
    stores = Stores(ArtifactStore(tmp_path), of_folder(server, "bring"))
    assert stores.remote is not None
    with pytest.raises(ArtifactCorrupt):
        await stores.bring(DIGEST)
    await stores.remote.put(CONTENT)
    await stores.bring(DIGEST)
    assert stores.folder.get(DIGEST) == CONTENT
    await stores.remote.remove(DIGEST)
    await stores.publish(DIGEST)
    assert await stores.remote.get(DIGEST) == CONTENT


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"address": "/srv/models"}, "paths.artifacts"),
        ({"address": "s3://"}, "s3://bucket/prefix"),
        ({"address": "s3://b/../x"}, "s3://bucket/prefix"),
        ({"address": "s3://bucket?x"}, "s3://bucket/prefix"),
        ({"address": "s3://bucket", "endpoint": "https://me:secret@host"}, "without a name"),
        ({"address": "s3://bucket", "access_key_id": "x"}, "goes together"),
        ({"secret_access_key": "a", "secret_access_key_file": "b", "access_key_id": "x"}, "only one"),
    ],
)
def test_settings_of_a_store_that_cannot_be_are_refused_with_what_would_be_right(
    wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        Store(**wrong)


def test_the_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    keys = {"access_key_id": "x", "secret_access_key_file": tmp_path / "secret"}
    settings = Store(address="s3://bucket", **keys)
    assert settings.secret() == "s3cret"
    (tmp_path / "secret").unlink()
    with pytest.raises(InvalidConfiguration, match="secret_access_key_file"):
        object_store(settings)


def test_the_doctor_writes_reads_and_removes_an_object_or_says_what_does_not_go(server: S3Server) -> None:
    def looked(**changes: Any) -> Check:
        address = f"s3://{BUCKET}/looked"
        (check,) = artifact_store(Settings(store=Store(**{**server.settings, "address": address, **changes})))
        return check

    assert list(artifact_store(Settings())) == []
    assert looked().ok
    assert not [file for file in server.files if "looked" in str(file)]
    wrong = looked(secret_access_key="another")
    assert not wrong.ok
    assert f"s3://{BUCKET}/looked/.probe-" in wrong.detail
    assert "written" in wrong.detail
    assert "another" not in wrong.detail + wrong.remedy
    assert not looked(address="s3://no-such-bucket/looked").ok
    away = looked(endpoint=f"http://127.0.0.1:{free_port()}")
    assert not away.ok
    assert "store.endpoint" in away.remedy


async def test_a_worker_takes_the_model_that_tags_its_rows_from_the_store_of_the_settings(
    server: S3Server, kafka: EmbeddedBroker, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name, connection = topic("tags"), Connection(bootstrap_servers=kafka.bootstrap_servers)
    await ensure(topics.TOPICS, connection)
    store = Store(**{**server.settings, "address": f"s3://{BUCKET}/tags"})
    settings = Settings(paths=Paths(home=tmp_path), store=store)
    tagged = Pipeline(
        name="asked",
        source=Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id"),
        tag=[by_model("late", name, above=0.5)],
        window=Tumbling("1h"),
    )
    digest = await of_folder(server, "tags").put(content := weights(1))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        await cluster.say(published(name, 1, content, store=f"s3://{BUCKET}/tags/"))
        following = _models(settings, connection, tagged)
        assert following is not None
        await following.start()
        try:
            answers = following.current(name)
            assert answers is not None
            assert (answers.version, answers.sha256) == (1, digest)  # type: ignore[attr-defined]
        finally:
            await following.stop()
