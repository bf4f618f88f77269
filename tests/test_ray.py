"""Jobs on a real Ray head, through its Jobs API: the same events as of a process of this machine."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.settings import load
from infra.settings_model import Ray
from infra.submit import stop_request
from loadtest.elsewhere.head import Head, ray_head
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.job import JobFailed, JobPreempted, JobProgress, JobStarted, JobSucceeded, Resources
from schemas.model import ModelPublished
from tests.trainer_fixtures import Topics, TrainerProcess, a_job, write_dataset, write_model_code
from trainers.ray import RayCluster

pytestmark = [pytest.mark.elsewhere, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Of a short name, as Ray's sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Head]:
    place = folder / "r"
    place.mkdir()
    with ray_head(place, cache_dir=load().cache_dir) as head:
        yield head


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(folder / "kafka") as broker:
        yield broker


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    write_dataset(folder / "dataset")
    return folder / "dataset"


@pytest.fixture(scope="module")
def trainer(folder: Path, head: Head, broker: EmbeddedBroker) -> Iterator[TrainerProcess]:
    code = write_model_code(folder / "code")
    trainer = TrainerProcess(
        folder / "home",
        broker.bootstrap_servers,
        code,
        TIDEMILL_TRAINER__BACKEND="ray",
        TIDEMILL_TRAINER__YIELD_GRACE_S="1",
        TIDEMILL_RAY__ADDRESS=head.address,
        TIDEMILL_RAY__TOKEN=head.token,
        TIDEMILL_RAY__PYTHON=sys.executable,
        TIDEMILL_RAY__JOBS_AT_ONCE="2",
        TIDEMILL_RAY__ENVIRONMENT=f'{{"PYTHONPATH": "{code}"}}',
    )
    trainer.start()
    yield trainer
    assert trainer.stop() == 0, trainer.log_file.read_text()


@pytest_asyncio.fixture
async def seen(broker: EmbeddedBroker, trainer: TrainerProcess) -> AsyncIterator[Topics]:
    connection = Connection(bootstrap_servers=broker.bootstrap_servers)
    await ensure((topics.JOBS, topics.MODELS, topics.MODELS_CURRENT), connection)
    async with Topics(broker.bootstrap_servers) as seen:
        yield seen


async def submissions(head: Head, job_id: str) -> list[dict[str, Any]]:
    """What Ray knows of a job."""
    headers = {"authorization": f"Bearer {head.token}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as http:
        known = (await http.get(f"{head.address}/api/jobs/")).json()
    return [each for each in known if (each.get("metadata") or {}).get("job_id") == job_id]


async def test_a_job_on_the_cluster_becomes_a_model_by_the_same_events(
    seen: Topics, dataset: Path, head: Head
) -> None:
    job = a_job(dataset, "good:train", "far")
    await seen.ask(job)
    published = await seen.one(job, ModelPublished, JobFailed)
    assert isinstance(published, ModelPublished), published
    (started,) = seen.of_job(job, JobStarted)
    assert started.device == "Ray, cpu"
    assert seen.of_job(job, JobProgress)[-1].step == 60
    assert seen.of_job(job, JobSucceeded)[0].artifact_sha256 == published.manifest.artifact.sha256
    (submission,) = await submissions(head, job.job_id)
    assert submission["submission_id"].startswith("tidemill-")


async def test_code_that_raises_fails_with_its_log_and_one_that_vanishes_with_its_exit_code(
    seen: Topics, dataset: Path
) -> None:
    raises, vanishes = a_job(dataset, "bad:raises", "raises"), a_job(dataset, "bad:vanishes", "vanishes")
    await seen.ask(raises, vanishes)
    failed = await seen.one(raises, JobFailed)
    assert "no luck today" in failed.reason
    assert "Traceback" in failed.log_tail
    failed = await seen.one(vanishes, JobFailed)
    assert "about to vanish" in failed.log_tail
    assert "its process died" in failed.reason


async def test_a_job_that_takes_too_long_and_one_that_nobody_wants_are_ended_there(
    seen: Topics, dataset: Path, head: Head
) -> None:
    short = Resources(device="cpu", memory_bytes=2**28, time_limit_s=3)
    long, unwanted = a_job(dataset, "bad:hangs", "long", resources=short), a_job(dataset, "bad:hangs", "not")
    await seen.ask(long, unwanted)
    failed = await seen.one(long, JobFailed)
    assert "longer than its limit of 3 s" in failed.reason
    await seen.one(unwanted, JobProgress)
    await seen.say(topics.JOBS.name, stop_request(unwanted.job_id, reason="seen enough"))
    assert (await seen.one(unwanted, JobFailed)).reason == "seen enough"
    for job in (long, unwanted):
        ((submission,),) = [await submissions(head, job.job_id)]
        assert submission["status"] == "STOPPED"


async def test_a_trainer_that_was_killed_goes_on_with_what_runs_there(
    seen: Topics, dataset: Path, head: Head, trainer: TrainerProcess, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    job = a_job(dataset, "bad:waits", "patient", params={"mark": str(mark), "go": str(go), "steps": 60})
    await seen.ask(job)
    await seen.one(job, JobStarted)
    await seen.until(mark.exists)
    trainer.kill()
    trainer.start()
    await asyncio.sleep(1.0)
    go.touch()
    published = await seen.one(job, ModelPublished, JobFailed)
    assert isinstance(published, ModelPublished), published
    assert {(s.attempt, s.started_ms) for s in seen.of_job(job, JobStarted)} == {
        (1, seen.of_job(job, JobStarted)[0].started_ms)
    }
    assert len(await submissions(head, job.job_id)) == 1
    folder = trainer.home / "jobs" / job.job_id
    await seen.until(lambda: not list(folder.glob("attempt-*")))


async def test_a_job_makes_room_and_goes_on_from_the_state_that_it_kept(
    seen: Topics, dataset: Path, tmp_path: Path
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    kept = a_job(dataset, "good:steady", "kept", params={"mark": str(mark), "go": str(go)})
    other = a_job(dataset, "bad:hangs", "other")
    await seen.ask(kept, other)
    await seen.until(mark.exists)
    await seen.one(other, JobProgress)
    await asyncio.sleep(2.0)  # a state is kept once a second
    urgent = a_job(dataset, "good:train", "urgent")
    urgent = type(urgent)(
        job_id=urgent.job_id,
        experiment=urgent.experiment,
        decision_id=None,
        requested_ms=urgent.requested_ms,
        priority=5,
    )
    await seen.ask(urgent)
    assert isinstance(await seen.one(urgent, ModelPublished, JobFailed), ModelPublished)
    moved = [e for job in (kept, other) for e in seen.of_job(job, JobPreempted)]
    assert len(moved) == 1
    go.touch()
    await seen.say(topics.JOBS.name, stop_request(other.job_id, reason="seen enough"))
    published = await seen.one(kept, ModelPublished, JobFailed)
    assert isinstance(published, ModelPublished), published


async def test_a_wrong_token_is_said_with_the_way_out(head: Head, tmp_path: Path) -> None:
    cluster = RayCluster(Ray.model_validate({"address": head.address, "token": "0" * 64}), tmp_path)
    with pytest.raises(InvalidConfiguration, match=r"ray\.token_file"):
        await cluster.reach()
    await cluster.stop()
