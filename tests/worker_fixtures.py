"""A real worker as an engineer starts it, on a real broker: watched, killed, frozen and started again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment as MemberAssignment
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import TopicPartition

from infra.dataset import Dataset, DatasetUnreadable, open_table
from infra.demo.flights import DAY_MS, FIRST_DAY_MS, events
from infra.kafka import EmbeddedBroker
from infra.kafka.batches import partition_for
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from loadtest.faults.worker import WorkerProcess
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.envelope import ARROW_STREAM, Envelope, open_record, unwrap_as
from schemas.topics import WATERMARK_HEADER

T = TypeVar("T")
SOURCES = (topics.FLIGHTS_SCHEDULED, topics.FLIGHTS_DEPARTED, topics.FLIGHTS_ARRIVED, topics.WEATHER_HOURLY)
ANNOUNCED = (topics.FEATURES, topics.WINDOWS, topics.DECISIONS, topics.JOBS, topics.DEAD_LETTERS)
PIPELINE = """
import polars as pl

from schemas.features import AsOf, Trailing
from schemas.raw import Arrival, Departure, Flight, Weather
from streams.clean import between, dedupe
from streams.pipeline import Labels, Pipeline, Source
from streams.tag import Tag
from streams.training import Training, last
from streams.trigger import every, labelled
from streams.window import Tumbling

HOUR = 3_600_000
arrived = Source(
    "flights.arrived", schema=Arrival, event_time="arrived", key="flight_id",
    derive={{"was_late": (pl.col("arr_delay") > 15).cast(pl.Float64)}},
)
pipeline = Pipeline(
    name="{name}",
    source=Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id"),
    context=[
        Source("flights.departed", schema=Departure, event_time="departed", key="flight_id"),
        Source("weather.hourly", schema=Weather, event_time="observed", key="origin"),
    ],
    labels=Labels(arrived, column="was_late"),
    clean=[between("distance", 0, 12_000), dedupe(within="1d")],
    tag=[Tag("long_haul", pl.col("distance") >= 1_500)],
    columns=["carrier", "origin", "distance"],
    features=[
        AsOf(source="weather.hourly", by=("origin",), columns={{"temp": "temp"}}, max_age_ms=3 * HOUR),
        Trailing(
            source="flights.departed", by=("origin",), over_ms=2 * HOUR,
            aggregates={{"delay_2h": ("mean", "dep_delay"), "departures_2h": ("count", "")}},
        ),
    ],
    window=Tumbling("1d", lateness="6h", offset="5h"),
    train_when=every(windows=2) & labelled(rows=100),
    train=Training("trainers.models.flights:train", data=last(windows=2)),
)
"""


def wait_until(holds: Callable[[], T], what: str, *, within_s: float = 60.0) -> T:
    """The first true answer; fails with what was waited for."""
    deadline = time.monotonic() + within_s
    while not (answer := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)
    return answer


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that a test pushes; `kind` says what should become of it: event, bad or heartbeat."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    kind: str = "event"

    def is_flight(self) -> bool:
        """Whether it is an event of the main source."""
        return self.kind == "event" and self.topic == topics.FLIGHTS_SCHEDULED.name


@cache
def _known() -> pl.DataFrame:
    return events(days=12)


def known(days: int) -> pl.DataFrame:
    """The demo's events that are known before so many days have passed; at most 12."""
    return _known().filter(pl.col("time_ms") < FIRST_DAY_MS + days * DAY_MS)


def flights(days: int, *, start: int = 0) -> list[Sent]:
    """The demo's events of some days in event-time order, each for the partition of its key."""
    counts = {t.name: t.partitions for t in SOURCES}
    table = known(days)[known(start).height :]
    return [
        Sent(topic, partition_for(key.encode(), counts[topic]), key.encode(), value.encode())
        for topic, key, value in table.select("topic", "key", "value").iter_rows()
    ]


def heartbeats(watermark_ms: int) -> list[Sent]:
    """One to every partition of every source."""
    said = ((WATERMARK_HEADER, str(watermark_ms).encode()),)
    return [Sent(t.name, n, None, b"", said, "heartbeat") for t in SOURCES for n in range(t.partitions)]


