"""From a window's close to its training's start: a real worker, a real trainer, the clock of each event."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from infra.supervisor import Supervised, tidemill
from loadtest.jobs import pipeline as asks
from loadtest.jobs.site import Site, spread
from schemas import topics
from schemas.topics import WATERMARK_HEADER

_SOURCES = (topics.FLIGHTS_SCHEDULED, topics.FLIGHTS_ARRIVED)
_FIRST_MS = 1_357_000_020_000
"""Start of the first window: some minute of 2013."""
_PATIENCE_S = 180.0


async def close_to_start(here: Site, folder: Path, windows: int) -> dict[str, Any]:
    """Windows that close one after another, each of which asks for a training.

    Both ends are said by whoever was there: the worker's commit that closed the window, and the job's process
    when it had its assignment. The first window is not counted: its worker is only starting.
    """
    worker = Supervised(
        "worker",
        tidemill("worker"),
        folder / "worker.log",
        {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": str(here.connection.bootstrap_servers),
            "TIDEMILL_PATHS__HOME": str(folder / "home"),
            "TIDEMILL_WORKER__PIPELINE": str(Path(asks.__file__)),
            "TIDEMILL_WORKER__MEMBER": "one",
            "POLARS_MAX_THREADS": str(os.cpu_count() or 1),
        },
    )
    worker.start()
    try:
        for number in range(windows + 1):
            await _close(here, number)
            await here.until(lambda number=number: _over(here, number), limit_s=_PATIENCE_S)
    finally:
        await asyncio.to_thread(worker.stop)
    return _latencies(here, windows)


async def _close(here: Site, number: int) -> None:
    """One flight, then the word on every partition that its minute is over."""
    start_ms = _FIRST_MS + number * asks.WINDOW_MS
    flight = {
        "flight_id": f"close-{number}",
        "scheduled": start_ms + 1_000,
        "carrier": "UA",
        "flight": 1,
        "tailnum": None,
        "origin": "EWR",
        "dest": "IAH",
        "distance": 1_400.0,
        "scheduled_arrival_hhmm": 830,
    }
    send = here.producer.send_and_wait
    name = topics.FLIGHTS_SCHEDULED.name
    await send(name, json.dumps(flight).encode(), key=flight["flight_id"].encode(), partition=0)
    said = [(WATERMARK_HEADER, str(start_ms + asks.WINDOW_MS).encode())]
    await asyncio.gather(
        *(send(t.name, b"", partition=n, headers=said) for t in _SOURCES for n in range(t.partitions))
    )


def _over(here: Site, number: int) -> bool:
    job_id = _jobs(here).get(_FIRST_MS + (number + 1) * asks.WINDOW_MS)
    return job_id is not None and here.ends()[job_id] > 0


def _jobs(here: Site) -> dict[int, str]:
    """The job of each window, by the window's end."""
    mine = {i: j.experiment for i, j in here.asked().items() if j.experiment.pipeline == asks.pipeline.name}
    return {each.evaluation.end_ms: job_id for job_id, each in mine.items() if each.evaluation is not None}


def _latencies(here: Site, windows: int) -> dict[str, Any]:
    started, asked = here.started(), here.asked()
    jobs = [job_id for _, job_id in sorted(_jobs(here).items())][1 : windows + 1]
    starts_ms = [started[job_id].started_ms - asked[job_id].requested_ms for job_id in jobs]
    seen_ms = [here.seen_ms[job_id] - asked[job_id].requested_ms for job_id in jobs]
    return {
        "windows": len(jobs),
        **{f"{name}_ms": value for name, value in spread(starts_ms).items()},
        "of_that_until_the_request_was_seen_ms": spread(seen_ms)["median"],
    }
