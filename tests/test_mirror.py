"""Mirrors: MLflow by names read off its protobufs and by a real server; a collector of OpenLineage events."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.topics import ensure
from infra.mirror import FOLLOWED, mirror
from infra.mlflow import Mlflow, MlflowAway, MlflowRefuses
from infra.openlineage import Collector, CollectorAway, CollectorRefuses, run_event, start_event
from infra.settings import load
from loadtest.elsewhere.mlflow_server import mlflow_server
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import wrap
from schemas.examples import announced
from schemas.job import JobEvent, JobFailed, JobProgress, JobRequested, JobStarted
from schemas.model import CanaryPromoted, CurrentModel, ModelPublished, ModelRefused, RolledBack
from tests.mlflow_fixtures import Recorder, recording

AT_MS = 1_700_000_000_000
EVENTS = [
    (event, AT_MS + number)
    for number, event in enumerate(announced())
    if isinstance(event, JobEvent | CurrentModel | ModelRefused)
]


def check_versions(versions: list[dict[str, Any]]) -> None:
    """Each model that became the current one is there, and why it did."""
    current = [event for event, _ in EVENTS if isinstance(event, CurrentModel)]
    said = [{tag["key"]: tag["value"] for tag in version["tags"]} for version in versions]
    why = {int(tags["tidemill.version"]): tags["tidemill.why"] for tags in said}
    assert len(why) == len(said) == len(current)
    for event in current:
        match event:
            case ModelPublished():
                begins = f"published by {event.manifest.lineage.job_id}"
            case RolledBack():
                begins = f"rolled back to: {event.reason}"
            case CanaryPromoted():
                begins = f"promoted, having been canary version {event.canary_version}: {event.reason}"
            case _:
                raise AssertionError(f"nothing is held against {event.event_id()}")
        assert why[event.manifest.version].startswith(begins)


@pytest.fixture
async def recorder() -> AsyncIterator[tuple[Recorder, str]]:
    async with recording() as found:
        yield found


async def test_every_request_has_names_that_mlflow_knows_and_nothing_is_made_twice(
    recorder: tuple[Recorder, str],
) -> None:
    seen, url = recorder
    for _ in range(2):  # a second mirror knows nothing of the first
        async with Mlflow(url, token="of the test") as server:
            await server.take(EVENTS)
    assert seen.wrong == []
    jobs = {e.job_id for e, _ in EVENTS if isinstance(e, JobRequested | ModelRefused)}
    jobs |= {e.manifest.lineage.job_id for e, _ in EVENTS if isinstance(e, CurrentModel)}
    made = [tag["value"] for run in seen.runs.values() for tag in run["data"]["tags"][:1]]
    assert sorted(made) == sorted(set(made))
    assert jobs <= set(made)
    published = [e for e, _ in EVENTS if isinstance(e, CurrentModel)]
    assert len(seen.versions) == seen.asked["model-versions/create"] == len(published)
    check_versions(seen.versions)
    assert seen.aliases == {"live": str(len(published))}
    steps = {metric["step"] for metric in seen.metrics if metric["key"] == "loss"}
    assert steps == {e.step for e, _ in EVENTS if isinstance(e, JobProgress)}


async def test_a_collector_is_told_of_each_published_model_by_its_own_event() -> None:
    (published,) = [e for e, _ in EVENTS if isinstance(e, ModelPublished)]
    job_id = published.manifest.lineage.job_id
    started = JobStarted(job_id=job_id, attempt=1, device="cpu", started_ms=1_000)
    passed_over = [each for each, _ in EVENTS if isinstance(each, JobRequested | JobProgress)]
    events = [(each, 0) for each in (started, *passed_over, published)]
    told: list[Any] = []
    statuses = [503, 200, 503, 200, 200, 400]

    async def take(request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer of the test"
        if (status := statuses.pop(0)) == 200:
            told.append(await request.json())
        return web.Response(status=status)

    application = web.Application()
    application.router.add_post("/api/v1/lineage", take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port := free_port()).start()
    async with Collector(f"http://127.0.0.1:{port}/api/v1/lineage", token="of the test") as collector:
        for _ in range(2):  # the second time the run's start is told, and not its end
            with pytest.raises(CollectorAway):
                await collector.take(events)
        await collector.take(events)
        with pytest.raises(CollectorRefuses, match="whole address"):
            await collector.take(events)
        await runner.cleanup()
        with pytest.raises(CollectorAway, match="no collector answers"):
            await collector.take(events)
    start = start_event(published.manifest, 1_000)
    assert told == json.loads(json.dumps([start, start, run_event(published.manifest)]))
    assert start["run"] == run_event(published.manifest)["run"]


async def test_a_job_that_was_asked_for_before_the_topic_begins_is_passed_over(
    recorder: tuple[Recorder, str],
) -> None:
    seen, url = recorder
    late = JobFailed(job_id="unheard-of", attempt=1, reason="r", log_tail="", finished_ms=1)
    async with Mlflow(url) as server:
        await server.take([(late, AT_MS)])
    assert not seen.asked


async def test_a_server_that_is_away_is_told_again_and_one_that_refuses_is_not(
    recorder: tuple[Recorder, str],
) -> None:
    seen, url = recorder
    async with Mlflow(f"http://127.0.0.1:{free_port()}") as server:
        with pytest.raises(MlflowAway):
            await server.take(EVENTS[:1])
    for status, error in ((503, MlflowAway), (400, MlflowRefuses)):
        seen.refuses = {"runs/create": status}
        async with Mlflow(url) as server:
            with pytest.raises(error, match="runs/create" if status == 400 else str(status)):
                await server.take(EVENTS[:1])


# ── a real server ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), cache_dir=load().cache_dir) as url:
        yield url


async def say(producer: AIOKafkaProducer, event: Announcement, time_ms: int) -> None:
    key, value, headers = wrap(event, source="/test", time_ms=time_ms).record()
    topic = topics.JOBS.name if isinstance(event, JobEvent) else topics.MODELS.name
    await producer.send_and_wait(topic, key=key, value=value, headers=headers)


@pytest.mark.elsewhere
@pytest.mark.timeout(600)
async def test_a_real_server_shows_runs_curves_and_versions_and_told_again_the_same(
    kafka: EmbeddedBroker, server: str
) -> None:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    await ensure(FOLLOWED, connection)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for event, time_ms in EVENTS:
            await say(producer, event, time_ms)
    environment = {**os.environ, "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": str(kafka.bootstrap_servers)}
    for _ in range(2):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "infra.command", "mirror", "mlflow", "--url", server, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["events"] == len(EVENTS)

    asked = next(e for e, _ in EVENTS if isinstance(e, JobRequested))
    progress = [e for e, _ in EVENTS if isinstance(e, JobProgress) and e.job_id == asked.job_id]
    async with httpx.AsyncClient(base_url=f"{server}/api/2.0/mlflow/", trust_env=False) as http:
        named = {"experiment_name": f"tidemill/{asked.experiment.model}"}
        (await http.get("experiments/get-by-name", params=named)).raise_for_status()
        experiment = (await http.get("experiments/get-by-name", params=named)).json()["experiment"]
        found = await http.post("runs/search", json={"experiment_ids": [experiment["experiment_id"]]})
        runs = {
            tag["value"]: run
            for run in found.json()["runs"]
            for tag in run["data"]["tags"]
            if tag["key"] == "tidemill.job_id"
        }
        assert len(runs) == len(found.json()["runs"])
        run = runs[asked.job_id]
        params = {param["key"]: param["value"] for param in run["data"]["params"]}
        assert (params["seed"], params["code"]) == (str(asked.experiment.seed), asked.experiment.code)
        for name in {name for each in progress for name in each.metrics}:
            curve = await http.get(
                "metrics/get-history", params={"run_id": run["info"]["run_id"], "metric_key": name}
            )
            points = [(each["step"], each["value"]) for each in curve.json()["metrics"]]
            assert points == [(each.step, each.metrics[name]) for each in progress if name in each.metrics]
        live = (
            await http.get(
                "registered-models/alias", params={"name": asked.experiment.model, "alias": "live"}
            )
        ).json()["model_version"]
        newest = max((e for e, _ in EVENTS if isinstance(e, CurrentModel)), key=lambda e: e.manifest.version)
        tags = {tag["key"]: tag["value"] for tag in live["tags"]}
        assert tags["tidemill.version"] == str(newest.manifest.version)
        assert tags["tidemill.artifact_sha256"] == newest.manifest.artifact.sha256
        every = (await http.get("model-versions/search")).json()["model_versions"]
        check_versions(every)


@pytest.mark.elsewhere
@pytest.mark.timeout(600)
async def test_what_could_not_be_told_is_told_when_the_server_is_back(
    kafka: EmbeddedBroker, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    failures = 2
    async with Mlflow(server) as told:

        async def tell(events: Any) -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise MlflowAway("not yet")
            await told.take(events)

        monkeypatch.setattr("infra.mirror._AGAIN_S", 0.01)
        assert await mirror(connection, tell, follow=False) >= len(EVENTS)
    assert failures < 0