class Cluster:
    """A broker with Tidemill's topics, and what was pushed to it: by topic, partition and offset."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.broker = EmbeddedBroker(home / "kafka")
        self.pushed: dict[tuple[str, int, int], Sent] = {}

    def __enter__(self) -> Cluster:
        self.broker.start()
        self.connection = Connection(bootstrap_servers=self.broker.bootstrap_servers)
        asyncio.run(ensure(topics.TOPICS, self.connection))
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()

    async def push_slowly(
        self,
        records: Sequence[Sent],
        *,
        per_s: float = float("inf"),
        begun: Callable[[], object] = lambda: None,
    ) -> None:
        """Push in order, at most so many a second; waits out a broker that is away."""
        producer = AIOKafkaProducer(
            # Longer than any outage that a test makes: the client's own retries wait it out.
            **{**self.connection.client_arguments(), "request_timeout_ms": 120_000},
            enable_idempotence=True,
            linger_ms=5,
        )
        try:
            await producer.start()
            began = time.monotonic()
            pending: list[tuple[Sent, asyncio.Future]] = []
            for sent, each in enumerate(records, start=1):
                future = await producer.send(
                    each.topic, each.value, key=each.key, partition=each.partition, headers=list(each.headers)
                )
                pending.append((each, future))
                begun()
                ahead_s = sent / per_s - (time.monotonic() - began)
                if ahead_s > 0.02:
                    await asyncio.sleep(ahead_s)
            for each, future in pending:
                self.pushed[each.topic, each.partition, (await future).offset] = each
        finally:
            await producer.stop()

    def push(self, records: Sequence[Sent]) -> None:
        """Push in order and wait until the broker has them."""
        asyncio.run(self.push_slowly(records))

    def pushing(self, records: Sequence[Sent], *, per_s: float) -> threading.Thread:
        """Push in the background, at a pace; gives the thread once the first is on its way."""
        begun = threading.Event()
        work = self.push_slowly(records, per_s=per_s, begun=begun.set)
        thread = threading.Thread(target=lambda: asyncio.run(work), daemon=True)
        thread.start()
        assert begun.wait(30), "the broker takes nothing"
        return thread

    def ends(self) -> dict[tuple[str, int], int]:
        """Where each partition ends, by what was pushed."""
        ends: Counter[tuple[str, int]] = Counter()
        for topic, partition, offset in self.pushed:
            ends[topic, partition] = max(ends[topic, partition], offset + 1)
        return dict(ends)

    def days(self) -> list[int]:
        """Starts of the days, in New York's winter, that have flights: the windows that must close."""
        scheduled = [json.loads(s.value or b"")["scheduled"] for s in self.pushed.values() if s.is_flight()]
        return sorted({(t - FIRST_DAY_MS) // DAY_MS * DAY_MS + FIRST_DAY_MS for t in scheduled})

    def read(self, *names: str, pipeline: str | None = None) -> list[tuple[str, Envelope]]:
        """All announcements on these topics, in order by topic."""
        records = asyncio.run(self._read(names))
        opened = [(topic, open_record(key, value, headers)) for topic, key, value, headers in records]
        if pipeline is None:
            return opened
        return [
            (t, e) for t, e in opened if e.id.startswith(f"{pipeline}/") or e.id.startswith(f"{pipeline}-")
        ]

    async def _read(self, names: Iterable[str]) -> list[tuple[str, Any, Any, Any]]:
        consumer = AIOKafkaConsumer(**self.connection.client_arguments(), enable_auto_commit=False)
        await consumer.start()
        found = []
        try:
            for name in names:
                tp = TopicPartition(name, 0)
                consumer.assign([tp])
                await consumer.seek_to_beginning(tp)
                end = (await consumer.end_offsets([tp]))[tp]
                while await consumer.position(tp) < end:
                    for records in (await consumer.getmany(tp, timeout_ms=500)).values():
                        found += [(name, r.key, r.value, r.headers) for r in records]
        finally:
            await consumer.stop()
        return found

    def shares(self, group: str) -> dict[str, int]:
        """How many partitions each member of a group has, by its static id; only those that have some."""

        async def ask() -> dict[str, int]:
            consumer = AIOKafkaAdminClient(**self.connection.client_arguments())
            await consumer.start()
            try:
                found: Any = (await consumer.describe_consumer_groups([group]))[0]
                members = found.groups[0][5]
            except GroupCoordinatorNotAvailableError:
                return {}  # the broker's first group: it is still making the topic for it
            finally:
                await consumer.close()
            shares: dict[str, int] = {}
            for member in members:
                assignment = MemberAssignment.decode(member[-1]).assignment if member[-1] else ()
                shares[member[0]] = sum(len(partitions) for _, partitions in assignment)
            return {member: count for member, count in shares.items() if count}

        return asyncio.run(ask())

    def make_anew(self, topic: topics.Topic) -> None:
        """Delete a topic and create it again, empty."""

        async def do() -> None:
            admin = AIOKafkaAdminClient(**self.connection.client_arguments())
            await admin.start()
            try:
                await admin.delete_topics([topic.name])
                while topic.name in await admin.list_topics():  # noqa: ASYNC110  (the broker's to say)
                    await asyncio.sleep(0.05)
            finally:
                await admin.close()
            await ensure([topic], self.connection)

        asyncio.run(do())

    def committed_offsets(self, group: str) -> dict[tuple[str, int], int]:
        """Kafka's own committed offsets of a group, as lag tools see them."""

        async def ask() -> dict[tuple[str, int], int]:
            consumer = AIOKafkaConsumer(
                **self.connection.client_arguments(), group_id=group, enable_auto_commit=False
            )
            await consumer.start()
            try:
                tps = [TopicPartition(t, p) for t, p in self.ends()]
                consumer.assign(tps)
                return {(tp.topic, tp.partition): await consumer.committed(tp) or 0 for tp in tps}
            finally:
                await consumer.stop()

        return asyncio.run(ask())


class Worker(WorkerProcess):
    """One worker process of a pipeline that tests declare."""

    def __init__(
        self,
        cluster: Cluster,
        home: Path,
        pipeline: str,
        member: str | None = "one",
        settings: dict[str, str] | None = None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        file = home / f"{pipeline.replace('-', '_')}.py"
        if not file.exists():
            file.write_text(PIPELINE.format(name=pipeline))
        # Compacted far more often than anyone would: whatever is tested holds beside it.
        often = {"TIDEMILL_UPKEEP__COMPACT_FILES": "3", "TIDEMILL_UPKEEP__INTERVAL_MS": "500"}
        bootstrap_servers = cluster.connection.bootstrap_servers
        super().__init__(home, file, bootstrap_servers, member, {**often, **(settings or {})})

    def end(self, *, within_s: float = 30.0) -> int:
        """SIGTERM; gives the exit code."""
        self.signal(signal.SIGTERM)
        return self.exit_code(within_s=within_s)

    def exit_code(self, *, within_s: float = 60.0) -> int:
        """Wait until it has ended by itself."""
        try:
            return self.running.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker has not ended; its log: {self.log_tail()}") from None

    def assert_runs(self) -> bool:
        """For conditions that are waited for: no use waiting for a dead worker."""
        if self.has_ended():
            raise AssertionError(f"the worker ended with {self.running.returncode}: {self.log_tail()}")
        return True

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Outcome:
    """What a pipeline's worker has made of what was pushed."""

    def __init__(self, cluster: Cluster, home: Path, pipeline: str) -> None:
        self.cluster, self.pipeline = cluster, pipeline
        self.uri = home / "dataset" / pipeline
        self.dataset = Dataset(self.uri)

    def version(self) -> int:
        """Newest version; -1 where there is no dataset yet."""
        try:
            return self.dataset.newest_version()
        except DatasetUnreadable:
            return -1

    def position(self, topic: str, partition: int) -> int:
        return open_table(str(self.uri)).transaction_version(f"offset/{topic}/{partition}") or 0

    def holds_all(self) -> bool:
        """Whether the ledger stands at the end of what was pushed."""
        if self.version() < 1:
            return False
        table = open_table(str(self.uri))
        return all(
            (table.transaction_version(f"offset/{topic}/{partition}") or 0) >= end
            for (topic, partition), end in self.cluster.ends().items()
        )

    def announced_version(self) -> int:
        """Newest version that something was announced of."""
        said = self.announced()
        return max(
            (int(e.extensions["ledgerversion"]) for _, e in said if "ledgerversion" in e.extensions),
            default=-1,
        )

    def announced(self) -> list[tuple[str, Envelope]]:
        return self.cluster.read(*(t.name for t in ANNOUNCED), pipeline=self.pipeline)

    def closed_all(self) -> bool:
        """Whether the window of every day that was pushed is closed."""
        said = self.cluster.read(topics.WINDOWS.name, pipeline=self.pipeline)
        return len({e.id for _, e in said if e.id.endswith("/closed")}) >= len(self.cluster.days())

    def rows(self) -> pl.DataFrame:
        """All rows of all sources."""
        version = self.dataset.newest_version()
        parts = [self.dataset.rows(t.name, version=version, start_ms=-(2**62), end_ms=2**62) for t in SOURCES]
        return pl.concat(parts)

    def letters(self) -> list[DeadLetter]:
        """Dead letters, repeats by id left out."""
        found = self.cluster.read(topics.DEAD_LETTERS.name, pipeline=self.pipeline)
        return list({e.id: unwrap_as(e, DeadLetter) for _, e in found}.values())

    def counts(self) -> dict[str, Counter[str]]:
        """What the commits say of themselves, by source: events, rows, rejected, dropped."""
        counts: dict[str, Counter[str]] = {}
        for commit in self.dataset.commits():
            for topic, said in commit.metadata.get("counts", {}).items():
                own = counts.setdefault(topic, Counter())
                own["events"] += said["events"]
                own["rows"] += said["rows"]
                own["rejected"] += sum(said["rejected"].values())
                own["dropped"] += sum(said["dropped"].values())
        return counts


def by_identity(rows: pl.DataFrame) -> Iterator[tuple[tuple[str, int, int], dict[str, Any]]]:
    """Rows by topic, partition and offset."""
    for row in rows.iter_rows(named=True):
        yield (row["_source"], row["_partition"], row["_offset"]), row


def assert_exactly_once(outcome: Outcome) -> None:
    """Every event that was pushed is one row, one dead letter, or a repeat that was dropped; none is two."""
    pushed = {at: sent for at, sent in outcome.cluster.pushed.items() if sent.kind != "heartbeat"}
    rows = outcome.rows()
    identities = [at for at, _ in by_identity(rows)]
    assert len(identities) == len(set(identities)), "a row is in the dataset twice"
    letters = {(x.topic, x.partition, x.offset): x for x in outcome.letters()}
    assert not set(identities) & letters.keys()
    for at, row in by_identity(rows):
        assert pushed[at].kind == "event", at
        for name, value in json.loads(pushed[at].value or b"").items():
            assert row[name] == value, (at, name)
    for at, letter in letters.items():
        assert pushed[at].kind == "bad", letter
        assert (letter.record_value, letter.record_key) == (pushed[at].value, pushed[at].key)
    dropped = pushed.keys() - set(identities) - letters.keys()
    assert {pushed[at].kind for at in dropped} <= {"repeat"}, sorted(dropped)[:5]
    counts = outcome.counts()
    total = sum((c for c in counts.values()), Counter())
    assert total["events"] == len(pushed)
    assert (total["rows"], total["rejected"], total["dropped"]) == (
        len(identities),
        len(letters),
        len(dropped),
    )


def same_announcement(one: Envelope, other: Envelope) -> bool:
    """Whether both say the same; of the same rows Arrow may write other bytes."""
    if one.content_type != ARROW_STREAM:
        return one == other
    rows, others = pl.read_ipc_stream(one.data), pl.read_ipc_stream(other.data)
    return rows.equals(others) and replace(one, data=b"") == replace(other, data=b"")


def assert_announced_whole(outcome: Outcome) -> None:
    """Every window and every feature row is announced; an id that comes twice says the same twice."""
    by_id: dict[str, tuple[str, Envelope]] = {}
    for topic, envelope in outcome.announced():
        if envelope.id in by_id:
            assert same_announcement(by_id[envelope.id][1], envelope), f"{envelope.id} says two things"
        by_id.setdefault(envelope.id, (topic, envelope))
    closed = {
        said["window"]["start_ms"]: said
        for topic, e in by_id.values()
        if topic == topics.WINDOWS.name and e.type.endswith("closed.v1") and (said := json.loads(e.data))
    }
    rows = outcome.rows().filter(pl.col("_source") == topics.FLIGHTS_SCHEDULED.name)
    starts = outcome.cluster.days()
    assert sorted(closed) == starts
    for start_ms in starts:
        in_window = rows.filter(pl.col("_time").is_between(start_ms, start_ms + DAY_MS, closed="left"))
        assert closed[start_ms]["summary"]["rows"] == in_window.height
    decisions = {e.id: json.loads(e.data) for t, e in by_id.values() if t == topics.DECISIONS.name}
    assert len(decisions) == len(starts)
    jobs = {json.loads(e.data)["job_id"] for t, e in by_id.values() if t == topics.JOBS.name}
    assert jobs == {d["job_id"] for d in decisions.values() if d["verdict"] == "yes"}
    frames = [pl.read_ipc_stream(e.data) for t, e in by_id.values() if t == topics.FEATURES.name]
    featured = pl.concat(frames).get_column("flight_id").to_list()
    assert len(featured) == len(set(featured))
    assert sorted(featured) == sorted(rows.get_column("flight_id").to_list())
