"""How fast one worker takes the demo's year in, rows durably committed.

    python -m loadtest.ingest --rounds 3 [--json]

Each round: an empty dataset, a new topic's worth of events already on a real broker, one worker process.
The rate is of the commits after the first (the first one's clock also holds the group's start):
events in them, by the time from the first commit's entry in the log to the last one's. Beside it stands
what a bare `aiokafka` consumer reads from the same topics in the same run, in events/s, and the ratio.
Announcing goes on in the same process meanwhile, as it does live.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from rich.console import Console
from rich.table import Table

from infra.dataset import Dataset
from infra.demo.flights import events
from infra.demo.player import SOURCES
from infra.kafka import EmbeddedBroker
from infra.kafka.batches import partition_for, send_records
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.supervisor import Supervised, Supervisor, tidemill
from loadtest.ingest.visible import Follower
from schemas import topics
from schemas.topics import WATERMARK_HEADER

console = Console(stderr=True)

_PATIENCE_S = 180.0
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round's figures."""

    events: int
    rate_events_s: float
    cpu_us_per_event: float
    peak_memory_mib: float
    commits: int
    getmany_events_s: float

    @property
    def ratio(self) -> float:
        """Of the worker, with its durable commits, to a bare consumer that only reads."""
        return self.rate_events_s / self.getmany_events_s


async def fill(connection: Connection) -> dict[tuple[str, int], int]:
    """Push the year and a last heartbeat to every partition; gives where each partition ends."""
    await ensure(topics.TOPICS, connection)
    year = events()
    producer = AIOKafkaProducer(
        **connection.client_arguments(), enable_idempotence=True, max_batch_size=262_144
    )
    await producer.start()
    ends: dict[tuple[str, int], int] = {}
    heartbeat = ((WATERMARK_HEADER, str(int(year.get_column("time_ms").max()) + 1).encode()),)  # type: ignore[arg-type]
    try:
        for topic in SOURCES:
            own = year.filter(topic=topic.name)
            parts: list[list[tuple[bytes | None, bytes]]] = [[] for _ in range(topic.partitions)]
            for key, value in own.select("key", "value").iter_rows():
                parts[partition_for(key.encode(), topic.partitions)].append((key.encode(), value.encode()))
            for number, records in enumerate(parts):
                sent = await send_records(producer, topic.name, number, records)
                sent += await send_records(producer, topic.name, number, [(None, b"")], headers=heartbeat)
                for future in sent:
                    await future
                ends[topic.name, number] = len(records) + 1
    finally:
        await producer.stop()
    return ends


async def getmany(connection: Connection, ends: dict[tuple[str, int], int]) -> float:
    """Events a second of a consumer that reads the same records and does nothing with them."""
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(), enable_auto_commit=False, max_partition_fetch_bytes=4 * 2**20
    )
    await consumer.start()
    try:
        tps = [TopicPartition(*partition) for partition in ends]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        read, began = 0, time.perf_counter()
        while read < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                read += len(records)
        return read / (time.perf_counter() - began)
    finally:
        await consumer.stop()


def worker_round(connection: Connection, ends: dict[tuple[str, int], int], home: Path) -> Round:
    """One worker process from an empty dataset to the topics' ends."""
    dataset = Dataset(home / "dataset" / "flights")
    environment = {
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "TIDEMILL_PATHS__HOME": str(home),
    }
    with Supervisor() as supervisor:
        worker = supervisor.start(
            Supervised("worker", tidemill("worker"), home / "worker.log", environment, most_restarts=0)
        )
        process = psutil.Process(worker.pid)
        peak, deadline = 0, time.monotonic() + _PATIENCE_S
        first_cpu_s = cpu_s = 0.0
        so_far = _SoFar(dataset)
        while not so_far.reaches(ends):
            supervisor.keep_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the worker did not get through; its log ends:\n{worker.log_tail()}")
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, process.memory_info().rss)
                cpu_s = sum(process.cpu_times()[:2])
                first_cpu_s = first_cpu_s or (cpu_s if so_far.version >= 1 else 0.0)
            time.sleep(_LOOK_S)
        cpu_s = sum(process.cpu_times()[:2])
    commits = [c for c in dataset.commits() if c.metadata.get("counts")]
    counted = [sum(n["events"] for n in c.metadata["counts"].values()) for c in commits]
    span_s = (commits[-1].timestamp_ms - commits[0].timestamp_ms) / 1000
    return Round(
        events=sum(counted),
        rate_events_s=sum(counted[1:]) / span_s,
        cpu_us_per_event=(cpu_s - first_cpu_s) / sum(counted[1:]) * 1e6,
        peak_memory_mib=peak / 2**20,
        commits=len(commits),
        getmany_events_s=asyncio.run(getmany(connection, ends)),
    )


class _SoFar:
    """How far a dataset is."""

    def __init__(self, dataset: Dataset) -> None:
        self._follower = Follower(dataset)
        self._at: dict[str, int] = {}

    @property
    def version(self) -> int:
        """The newest that was seen."""
        return self._follower.version

    def reaches(self, ends: dict[tuple[str, int], int]) -> bool:
        """Whether all of the partitions are in."""
        for commit in self._follower.new():
            offsets = commit.metadata.get("offsets", {})
            self._at |= {name: following for name, (_, following) in offsets.items()}
        return all(self._at.get(f"{topic}/{number}", 0) >= end for (topic, number), end in ends.items())


@contextmanager
def _broker(folder: Path) -> Iterator[Connection]:
    with EmbeddedBroker(folder / "kafka", console=console) as broker:
        yield Connection(bootstrap_servers=broker.bootstrap_servers)


def run(rounds: int) -> list[Round]:
    """All rounds on one broker; each worker has a group and a dataset of its own."""
    results = []
    with tempfile.TemporaryDirectory(prefix="tidemill-load-") as folder, _broker(Path(folder)) as connection:
        ends = asyncio.run(fill(connection))
        for number in range(rounds):
            home = Path(folder) / f"round-{number}"
            # Announcements of the round before are another dataset's: a new pipeline name would do as well.
            asyncio.run(_forget_announcements(connection))
            results.append(worker_round(connection, ends, home))
            console.print(f"round {number + 1}: {results[-1].rate_events_s:,.0f} events/s")
    return results


async def _forget_announcements(connection: Connection) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    announced = [t.name for t in topics.TOPICS if t.name.startswith("tidemill.")]
    admin = AIOKafkaAdminClient(**connection.client_arguments())
    await admin.start()
    try:
        await admin.delete_topics(announced)
        while set(announced) & set(await admin.list_topics()):  # noqa: ASYNC110  (the broker sends no event)
            await asyncio.sleep(0.1)
    finally:
        await admin.close()
    await ensure(topics.TOPICS, connection)


def main() -> None:
    """Run the rounds and print medians."""
    parser = argparse.ArgumentParser(description="Ingest rate of one worker on the demo's pipeline.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report(run(arguments.rounds), as_json=arguments.json)


def report(results: list[Round], *, as_json: bool) -> None:
    """Print medians, as a table or as one JSON object."""
    medians = {
        name: statistics.median(getattr(r, name) for r in results)
        for name in ("rate_events_s", "cpu_us_per_event", "peak_memory_mib", "getmany_events_s", "ratio")
    }
    if as_json:
        print(
            json.dumps({"rounds": [asdict(r) for r in results], "median": medians, "cores": os.cpu_count()})
        )
        return
    table = Table("", *(str(n + 1) for n in range(len(results))), "median")
    for name, median in medians.items():
        table.add_row(name, *(f"{getattr(r, name):,.2f}" for r in results), f"{median:,.2f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
