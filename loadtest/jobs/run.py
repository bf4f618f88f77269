"""Measurements of jobs: the schedule's own cost, the start, fairness, and kills."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from loadtest.jobs.closes import close_to_start
from loadtest.jobs.site import Site, site, spread
from loadtest.jobs.watch import ArtifactWatch
from schemas.examples import announced
from schemas.job import JobFailed, JobRequested, Resources
from trainers.admission import Host
from trainers.devices import Gpu
from trainers.registry import Registry
from trainers.schedule import Start, Terms, promised, schedule
from trainers.standby import JOB_NAME, SPARE_NAME, WARM_NAME

GIB = 2**30
_PATIENCE_S = 300.0
_LAST_STEP_S = 20.0


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
    """kill -9 at instants drawn from the seed; then what must hold of every job that was asked for.

    Three in ten strike just after a job's last step, where its weights are written, judged and told of; the
    others anywhere. Victims are jobs mostly, in one case of four the trainer, in one of ten the warm process
    or its spare. The artifacts that a service could fetch are read over and over meanwhile, and must be what
    their names say.
    """
    chance = random.Random(seed)
    asked: list[JobRequested] = []
    struck: Counter[str] = Counter()
    watch = ArtifactWatch(here.artifacts)
    watching = asyncio.create_task(watch.run())
    try:
        while (done := struck.total()) < count:
            said(f"{done} of {count} kills, {len(asked)} jobs")
            open_jobs = sum(not here.ends()[job.job_id] for job in asked)
            for _ in range(open_jobs, here.cpus):
                number = len(asked)
                job = here.job(f"kill-{number}", f"killed-{number}", **_killed(number))
                await here.ask(job)
                asked.append(job)
            late, kind = chance.random() < 0.3, _victim(chance)
            if late:
                told = len(here.finishing())
                with contextlib.suppress(TimeoutError):
                    await here.until(lambda told=told: len(here.finishing()) > told, limit_s=_LAST_STEP_S)
            await asyncio.sleep(chance.uniform(0, 0.1) if late else chance.uniform(0.2, 1.5))
            here.trainer.keep_alive()
            there = _processes(here.trainer.pid, chance)
            # In the middle of a job, not of a start.
            if JOB_NAME in there and (victim := there.get(kind)) is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    struck[f"{kind} after a last step" if late else kind] += 1
        # A trainer that was killed this moment may not have been found dead yet.
        await asyncio.sleep(0.5)
        here.trainer.keep_alive()
        await here.until(lambda: all(here.ends()[job.job_id] for job in asked), limit_s=_PATIENCE_S)
        said(f"the same {len(asked)} jobs once more, undisturbed")
        calm = [here.job(f"calm-{n}", f"calm-{n}", **_killed(n, pause_s=0.0)) for n, _ in enumerate(asked)]
        await here.ask(*calm)
        await here.until(lambda: all(here.ends()[job.job_id] for job in calm), limit_s=_PATIENCE_S)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await watch.look()
    weights, ends = here.weights(), here.ends()
    return {
        "kills": dict(sorted(struck.items())),
        "jobs": len(asked),
        "attempts": sum(here.attempts()[job.job_id] for job in asked),
        "resumed_attempts": here.resumed(),
        "without_a_model": sum(job.job_id not in weights for job in asked),
        "ended_more_than_once": sum(ends[job.job_id] != 1 for job in asked),
        "other_weights_than_undisturbed": sum(
            weights.get(mine.job_id) != weights.get(theirs.job_id)
            for mine, theirs in zip(asked, calm, strict=True)
        ),
        "doubled_model_events": here.repeated_model_events(),
        "artifacts_seen": len(watch.whole),
        "looks_at_artifacts": watch.looks,
        "half_written_artifacts": sorted(watch.broken),
    }


def _killed(number: int, *, pause_s: float = 0.05) -> dict[str, Any]:
    """What a job that is to be killed does: seconds of steps, then a MiB of weights to write."""
    return {"seed": number, "steps": 60, "pause_s": pause_s, "hidden": 500}


def _victim(chance: random.Random) -> str:
    (kind,) = chance.choices(("trainer", JOB_NAME, WARM_NAME, SPARE_NAME), weights=(25, 65, 5, 5))
    return kind


def _processes(trainer_pid: int, chance: random.Random) -> dict[str, psutil.Process]:
    """One process of each kind that there is this moment."""
    try:
        trainer = psutil.Process(trainer_pid)
        family = trainer.children(recursive=True)
        chance.shuffle(family)
        return {**{each.name(): each for each in family}, "trainer": trainer}
    except psutil.Error:
        return {}


async def measure(
    *,
    cache_dir: Path,
    queued: int,
    starts: int,
    closes: int,
    jobs: int,
    kinds: int,
    kill: int,
    slots: int,
    seed: int,
    said: Callable[[str], None],
) -> dict[str, Any]:
    """All of them, those of a count of 0 left out."""
    load = os.getloadavg()
    found: dict[str, Any] = {"cores": os.cpu_count(), "load_average_before": [round(x, 2) for x in load]}
    if queued:
        said(f"scheduling {queued} jobs")
        found["scheduler"] = scheduler_cost(queued)
    if not starts and not closes and not jobs and not kill:
        return found
    with tempfile.TemporaryDirectory(prefix="tidemill-jobs-") as folder:
        said("starting a broker and a trainer")
        async with site(Path(folder), cache_dir=cache_dir, slots=slots) as here:
            if starts:
                said(f"starting {starts} jobs, one after another")
                found["start"] = await start_latency(here, starts)
            if closes:
                said(f"closing {closes} windows, one after another")
                found["close_to_start"] = await close_to_start(here, Path(folder), closes)
            if jobs:
                said(f"{jobs} jobs of {kinds} kinds at once")
                found["fairness"] = await fairness(here, jobs, kinds)
            if kill:
                found["kills"] = await kills(here, kill, seed=seed, said=said)
    return found
