"""Four measurements of jobs: the schedule's own cost, the start, fairness, and kills."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from loadtest.jobs.site import Site, site, spread
from schemas.examples import announced
from schemas.job import JobFailed, JobRequested, Resources
from trainers.admission import Host
from trainers.devices import Gpu
from trainers.registry import Registry
from trainers.schedule import Start, Terms, promised, schedule

GIB = 2**30
_PATIENCE_S = 300.0


def scheduler_cost(queued: int) -> dict[str, float]:
    """CPU time of taking in, ordering, placing and ending so many jobs on eight GPUs, by the job.

    All wait at once, in as many sizes as eight GPUs have sense for; each end of a job is one more decision
    over the whole queue.
    """
    asked = next(event for event in announced() if isinstance(event, JobRequested))
    gpus = [
        Gpu(index=i, uuid=f"GPU-{i}", name="made up", total_bytes=80 * GIB, free_bytes=80 * GIB)
        for i in range(8)
    ]
    host = Host(cpus=64, memory_bytes=1024 * GIB)
    registry, terms = Registry(), Terms()
    events: list[JobRequested] = []
    for number in range(queued):
        resources = Resources(
            device="cuda", gpu_memory_bytes=(1 + number % 40) * GIB, cpus=1 + number % 3, time_limit_s=60
        )
        experiment = msgspec.structs.replace(
            asked.experiment, model=f"m{number}", seed=number, resources=resources
        )
        events.append(
            msgspec.structs.replace(
                asked,
                job_id=f"j{number}",
                experiment=experiment,
                priority=number % 5,
                requested_ms=number,
            )
        )
    began_s = time.process_time()
    running: dict[str, Any] = {}
    slowest_s, now_ms, plans = 0.0, queued, 0
    for event in events:
        registry.note("", event)
    done = 0
    while done < queued:
        plan_began_s = time.process_time()
        waiting = registry.waiting(but_not=running.keys())
        plan = schedule(waiting, list(running.values()), gpus, host, now_ms=now_ms, terms=terms)
        slowest_s, plans = max(slowest_s, time.process_time() - plan_began_s), plans + 1
        by_id = {job.job_id: job for job in waiting}
        for action in plan.actions:
            if isinstance(action, Start):
                running[action.job_id] = promised(
                    by_id[action.job_id], action.admission, now_ms=now_ms, terms=terms
                )
        now_ms += 1_000
        ended = next(iter(running))
        del running[ended]
        done += 1
        registry.note("", JobFailed(job_id=ended, attempt=1, reason="", log_tail="", finished_ms=now_ms))
    took_s = time.process_time() - began_s
    return {
        "queued": queued,
        "plans": plans,
        "cpu_ms_per_job": took_s / queued * 1000,
        "slowest_plan_cpu_ms": slowest_s * 1000,
    }


async def start_latency(here: Site, jobs: int) -> dict[str, float]:
    """From a request to the start of its process, one job after another, by their own clocks."""
    took_ms: list[float] = []
    for number in range(jobs):
        job = here.job(f"latency-{number}", "latency", seed=number, steps=1, pause_s=0)
        await here.ask(job)
        await here.until(lambda job=job: here.ends()[job.job_id] > 0, limit_s=_PATIENCE_S)
        took_ms.append(here.started()[job.job_id].started_ms - job.requested_ms)
    return {"jobs": jobs, **{f"{name}_ms": value for name, value in spread(took_ms).items()}}


async def fairness(here: Site, jobs: int, kinds: int) -> dict[str, Any]:
    """Many jobs of a few kinds at once: when each kind first starts, and how long its jobs wait."""
    asked = [here.job(f"fair-{n}", f"kind-{n % kinds}", seed=n, steps=10, pause_s=0.05) for n in range(jobs)]
    await here.ask(*asked)
    await here.until(lambda: all(here.ends()[job.job_id] for job in asked), limit_s=_PATIENCE_S)
    started = here.started()
    waits: dict[str, list[float]] = {}
    for job in asked:
        wait_s = (started[job.job_id].started_ms - job.requested_ms) / 1000
        waits.setdefault(job.experiment.model, []).append(wait_s)
    means = {kind: sum(each) / len(each) for kind, each in waits.items()}
    return {
        "jobs": jobs,
        "kinds": kinds,
        "side_by_side": here.cpus,
        "mean_wait_s": means,
        "first_start_s": {kind: min(each) for kind, each in waits.items()},
        "slowest_kind_to_fastest": max(means.values()) / max(1e-9, min(means.values())),
    }


async def kills(here: Site, count: int, *, seed: int, said: Callable[[str], None]) -> dict[str, Any]:
    """kill -9 of the trainer and of jobs at random; then what must hold of every job that was asked for."""
    chance = random.Random(seed)
    asked: list[JobRequested] = []
    of_trainer = of_jobs = 0
    while of_trainer + of_jobs < count:
        open_jobs = sum(not here.ends()[job.job_id] for job in asked)
        for _ in range(open_jobs, 2):
            number = len(asked)
            job = here.job(f"kill-{number}", f"killed-{number}", seed=number, steps=60, pause_s=0.05)
            await here.ask(job)
            asked.append(job)
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        here.trainer.keep_alive()
        victims = _jobs_of(here.trainer.pid)
        if not victims:
            continue
        if chance.random() < 0.25:
            os.kill(here.trainer.pid, signal.SIGKILL)
            of_trainer += 1
        else:
            victims[chance.randrange(len(victims))].kill()
            of_jobs += 1
        said(f"{of_trainer + of_jobs} of {count} kills, {len(asked)} jobs")
    # A trainer that was killed this moment may not have been found dead yet.
    await asyncio.sleep(0.5)
    here.trainer.keep_alive()
    await here.until(lambda: all(here.ends()[job.job_id] for job in asked), limit_s=_PATIENCE_S)
    said("the same once more, undisturbed")
    calm = [here.job(f"calm-{n}", f"calm-{n}", seed=n, steps=60, pause_s=0.0) for n, _ in enumerate(asked)]
    await here.ask(*calm)
    await here.until(lambda: all(here.ends()[job.job_id] for job in calm), limit_s=_PATIENCE_S)
    weights, ends = here.weights(), here.ends()
    return {
        "kills_of_the_trainer": of_trainer,
        "kills_of_jobs": of_jobs,
        "jobs": len(asked),
        "without_a_model": sum(job.job_id not in weights for job in asked),
        "ended_more_than_once": sum(ends[job.job_id] != 1 for job in asked),
        "other_weights_than_undisturbed": sum(
            weights.get(mine.job_id) != weights.get(theirs.job_id)
            for mine, theirs in zip(asked, calm, strict=True)
        ),
        "doubled_model_events": here.repeated_model_events(),
    }


def _jobs_of(trainer_pid: int) -> list[psutil.Process]:
    try:
        return [job for warm in psutil.Process(trainer_pid).children() for job in warm.children()]
    except psutil.Error:
        return []


async def measure(
    *,
    cache_dir: Path,
    queued: int,
    starts: int,
    jobs: int,
    kinds: int,
    kill: int,
    slots: int,
    seed: int,
    said: Callable[[str], None],
) -> dict[str, Any]:
    """All four, those of a count of 0 left out."""
    load = os.getloadavg()
    found: dict[str, Any] = {"cores": os.cpu_count(), "load_average_before": [round(x, 2) for x in load]}
    if queued:
        said(f"scheduling {queued} jobs")
        found["scheduler"] = scheduler_cost(queued)
    if not starts and not jobs and not kill:
        return found
    with tempfile.TemporaryDirectory(prefix="tidemill-jobs-") as folder:
        said("starting a broker and a trainer")
        async with site(Path(folder), cache_dir=cache_dir, slots=slots) as here:
            if starts:
                said(f"starting {starts} jobs, one after another")
                found["start"] = await start_latency(here, starts)
            if jobs:
                said(f"{jobs} jobs of {kinds} kinds at once")
                found["fairness"] = await fairness(here, jobs, kinds)
            if kill:
                found["kills"] = await kills(here, kill, seed=seed, said=said)
    return found
