"""How long an event takes until its row is committed and visible, at half of the top rate.

    tidemill bench latency

Each event has an instant at which it is due, whatever the cluster answers; its row is visible once the
commit that holds it stands in the dataset's log, where any reader finds it. So waiting in the producer, in
Kafka and in the worker all count, and so does falling behind. What passes until Kafka has acknowledged the
event stands beside it. Batches are made beforehand, of what falls due within 40 ms, and sent when the
last of them is due: on a machine of few cores, to make them meanwhile would be half of the work. The worker
is fresh: for some seconds, which are not counted, it gets half of the rate.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from aiokafka import AIOKafkaProducer
from rich.console import Console

from infra import malloc
from infra.dataset import CommitRecord, Dataset
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.supervisor import Supervised
from loadtest.ingest import readings, tidemill
from loadtest.ingest.fill import Filled, fill, producer_for
from loadtest.ingest.measure import measure
from loadtest.ingest.result import command_line, machine, now
from loadtest.ingest.scratch import scratch
from loadtest.ingest.side import Absent, Task
from loadtest.ingest.sides import SIDES
from loadtest.ingest.target import Target
from loadtest.ingest.visible import Watch, events_of
from schemas import topics
from schemas.producer.record_batch import Records, WholeBatch, batches

TOPIC = "bench.latency"
MOST_P50_MS, MOST_P99_MS = 300.0, 1_000.0
_LINGER_S = 0.04
"""So long a producer gathers what falls due. It has one batch of a partition under way at a time, so what it
gathers must last until that is acknowledged: with 10 ms it fell behind by itself."""
_SETTLE_S = 5.0
"""What was due before that is not counted, and comes at half of the rate: caches fill, code is compiled."""
_PATIENCE_S = 120.0
_BATCH_BYTES = 4 * 2**20
"""What a partition gathers goes out as one: two are two round trips."""
_LOOK_S = 0.1


@dataclass(kw_only=True)
class Lane:
    """What goes to one partition, evenly over the time.

    `due_s` says when each event was due, `acknowledged` when Kafka had it: offsets below a number, and when.
    """

    partition: int
    batches: list[WholeBatch]
    """The first one holds one event: it wakes the worker before the clock runs."""
    events: int
    due_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    acknowledged: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What was found.

    `latencies_ms` has one of each event that was due after the start had settled, by the second in which it
    was due; None where the worker did not get through in time. `acknowledged_ms` is what passed until Kafka
    had those events, `worker_cores` how much of the processor the worker took meanwhile.
    """

    began: datetime
    load_before: tuple[float, float, float]
    top_rate_events_s: float | None
    rate_events_s: float
    seconds: float
    events: int
    commits: int
    worker_cores: float
    latencies_ms: list[np.ndarray] | None
    acknowledged_ms: list[np.ndarray]

    def percentile(self, percent: float) -> float:
        """Milliseconds; infinite where not all events became visible."""
        if self.latencies_ms is None:
            return float("inf")
        return _percentile(self.latencies_ms, percent)

    def targets(self) -> list[Target]:
        """What is asked."""
        return [
            Target(what="p50 to a visible row", found=self.percentile(50), at_most=MOST_P50_MS, unit=" ms"),
            Target(what="p99 to a visible row", found=self.percentile(99), at_most=MOST_P99_MS, unit=" ms"),
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs; a percentile is null where not all events became visible."""
        known = self.latencies_ms is not None
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "machine": machine(self.load_before),
            "top_rate_events_s": self.top_rate_events_s,
            "rate_events_s": self.rate_events_s,
            "seconds": self.seconds,
            "events": self.events,
            "commits": self.commits,
            "worker_cores": round(self.worker_cores, 3),
            "measured_events": sum(map(len, self.latencies_ms or ())),
            "kept_up": known,
            **{
                name: round(self.percentile(percent), 1) if known else None
                for name, percent in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99), ("most_ms", 100))
            },
            "acknowledged_p50_ms": round(_percentile(self.acknowledged_ms, 50), 1),
            "acknowledged_p99_ms": round(_percentile(self.acknowledged_ms, 99), 1),
            "by_second": [
                {f"p{percent}_ms": round(float(np.percentile(own, percent)), 1) for percent in (50, 99)}
                for own in self.latencies_ms or ()
            ],
            "targets": [target.as_json() for target in self.targets()] if known else [],
        }


def run(*, rate: float | None, seconds: float, events: int, cache_dir: Path, console: Console) -> Latency:
    """Send for so many seconds to a worker on a broker of its own.

    Args:
        rate: events a second; None: half of what one worker does of a topic that is full, measured first.
        events: on that full topic.

    Raises:
        Absent: the worker did not start, or died.
    """
    with scratch(cache_dir, console) as (broker, folder):
        top = None
        if rate is None:
            top = _top_rate(broker.bootstrap_servers, folder, events, cache_dir, console)
            console.print(f"top rate: {top:,.0f} events/s; half of it is sent for {seconds:g} s")
            rate = top / 2
        return run_on(
            broker.bootstrap_servers, folder, rate=rate, seconds=seconds, top=top, cache_dir=cache_dir
        )


def run_on(
    bootstrap_servers: str, folder: Path, *, rate: float, seconds: float, top: float | None, cache_dir: Path
) -> Latency:
    """The same on a broker that runs already and has no such topic yet; scratch data go into `folder`."""
    return asyncio.run(
        _run_on(bootstrap_servers, folder, rate=rate, seconds=seconds, top=top, cache_dir=cache_dir)
    )


def _top_rate(bootstrap_servers: str, folder: Path, events: int, cache_dir: Path, console: Console) -> float:
    filled = asyncio.run(fill(Connection(bootstrap_servers=bootstrap_servers), events, console=console))
    side = next(side for side in SIDES if side.name == "tidemill")
    task = _task(bootstrap_servers, readings.TOPIC, filled, folder / "top", cache_dir)
    return measure(side, task, most_s=600.0, patience_s=_PATIENCE_S).rate_events_s


def _task(bootstrap_servers: str, topic: str, filled: Filled, home: Path, cache_dir: Path) -> Task:
    home.mkdir()
    return Task(
        bootstrap_servers=bootstrap_servers,
        topic=topic,
        form="json",
        filled=filled,
        round=1,
        home=home,
        cache_dir=cache_dir,
    )


async def _run_on(
    bootstrap_servers: str, folder: Path, *, rate: float, seconds: float, top: float | None, cache_dir: Path
) -> Latency:
    malloc.keep()
    began, load_before = now(), os.getloadavg()
    connection = Connection(bootstrap_servers=bootstrap_servers)
    topic = readings.declare(name=TOPIC)
    await ensure([*topics.TOPICS, topic], connection)
    lanes = _lanes(rate, seconds + _SETTLE_S / 2, topic.partitions)
    filled = Filled(
        events=sum(lane.events for lane in lanes),
        records=tuple(lane.events for lane in lanes),
        kept=0,
        unique=0,
        bytes_per_event=0.0,
    )
    task = _task(bootstrap_servers, TOPIC, filled, folder / "latency", cache_dir)
    start = tidemill.prepare(task)
    watch = Watch(Dataset(task.home / "dataset" / tidemill.name_of(task)))
    worker = Supervised("worker", start.command, task.home / "side.log", start.environment, most_restarts=0)
    producer = producer_for(connection)
    await producer.start()
    try:
        worker.start()
        watch.start()
        worker_cores = await _send(producer, lanes, seconds, watch, worker)
        through = await _until(lambda: _events(watch) >= filled.events, worker)
    finally:
        watch.stop()
        worker.stop()
        await producer.stop()
    commits = watch.commits()
    return Latency(
        began=began,
        load_before=load_before,
        top_rate_events_s=top,
        rate_events_s=rate,
        seconds=seconds,
        events=filled.events,
        commits=sum("offsets" in commit.metadata for _, commit in commits),
        worker_cores=worker_cores,
        latencies_ms=by_second(
            [(lane.due_s, _visible(lane.partition, commits)) for lane in lanes], settle_s=_SETTLE_S
        )
        if through
        else None,
        acknowledged_ms=by_second([(lane.due_s, lane.acknowledged) for lane in lanes], settle_s=_SETTLE_S),
    )


def _lanes(rate: float, seconds: float, partitions: int) -> list[Lane]:
    made: list[list[pl.DataFrame]] = [[] for _ in range(partitions)]
    for parts in readings.chunks(round(rate * seconds), partitions=partitions):
        for number, part in enumerate(parts):
            value = pl.struct(pl.all()).struct.json_encode()
            made[number].append(
                part.select(key=pl.col("source").cast(pl.Binary), value=value.cast(pl.Binary))
            )
    return [_lane(number, pl.concat(own), seconds) for number, own in enumerate(made)]


def _lane(partition: int, records: pl.DataFrame, seconds: float) -> Lane:
    at_once = max(1, round(records.height / seconds * _LINGER_S))
    parts = [records.head(1), *records.slice(1).iter_slices(at_once)]
    made = [
        batch
        for part in parts
        for batch in batches(Records(part["key"], part["value"]), timestamp_ms=0, most_bytes=_BATCH_BYTES)
    ]
    return Lane(partition=partition, batches=made, events=records.height)


async def _send(
    producer: AIOKafkaProducer, lanes: Sequence[Lane], seconds: float, watch: Watch, worker: Supervised
) -> float:
    """Send each batch when its last event is due; `seconds` long, after it has settled.

    Gives the cores that the worker took in that time.
    """
    await asyncio.gather(*(_send_batch(producer, lane, lane.batches[0], 1) for lane in lanes))
    if not await _until(lambda: _events(watch) > 0, worker):
        raise Absent(f"no event was committed within {_PATIENCE_S:g} s; the log ends:\n{worker.log_tail()}")
    began_s = time.monotonic()
    for lane in lanes:
        lane.due_s = began_s + instants_s(lane.events, seconds)
    taken = asyncio.create_task(_cores(worker, seconds))
    await asyncio.gather(*(_keep_up(producer, lane) for lane in lanes))
    return await taken


async def _cores(worker: Supervised, seconds: float) -> float:
    await asyncio.sleep(_SETTLE_S)
    process, began_s = psutil.Process(worker.pid), time.monotonic()
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after, took_s = process.cpu_times(), time.monotonic() - began_s
    return (after.user + after.system - before.user - before.system) / took_s


async def _keep_up(producer: AIOKafkaProducer, lane: Lane) -> None:
    sent = 1
    for batch in lane.batches[1:]:
        sent += batch.record_count()
        await asyncio.sleep(lane.due_s[sent - 1] - time.monotonic())
        await _send_batch(producer, lane, batch, sent)


async def _send_batch(producer: AIOKafkaProducer, lane: Lane, batch: WholeBatch, following: int) -> None:
    """Send it once the one before is on its way; `following` is the offset behind it."""
    future = await producer.send_batch(batch, TOPIC, partition=lane.partition)
    future.add_done_callback(lambda _: lane.acknowledged.append((following, time.monotonic())))


def _events(watch: Watch) -> int:
    return sum(events_of(commit) for _, commit in watch.commits())


def _visible(partition: int, commits: Sequence[tuple[float, CommitRecord]]) -> list[tuple[int, float]]:
    """Offsets of a partition below a number were visible at an instant."""
    spans = (
        (at_s, commit.metadata.get("offsets", {}).get(f"{TOPIC}/{partition}")) for at_s, commit in commits
    )
    return [(span[1], at_s) for at_s, span in spans if span]


async def _until(holds: Callable[[], bool], worker: Supervised) -> bool:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        worker.keep_alive()
        await asyncio.sleep(_LOOK_S)
    return True


def instants_s(events: int, seconds: float, *, settle_s: float = _SETTLE_S) -> np.ndarray:
    """When each event is due, (events,): evenly over so many seconds, before which half as many come."""
    settled = events * settle_s / (settle_s + 2 * seconds)
    return np.interp(np.arange(events), [0, settled, events], [0, settle_s, settle_s + seconds])


def by_second(
    lanes: Sequence[tuple[np.ndarray, Sequence[tuple[int, float]]]], *, settle_s: float
) -> list[np.ndarray]:
    """Milliseconds from the instant an event was due to the one it was there, by the second it was due in.

    Args:
        lanes: by partition, when each event was due, by offset from 0 on; and in order of time, below which
            offset all were there, and when.
        settle_s: what was due so soon after the first event is left out.
    """
    took_ms, second = [], []
    for due_s, there in lanes:
        ends, at_s = np.array([end for end, _ in there]), np.array([at for _, at in there])
        # Offset n is there with the first that ends behind it.
        first = np.searchsorted(ends, np.arange(len(due_s)), side="right")
        after_s = due_s - due_s[0] - settle_s
        counted = after_s >= 0
        took_ms.append((at_s[first[counted]] - due_s[counted]) * 1000)
        second.append(after_s[counted].astype(int))
    every, by = np.concatenate(took_ms), np.concatenate(second)
    return [every[by == number] for number in np.unique(by)]


def _percentile(found: Sequence[np.ndarray], percent: float) -> float:
    return float(np.percentile(np.concatenate(found), percent))
