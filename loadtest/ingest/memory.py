"""Whether a worker's memory is bounded and flat, however many events it has read.

    tidemill bench memory --events 100000000

Many windows are open all the time, rows have many keys and partitions, and dedupe looks back far. Events are
made while the worker reads: what it has committed is deleted from the topic, and no more than some are ahead
of it, so that neither disk nor broker fills. The worker's resident memory is noted twice a second, and beside
it that of the processes that it starts: of the one that compacts. Their sum counts shared libraries twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition
from rich.console import Console

from infra.dataset import Dataset
from infra.kafka.batches import send_records
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.supervisor import Supervised, tidemill
from loadtest.ingest import readings
from loadtest.ingest.fill import producer_for
from loadtest.ingest.result import command_line, machine, now
from loadtest.ingest.scratch import scratch
from loadtest.ingest.side import Absent
from loadtest.ingest.target import Target
from loadtest.ingest.visible import Follower, events_of
from schemas import topics
from streams.window import Sliding

TOPIC = "bench.memory"
NAME = "memory"
WINDOW = Sliding("20m", "10s", lateness="1m")
DEDUPE_WITHIN = "10m"
BROKER_SETTINGS = {
    # Deleted records go with their segment.
    "log.segment.bytes": str(16 * 2**20),
    "log.retention.check.interval.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
}
MOST_MIB = 1_024.0
MOST_GROWTH = 1.1
"""The last quarter by the second: memory is bounded, not constant, as caches and allocators keep slack."""
_AHEAD = 2_000_000
_LOOK_S = 0.5
_PATIENCE_S = 180.0
_QUARTERS = 4
_KEPT_LOOKS = 7
"""Half a minute's records stay on the topic once they are committed."""
_FILE = """from loadtest.ingest import memory, readings

pipeline = readings.pipeline(
    memory.NAME, topic=memory.TOPIC, within=memory.DEDUPE_WITHIN, window=memory.WINDOW
)
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at one instant: seconds since its start, events committed, resident memory.

    `beside_mib` is that of the processes that it started.
    """

    at_s: float
    events: int
    memory_mib: float
    beside_mib: float = 0.0


@dataclass
class Held:
    """What was seen of one run."""

    events: int
    partitions: int
    keys: int
    began: datetime
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    samples: list[Sample] = field(default_factory=list)
    most_mib: float = 0.0
    """The worker's own at its highest, also between two samples, where the system says so."""
    most_beside_mib: float = 0.0
    cpu_s: float = 0.0
    beside_cpu_s: float = 0.0
    """Of the processes that it started and that have ended."""
    kept: int = 0
    right: int = 0
    """Rows that there must be."""
    commits: int = 0
    disk_bytes: int = 0
    """Of dataset and broker, at the end."""

    @property
    def open_windows(self) -> int:
        """At any instant, once so much event time has passed."""
        return (WINDOW.size_ms + WINDOW.lateness_ms) // WINDOW.pane_ms

    def quarter(self, number: int) -> float:
        """Median MiB while that quarter of the events was read, 0 to 3."""
        first, last = (self.events * part / _QUARTERS for part in (number, number + 1))
        found = [s.memory_mib for s in self.samples if first <= s.events < last]
        return statistics.median(found) if found else float("nan")

    def targets(self) -> list[Target]:
        """What is asked."""
        peak = max(self.most_mib, *(sample.memory_mib for sample in self.samples))
        together = max(sample.memory_mib + sample.beside_mib for sample in self.samples)
        growth = self.quarter(3) / self.quarter(1)
        return [
            Target(what="resident memory at its highest", found=peak, at_most=MOST_MIB, unit=" MiB"),
            Target(what="with the process that compacts", found=together, at_most=MOST_MIB, unit=" MiB"),
            Target(what="last quarter by the second", found=growth, at_most=MOST_GROWTH, unit=" times"),
        ]

    def faults(self) -> list[str]:
        """Rows that are too many or too few."""
        return [] if self.kept == self.right else [f"kept {self.kept:,} rows; {self.right:,} would be right"]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        took_s = self.samples[-1].at_s
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "machine": machine(self.load_before),
            "events": self.events,
            "partitions": self.partitions,
            "keys": self.keys,
            "open_windows": self.open_windows,
            "dedupe_within": DEDUPE_WITHIN,
            "commits": self.commits,
            "took_s": round(took_s, 1),
            "cpu_us_per_event": round(self.cpu_s / self.events * 1e6, 3),
            "compacting_cpu_us_per_event": round(self.beside_cpu_s / self.events * 1e6, 3),
            "compacting_most_mib": self.most_beside_mib,
            "disk_mib": round(self.disk_bytes / 2**20),
            "quarters_mib": [round(self.quarter(number), 1) for number in range(_QUARTERS)],
            "targets": [target.as_json() for target in self.targets()],
            "faults": self.faults(),
            "samples": [asdict(sample) for sample in self.samples],
        }


