"""From a job to a service over a real S3 store that is away when the model is to be published."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from schemas import topics
from schemas.client import ModelFollower
from schemas.job import JobFailed, JobRequested, JobRetried, JobStarted
from schemas.model import ModelPublished
from tests.s3_fixtures import BUCKET, S3Server
from tests.trainer_fixtures import Topics, TrainerProcess, a_job, write_dataset, write_model_code


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path / "kafka") as broker:
        yield broker


def trainer_on(server: S3Server, home: Path, broker: EmbeddedBroker, code: Path) -> TrainerProcess:
    settings = {f"TIDEMILL_STORE__{name.upper()}": str(value) for name, value in server.settings.items()}
    impatient = {
        "TIDEMILL_STORE__RETRIES": "1",
        "TIDEMILL_TRAINER__ATTEMPTS": "3",
        "TIDEMILL_TRAINER__RETRY_AFTER_S": "0.5",
    }
    return TrainerProcess(home, broker.bootstrap_servers, code, **settings, **impatient)


async def test_a_store_that_is_away_is_a_failed_job_and_costs_no_second_training(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    dataset, code = tmp_path / "dataset", write_model_code(tmp_path / "code")
    write_dataset(dataset)
    await ensure(topics.TOPICS, Connection(bootstrap_servers=broker.bootstrap_servers))
    server = S3Server(tmp_path / "s3")  # not started: its port is closed
    trainer = trainer_on(server, tmp_path / "home", broker, code)
    trainer.start()
    try:
        async with Topics(broker.bootstrap_servers) as seen:
            job = a_job(dataset, "good:train", "away")
            await seen.ask(job)
            failed: Any = await seen.one(job, JobFailed)
            assert "given up after 3 attempts" in failed.reason
            assert f"s3://{BUCKET}/flights" in failed.reason
            assert [e.attempt for e in seen.of_job(job, JobStarted)] == [1, 2, 3]
            assert times_trained(trainer, job) == 1
            assert seen.of_job(job, ModelPublished) == []

            nosy = a_job(dataset, "bad:looks_around", "nosy")
            await seen.ask(nosy)
            tail = (await seen.one(nosy, JobFailed)).log_tail
            assert "PATH" in tail
            assert "TIDEMILL_" not in tail

            again = a_job(dataset, "good:train", "away")
            await seen.ask(again)
            await seen.one(again, JobRetried)
            # The trainer dies, with the weights made and the event unsaid: the next one goes on from there.
            trainer.kill()
            server.start()
            trainer.start()
            published: Any = await seen.one(again, ModelPublished)
            assert times_trained(trainer, again) == 1
        sha256 = published.manifest.artifact.sha256
        assert published.manifest.artifact.uri == f"s3://{BUCKET}/flights/{sha256}.safetensors"
        assert [path.name for path in server.files] == [f"{sha256}.safetensors"]
        await a_service_takes(broker, tmp_path / "cache", server, published)
    finally:
        assert trainer.stop() == 0, trainer.log_file.read_text()
        server.kill()


def times_trained(trainer: TrainerProcess, job: JobRequested) -> int:
    return (trainer.home / "jobs" / job.job_id / "job.log").read_text().count("trained on")


async def a_service_takes(
    broker: EmbeddedBroker, cache: Path, server: S3Server, published: ModelPublished
) -> None:
    async with ModelFollower(
        published.name,
        client={"bootstrap_servers": broker.bootstrap_servers},
        stores=[f"s3://{BUCKET}/flights/"],
        service="display",
        cache_dir=cache,
        s3=server.options,
    ) as following:
        model = await asyncio.wait_for(following.ready(), 60)
        assert model.sha256 == published.manifest.artifact.sha256
