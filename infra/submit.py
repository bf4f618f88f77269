"""Ask for a training from Python: the same event that a trigger's decision and `tidemill train` send.

from infra.settings import load
from infra.submit import ended, submit

job = await submit(load(), experiment, priority=1, why="does a wider network help?")
print((await ended(load(), job.job_id)).state)
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer

from infra.job_board import Job, follow
from infra.kafka.cluster import find_cluster
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.settings import Settings
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration
from schemas.job import Experiment, JobRequested, JobStopRequested

SOURCE = "/tidemill/submit"


async def submit(
    settings: Settings, experiment: Experiment, *, priority: int = 0, why: str = "", job_id: str = ""
) -> JobRequested:
    """Announce that a training is wanted; on return the cluster holds the request.

    Args:
        priority: -100 to 100; see `JobRequested`.
        why: in words, for whoever reads the event.
        job_id: a name of your own, the same for a repeat of the same request; else one is made of the model's
            name and what determines the result.

    Raises:
        InvalidConfiguration: no cluster is there.
    """
    job = request(experiment, priority=priority, why=why, job_id=job_id)
    await announce(connected(settings), [job])
    return job


def request(experiment: Experiment, *, priority: int = 0, why: str = "", job_id: str = "") -> JobRequested:
    """The event that `submit` announces."""
    made = f"{experiment.model}-{experiment.run_key()[:8]}-{secrets.token_hex(3)}"
    return JobRequested(
        job_id=job_id or made,
        experiment=experiment,
        decision_id=None,
        requested_ms=int(time.time() * 1000),
        priority=priority,
        why=why,
    )


async def stop(settings: Settings, job_id: str, *, reason: str) -> None:
    """Have a job ended, whether it runs or waits: it fails with that reason.

    Raises:
        InvalidConfiguration: no cluster is there.
    """
    await announce(connected(settings), [stop_request(job_id, reason=reason)])


def stop_request(job_id: str, *, reason: str) -> JobStopRequested:
    """The event that `stop` announces."""
    return JobStopRequested(job_id=job_id, reason=reason, requested_ms=int(time.time() * 1000))


async def ended(settings: Settings, job_id: str) -> Job:
    """Wait until nothing more will come of a job; gives its whole account.

    Raises:
        InvalidConfiguration: no cluster is there.
    """
    async with contextlib.aclosing(follow(connected(settings))) as boards:
        async for board in boards:
            job = board.jobs.get(job_id)
            if job is not None and job.is_over:
                return job
    raise AssertionError("following never ends by itself")


def connected(settings: Settings) -> Connection:
    """The cluster that is there.

    Raises:
        InvalidConfiguration: there is none.
    """
    connection = find_cluster(settings)
    if connection is None:
        raise InvalidConfiguration("no broker runs here; start one by `tidemill up`, or name your cluster")
    return connection


async def announce(connection: Connection, events: Sequence[Announcement]) -> None:
    """Put events on the job topic; on return the cluster holds them all."""
    await ensure((topics.JOBS, topics.MODELS), connection)
    producer = AIOKafkaProducer(**connection.client_arguments(), enable_idempotence=True, acks="all")
    await producer.start()
    try:
        for event in events:
            key, value, headers = wrap(event, source=SOURCE, time_ms=int(time.time() * 1000)).record()
            await producer.send_and_wait(topics.JOBS.name, key=key, value=value, headers=headers)
    finally:
        await producer.stop()