def run(
    *, events: int, partitions: int, keys: int, cache_dir: Path, console: Console, said: Callable[[str], None]
) -> Held:
    """One worker reads so many events on a broker of its own.

    Raises:
        Absent: it did not start, or stands still.
        ProcessFailed: it died.
    """
    with scratch(cache_dir, console, broker_settings=BROKER_SETTINGS) as (broker, folder):
        return run_on(
            broker.bootstrap_servers,
            folder,
            events=events,
            partitions=partitions,
            keys=keys,
            said=said,
        )


def run_on(
    bootstrap_servers: str,
    folder: Path,
    *,
    events: int,
    partitions: int,
    keys: int,
    said: Callable[[str], None],
) -> Held:
    """The same on a broker that runs already and has no such topic yet; scratch data go into `folder`."""
    held = Held(events=events, partitions=partitions, keys=keys, began=now())
    asyncio.run(_Run(held, bootstrap_servers, folder, said).run())
    return held


class _Run:
    """The worker, whoever looks at it, and the producer that keeps a little ahead of it."""

    def __init__(self, held: Held, bootstrap_servers: str, folder: Path, said: Callable[[str], None]) -> None:
        self._held, self._folder, self._said = held, folder, said
        self._connection = Connection(bootstrap_servers=bootstrap_servers)
        file = folder / "memory_pipeline.py"
        file.write_text(_FILE)
        self._worker = Supervised(
            "worker",
            tidemill("worker"),
            folder / "worker.log",
            {
                "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
                "TIDEMILL_PATHS__HOME": str(folder),
                "TIDEMILL_WORKER__PIPELINE": str(file),
                "TIDEMILL_LOG__FORM": "json",
            },
            most_restarts=0,
        )
        self._follower = Follower(Dataset(folder / "dataset" / NAME))
        self._committed = 0
        self._moved = asyncio.Event()
        self._at: dict[int, int] = {}

    async def run(self) -> None:
        declared = readings.declare(self._held.partitions, name=TOPIC)
        await ensure([*topics.TOPICS, declared], self._connection)
        producer = producer_for(self._connection)
        admin = AIOKafkaAdminClient(**self._connection.client_arguments())
        await producer.start()
        await admin.start()
        self._worker.start()
        try:
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(self._look())
                deleting = group.create_task(self._delete(admin))
                await self._produce(producer)
                await looking
                deleting.cancel()
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        finally:
            self._worker.stop()
            await admin.close()
            await producer.stop()
        self._held.disk_bytes = sum(f.stat().st_size for f in self._folder.rglob("*") if f.is_file())

    async def _produce(self, producer: AIOKafkaProducer) -> None:
        held, sent = self._held, 0
        for parts in readings.chunks(held.events, partitions=held.partitions, keys=held.keys):
            while sent - self._committed > _AHEAD:
                self._moved.clear()
                await self._moved.wait()
            pending = []
            for number, part in enumerate(parts):
                held.right += readings.kept(part).get_column("id").n_unique()
                pending += await send_records(producer, TOPIC, number, readings.as_json(part))
                sent += part.height
            await asyncio.gather(*pending)

    async def _look(self) -> None:
        """Until all is committed: what was committed, and what the worker holds."""
        held, root = self._held, psutil.Process(self._worker.pid)
        began_s = moved_s = time.monotonic()
        while self._committed < held.events:
            await asyncio.sleep(_LOOK_S)
            for commit in self._follower.new():
                if came := events_of(commit):
                    self._committed += came
                    held.kept += sum(counts["rows"] for counts in commit.metadata["counts"].values())
                    held.commits += 1
                    moved_s = time.monotonic()
                    self._moved.set()
                for name, (_, following) in commit.metadata.get("offsets", {}).items():
                    self._at[int(name.rpartition("/")[2])] = following
            self._worker.keep_alive()
            with contextlib.suppress(psutil.NoSuchProcess):
                memory, times = _mib(root.memory_info().rss), root.cpu_times()
                held.cpu_s = times.user + times.system
                # Of Linux alone: what has ended and was waited for.
                held.beside_cpu_s = getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
                beside = [_beside(process) for process in root.children(recursive=True)]
                held.most_mib = max(held.most_mib, memory, _most_mib(root.pid))
                held.most_beside_mib = max((held.most_beside_mib, *(most for _, most in beside)))
                at_s = round(time.monotonic() - began_s, 1)
                sample = Sample(at_s, self._committed, memory, round(sum(now for now, _ in beside), 1))
                held.samples.append(sample)
            self._said(
                f"{self._committed:,} of {held.events:,} events, {held.samples[-1].memory_mib:,.0f} MiB"
            )
            if time.monotonic() - moved_s > _PATIENCE_S:
                tail = self._worker.log_tail()
                raise Absent(f"nothing was committed for {_PATIENCE_S:g} s; the worker's log ends:\n{tail}")

    async def _delete(self, admin: AIOKafkaAdminClient) -> None:
        """From the topic, what is in the dataset; the broker gives the room back segment by segment."""
        gone: dict[int, int] = {}
        # Not at once: a worker that lost a fetched chunk on the way reads again from where it was then.
        then: deque[dict[int, int]] = deque(maxlen=_KEPT_LOOKS)
        while True:
            await asyncio.sleep(5.0)
            then.append(dict(self._at))
            if len(then) < _KEPT_LOOKS:
                continue
            if shutil.disk_usage(self._folder).free < 2**30:
                raise Absent(f"less than 1 GiB is free on the disk of {self._folder}")
            ahead = {n: at for n, at in then[0].items() if at > gone.get(n, 0)}
            if ahead:
                await admin.delete_records(
                    {TopicPartition(TOPIC, n): RecordsToDelete(before_offset=at) for n, at in ahead.items()}
                )
                gone |= ahead


