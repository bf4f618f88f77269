"""Whatever dies, and when: a job ends in exactly one model event."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.settings import Paths, Settings
from schemas import topics
from schemas.contract import Announcement
from schemas.job import JobFailed, JobRequested, JobStarted, JobSucceeded, Resources
from schemas.model import Field, Lineage, ModelPublished, ModelRefused, RolledBack, Scores
from tests.trainer_fixtures import (
    GIB,
    Nvml,
    NvmlDevice,
    Topics,
    TrainerProcess,
    a_job,
    jobs_of,
    write_dataset,
    write_model_code,
)
from trainers.assignment import Outcome
from trainers.bulletin import FOLLOWED
from trainers.conclusion import Conclusion, conclude, write_down
from trainers.devices import survey
from trainers.standby import JOB_NAME, WARM_NAME
from trainers.trainer import Trainer

MOST_ATTEMPTS = Settings().trainer.attempts

HISTORY, CURRENT, JOBS = topics.MODELS.name, topics.MODELS_CURRENT.name, topics.JOBS.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    write_dataset(folder / "dataset")
    return folder / "dataset"


@pytest.fixture(scope="module")
def code(folder: Path) -> Path:
    return write_model_code(folder / "code")


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(folder / "kafka") as broker:
        connection = Connection(bootstrap_servers=broker.bootstrap_servers)
        asyncio.run(ensure(FOLLOWED, connection))
        yield broker


@pytest.fixture(scope="module")
def trainer(folder: Path, code: Path, broker: EmbeddedBroker) -> Iterator[TrainerProcess]:
    trainer = TrainerProcess(folder / "home", broker.bootstrap_servers, code)
    trainer.start()
    yield trainer
    trainer.stop()


@pytest.fixture
def waiting(dataset: Path, tmp_path: Path) -> Callable[[str], JobRequested]:
    """A job whose training says that it is there (file `mark`) and goes on when told to (file `go`)."""
    params = {"mark": str(tmp_path / "mark"), "go": str(tmp_path / "go")}
    return lambda model: a_job(dataset, "bad:waits", model, params=params)


def models_of(seen: Topics, job: JobRequested, topic: str) -> list[str]:
    """Ids of all model events of a job on one topic, repeats included."""
    found = []
    for at, event_id, event in seen.events:
        match event:
            case ModelPublished(manifest=manifest) if at == topic:
                if manifest.lineage.job_id == job.job_id:
                    found.append(event_id)
            case ModelRefused(job_id=job.job_id) if at == topic:
                found.append(event_id)
            case _:
                pass
    return found


async def test_a_second_trainer_in_the_same_folder_is_refused(
    trainer: TrainerProcess, broker: EmbeddedBroker, dataset: Path
) -> None:
    async with Topics(broker.bootstrap_servers) as seen:
        job = a_job(dataset, "good:train", "alone")
        await seen.ask(job)
        assert isinstance(await seen.one(job, ModelPublished, JobFailed), ModelPublished)
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "infra.command", "trainer"],
        env=trainer.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    said = " ".join((second.stderr + second.stdout).split())
    assert "another trainer works in" in said
    assert "Traceback" not in said


async def test_a_trainer_killed_in_the_middle_of_a_job_runs_it_again_and_leaves_no_process_behind(
    trainer: TrainerProcess,
    broker: EmbeddedBroker,
    waiting: Callable[[str], JobRequested],
    tmp_path: Path,
) -> None:
    async with Topics(broker.bootstrap_servers) as seen:
        job = waiting("killed")
        await seen.ask(job)
        await seen.until((tmp_path / "mark").exists)
        # On a busy machine user code is there before the event of its start; an attempt that nobody was told
        # of is not counted, and the next would be the first again.
        await seen.one(job, JobStarted)
        family = psutil.Process(trainer.pid).children(recursive=True)
        assert {p.name() for p in family} >= {WARM_NAME, JOB_NAME}
        trainer.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 5)
        assert alive == []

        (tmp_path / "mark").unlink()
        trainer.start()
        await seen.until((tmp_path / "mark").exists, timeout_s=180)  # torch is imported anew
        (tmp_path / "go").touch()
        published = await seen.one(job, ModelPublished, JobFailed)
        assert isinstance(published, ModelPublished), published
        await seen.until(lambda: models_of(seen, job, CURRENT))
        assert [s.attempt for s in seen.of_job(job, JobStarted)] == [1, 2]
        assert len(seen.of_job(job, JobSucceeded)) == 1
        assert models_of(seen, job, HISTORY) == models_of(seen, job, CURRENT) == [published.event_id()]


async def test_a_broker_that_dies_while_a_model_is_trained_keeps_nothing_from_being_said(
    trainer: TrainerProcess,
    broker: EmbeddedBroker,
    waiting: Callable[[str], JobRequested],
    tmp_path: Path,
) -> None:
    async with Topics(broker.bootstrap_servers) as seen:
        job = waiting("broker")
        await seen.ask(job)
        await seen.until((tmp_path / "mark").exists)
        await seen.one(job, JobStarted)
    port = broker.port
    (process,) = jobs_of(trainer.pid)
    await asyncio.to_thread(broker.kill)
    (tmp_path / "go").touch()
    await asyncio.to_thread(psutil.wait_procs, [process], 30)
    assert not process.is_running()
    await asyncio.to_thread(broker.start)
    assert broker.port == port
    async with Topics(broker.bootstrap_servers) as seen:
        published = await seen.one(job, ModelPublished, JobFailed)
        assert isinstance(published, ModelPublished), published
        await seen.until(lambda: models_of(seen, job, CURRENT))
        assert set(models_of(seen, job, HISTORY)) == {published.event_id()}
        assert [s.attempt for s in seen.of_job(job, JobStarted)] == [1]


async def test_a_trainer_told_to_end_ends_at_once_and_its_job_stays_open(
    trainer: TrainerProcess,
    broker: EmbeddedBroker,
    waiting: Callable[[str], JobRequested],
    tmp_path: Path,
) -> None:
    async with Topics(broker.bootstrap_servers) as seen:
        job = waiting("told")
        await seen.ask(job)
        await seen.until((tmp_path / "mark").exists)
        family = psutil.Process(trainer.pid).children(recursive=True)
        began = time.monotonic()
        assert await asyncio.to_thread(trainer.stop) == 0
        assert time.monotonic() - began < 10
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 5)
        assert alive == []
        await seen.read()
        assert [type(e) for e in seen.of_job(job)] == [JobRequested, JobStarted]
        # Out of the way of the next trainer, which would run it.
        await seen.say(JOBS, JobFailed(job_id=job.job_id, attempt=1, reason="", log_tail="", finished_ms=1))


# Below, the trainer itself runs in this process: it is stopped between the events of a job's end.


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(paths=Paths(home=tmp_path / "home"))


def a_trainer(settings: Settings, broker: EmbeddedBroker, devices: Nvml | None = None) -> Trainer:
    nvml = devices or Nvml(driver=False)
    return Trainer(
        settings,
        Connection(bootstrap_servers=broker.bootstrap_servers),
        store_url="http://store/",
        look_at_gpus=lambda: survey(nvml),
    )


def concluded(job: JobRequested, version: int = 1) -> Conclusion:
    """What a job came to, its model `version`."""
    lineage = Lineage(
        pipeline="test",
        job_id=job.job_id,
        decision_id=None,
        dataset_uri="",
        dataset_version=1,
        window_ids=[],
        offsets=[],
        code="good:train",
        code_sha256="",
        configuration_sha256="",
        params={},
        seed=0,
        parent_sha256=None,
        rows=10,
        libraries={},
        device="cpu",
    )
    outcome = Outcome(
        sha256=f"{version:064x}",
        size_bytes=8,
        architecture="tabular",
        config={},
        inputs=[Field(name="x", type="float")],
        example={"x": 1.0},
        lineage=lineage,
        champion=None,
        challenger=Scores(rows=1000, auc=0.9, log_loss=0.3, accuracy=0.8),
        comparison=None,
        findings=[],
        rows=10,
        train_s=1.5,
        trained_ms=5,
    )
    conclusion = conclude(
        job, 1, outcome, judged_against=None, champion=None, store_url="http://store/", now_ms=7
    )
    assert conclusion.published is not None
    manifest = msgspec.structs.replace(conclusion.published.manifest, version=version)
    published = msgspec.structs.replace(conclusion.published, manifest=manifest)
    return msgspec.structs.replace(conclusion, published=published)


@pytest.mark.parametrize("said", [0, 1, 2, 3])
async def test_a_trainer_that_died_between_the_events_of_a_jobs_end_says_the_rest_and_trains_nothing(
    settings: Settings, broker: EmbeddedBroker, dataset: Path, said: int
) -> None:
    job = a_job(dataset, "good:train", f"between-{said}")
    conclusion = concluded(job)
    trainer = a_trainer(settings, broker)
    assert conclusion.published is not None
    published = trainer.keys.signed(conclusion.published)
    ends: list[tuple[str, Announcement]] = [
        (JOBS, conclusion.succeeded),
        (HISTORY, published),
        (CURRENT, published),
    ]
    write_down(trainer.folder(job.job_id), conclusion)
    async with Topics(broker.bootstrap_servers) as seen:
        await seen.ask(job)
        for topic, event in ends[:said]:
            await seen.say(topic, event)
        await trainer.start()
        try:
            assert job.job_id in trainer.registry.over
            assert trainer.registry.champion(job.experiment.model) == conclusion.published.manifest
        finally:
            await trainer.stop()
        await seen.until(lambda: models_of(seen, job, CURRENT))
        event_id = conclusion.published.event_id()
        assert models_of(seen, job, HISTORY) == models_of(seen, job, CURRENT) == [event_id]
        assert seen.of_job(job, JobSucceeded) == [conclusion.succeeded]
        assert not seen.of_job(job, JobStarted)


async def test_a_conclusion_that_another_model_overtook_is_not_said(
    settings: Settings, broker: EmbeddedBroker, dataset: Path
) -> None:
    job, other = a_job(dataset, "good:train", "overtaken"), a_job(dataset, "good:train", "overtaken")
    trainer = a_trainer(settings, broker)
    write_down(trainer.folder(job.job_id), concluded(job))
    published = concluded(other).published
    assert published is not None
    back = trainer.keys.signed(
        RolledBack(
            name="overtaken",
            from_version=1,
            to_artifact_of_version=1,
            reason="a person asked for it",
            manifest=msgspec.structs.replace(published.manifest, version=2),
            rolled_back_ms=1,
        )
    )
    async with Topics(broker.bootstrap_servers) as seen:
        await seen.ask(job)
        await seen.say(HISTORY, trainer.keys.signed(published))
        await seen.say(HISTORY, back)
        await trainer.start()
        await trainer.stop()
        assert [j.job_id for j in trainer.registry.open_jobs()] == [job.job_id]
        # What the history says of a rollback, the current topic is told too.
        current = await seen.until(lambda: [e for t, _, e in seen.events if t == CURRENT and e == back])
        assert len(current) == 1
        # Out of the next tests' way.
        await seen.say(JOBS, JobFailed(job_id=job.job_id, attempt=1, reason="", log_tail="", finished_ms=1))


async def test_jobs_go_to_the_gpus_that_nvml_shows_and_what_can_never_run_is_told_so(
    settings: Settings,
    broker: EmbeddedBroker,
    dataset: Path,
    code: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The devices are made up: a job on one of them fails, as one does whose GPU has just gone."""
    monkeypatch.setenv("PYTHONPATH", str(code))
    devices = [NvmlDevice(free_bytes=GIB) for _ in range(8)]
    devices[3] = NvmlDevice()
    devices[5] = NvmlDevice(error=2)
    trainer = a_trainer(settings, broker, Nvml(devices))
    on_gpu = Resources(device="cuda", gpu_memory_bytes=2 * GIB, memory_bytes=2**28)
    too_large = msgspec.structs.replace(on_gpu, gpu_memory_bytes=200 * GIB)
    first = a_job(dataset, "good:train", "gpu", resources=on_gpu)
    never = a_job(dataset, "good:train", "never", resources=too_large)
    weary = a_job(dataset, "good:train", "weary")
    on_cpu = a_job(dataset, "good:train", "cpu", resources=msgspec.structs.replace(on_gpu, device="cpu"))
    async with Topics(broker.bootstrap_servers) as seen:
        # This one has seen its trainer die time and again.
        for attempt in range(1, MOST_ATTEMPTS + 1):
            started = JobStarted(job_id=weary.job_id, attempt=attempt, device="cpu", started_ms=1)
            await seen.say(JOBS, started)
        await seen.ask(first, never, weary, on_cpu)
        await trainer.start()
        running = asyncio.create_task(trainer.run())
        try:
            failed = await seen.one(first, JobFailed, ModelPublished)
            assert isinstance(failed, JobFailed)
            assert "cuda" in failed.reason.lower() or "nvidia" in failed.reason.lower()
            assert seen.of_job(first, JobStarted)[0].device == "cuda:3 NVIDIA H200"
            assert "139.0 GiB" in (await seen.one(never, JobFailed)).reason
            assert f"died under it {MOST_ATTEMPTS} times" in (await seen.one(weary, JobFailed)).reason
            assert isinstance(await seen.one(on_cpu, ModelPublished, JobFailed), ModelPublished)

            # The warm process itself dies: the next job gets a new one.
            psutil.Process(trainer.standby.pid).kill()
            after = a_job(dataset, "good:train", "after", resources=on_cpu.experiment.resources)
            await seen.ask(after)
            assert isinstance(await seen.one(after, ModelPublished, JobFailed), ModelPublished)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await trainer.stop()
