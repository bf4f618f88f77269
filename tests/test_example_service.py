"""The example service as a process of its own: what it answers, and what a kill costs."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.envelope import ARROW_STREAM, Envelope
from schemas.model import ModelAdopted
from schemas.prediction import Predictions
from tests.client_fixtures import QUESTION, Cluster, Store, answers, published, serving, weights

FIRST, SECOND = weights(1), weights(2)
ROWS = pl.DataFrame({"flight_id": ["a", "b", "c"], "_time": [10, 30, 20], **QUESTION, "more": [1, 2, 3]})


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with serving(tmp_path / "store") as store:
        store.put(FIRST)
        store.put(SECOND)
        yield store


def frame(id: str, rows: pl.DataFrame = ROWS) -> Envelope:  # noqa: A002  (CloudEvents calls it so)
    sink = io.BytesIO()
    rows.write_ipc_stream(sink, compression="lz4")
    return Envelope(
        id=id,
        type="tidemill.features.ready.v1",
        source="/pipeline/test",
        subject="test",
        time_ms=int(time.time() * 1000),
        data=sink.getvalue(),
        key="test",
        content_type=ARROW_STREAM,
        extensions={"key": "flight_id"},
    )


async def ask(cluster: Cluster, *frames: Envelope) -> None:
    for each in frames:
        await cluster.send(each, topics.FEATURES)


@asynccontextmanager
async def service(
    cluster: Cluster, store: Store, folder: Path, name: str, *more: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The example service, following the model `name` under that very name."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemas.example_service"),
        *("--bootstrap-servers", cluster.bootstrap_servers, "--store", store.url),
        *("--model", name, "--service", name, "--cache-dir", str(folder / "cache"), *more),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def begin_at_the_end(cluster: Cluster, name: str) -> None:
    """Frames of other tests are behind the service's committed position."""
    frames = TopicPartition(topics.FEATURES.name, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.bootstrap_servers, group_id=f"{name}-answers", enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([frames])
        await consumer.commit(await consumer.end_offsets([frames]))
    finally:
        await consumer.stop()


async def log_says(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            if text in line.decode():
                return
    pytest.fail(f"the service ended without saying {text!r}")


async def test_each_frame_is_answered_once_by_each_model_that_is_there(
    cluster: Cluster, store: Store, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name, other, absent = topic("model"), topic("other"), topic("absent")
    await begin_at_the_end(cluster, name)
    await cluster.say(published(name, 1, FIRST, store=store.url))
    two_hours_ago_ms = int(time.time() * 1000) - 7_200_000
    await cluster.say(published(other, 4, SECOND, store=store.url, published_ms=two_hours_ago_ms))
    more = ("--also", other, "--also", absent, "--max-age-s", "3600")
    async with service(cluster, store, tmp_path, name, *more) as process:
        lacking = frame(f"{name}/lacks", ROWS.drop("distance"))
        unkeyed = replace(frame(f"{name}/unkeyed"), extensions={})
        cut = replace(frame(f"{name}/cut"), data=frame("x").data[:100])
        none = frame(f"{name}/none", ROWS.clear())
        await ask(
            cluster, frame(f"{name}/0"), frame(f"{name}/0"), lacking, unkeyed, cut, none, frame(f"{name}/1")
        )
        await cluster.hear(Predictions, service=name, count=4)
        await cluster.say(published(name, 2, SECOND, store=store.url))
        await cluster.hear(ModelAdopted, name=name, version=2)
        await ask(cluster, frame(f"{name}/2"))
        await cluster.hear(Predictions, service=name, count=6)
        process.terminate()
        _, err = await process.communicate()
        assert process.returncode == 0, err.decode()
    await cluster.listen_on()
    said = cluster.so_far(Predictions, service=name)
    assert [(e.features_id, e.name, e.version) for e in said] == [
        (f"{name}/0", name, 1),
        (f"{name}/0", other, 4),
        (f"{name}/1", name, 1),
        (f"{name}/1", other, 4),
        (f"{name}/2", name, 2),
        (f"{name}/2", other, 4),
    ]
    for event in said:
        assert event.keys == ["a", "b", "c"]
        assert event.times_ms == [10, 30, 20]
        assert event.newest_event_ms == 30
        assert event.scores == pytest.approx(answers(FIRST if event.version == 1 else SECOND))
        assert event.stale == ("published 120 min ago" if event.name == other else "")
    ends = err.decode().splitlines()[-1]
    assert f"3 answered by {other}" in ends
    assert f"3 no {absent} yet" in ends
    assert "3 refused" in ends
    assert all(each in err.decode() for each in ("distance", "ce_key", "not a readable Arrow stream"))


async def test_frames_before_the_first_model_are_passed_by_and_not_answered_later(
    cluster: Cluster, store: Store, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name = topic("model")
    await begin_at_the_end(cluster, name)
    async with service(cluster, store, tmp_path, name) as process:
        await ask(cluster, frame(f"{name}/early"))
        await log_says(process, f"{name}/early")
        await cluster.say(published(name, 1, FIRST, store=store.url))
        await cluster.hear(ModelAdopted, name=name)
        await ask(cluster, frame(f"{name}/late"))
        await cluster.hear(Predictions, service=name)
    await cluster.listen_on()
    assert [e.features_id for e in cluster.so_far(Predictions, service=name)] == [f"{name}/late"]


async def test_a_kill_neither_loses_nor_doubles_an_answer(
    cluster: Cluster, store: Store, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name = topic("model")
    await begin_at_the_end(cluster, name)
    await cluster.say(published(name, 1, FIRST, store=store.url))
    frames = [frame(f"{name}/{number}") for number in range(300)]
    asking = None
    kills = 0
    for wanted in (20, 120, len(frames)):
        async with service(cluster, store, tmp_path, name) as process:
            await cluster.hear(ModelAdopted, name=name, count=kills + 1)
            asking = asking or asyncio.create_task(ask(cluster, *frames))
            while len({e.features_id for e in cluster.so_far(Predictions, service=name)}) < wanted:
                await cluster.hear(
                    Predictions, service=name, count=len(cluster.so_far(Predictions, service=name)) + 1
                )
            process.kill()
            kills += 1
    assert asking is not None
    await asking
    await cluster.listen_on()
    by_id = {envelope.id: event for envelope, event in cluster.heard if isinstance(event, Predictions)}
    mine = [event for event in by_id.values() if event.service == name]
    assert sorted(e.features_id for e in mine) == sorted(each.id for each in frames)
    assert all(e.scores == pytest.approx(answers(FIRST)) for e in mine)
    # After a restart the model comes from the cache.
    assert len(store.requests) == 1