def _mib(size_bytes: int) -> float:
    return round(size_bytes / 2**20, 1)


def _beside(process: psutil.Process) -> tuple[float, float]:
    """MiB of a process now, and at its highest; one that has just ended has none."""
    try:
        now_mib = _mib(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    return now_mib, max(now_mib, _most_mib(process.pid))


def _most_mib(pid: int) -> float:
    """What a process held at its highest so far, as Linux keeps it; elsewhere, or once it is gone, 0."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((_mib(int(line.split()[1]) * 1024) for line in lines if line.startswith("VmHWM")), 0.0)


def draw(held: Held, file: Path) -> None:
    """Resident memory by events read, and the bound that is asked for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    read = [sample.events / 1e6 for sample in held.samples]
    together = [sample.memory_mib + sample.beside_mib for sample in held.samples]
    axes.plot(read, together, color="tab:blue", linewidth=1, label="with the process that compacts")
    own = [sample.memory_mib for sample in held.samples]
    axes.plot(read, own, color="tab:orange", linewidth=1, label="the worker")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.axhline(MOST_MIB, color="0.6", linestyle="--", linewidth=1)
    axes.text(0, MOST_MIB, " 1 GiB", va="bottom", fontsize=9, color="0.4")
    axes.set_xlabel(
        f"million events committed; {held.partitions} partitions, {held.keys:,} keys, "
        f"{held.open_windows} windows open"
    )
    axes.set_ylabel("resident MiB")
    axes.set_ylim(0, 1.15 * max(MOST_MIB, *together))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)
