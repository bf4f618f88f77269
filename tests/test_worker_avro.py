"""A real worker on Avro records: while the registry is away it waits, and then has every row."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from aiokafka import AIOKafkaProducer

from infra.dataset import Dataset, DatasetUnreadable
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.topics import ensure
from infra.supervisor import Supervised, Supervisor, tidemill
from schemas import topics
from tests.avro_fixtures import avro_of, registry
from tests.worker_fixtures import wait_until

SCHEMA = {
    "type": "record",
    "name": "Weather",
    "fields": [
        {"name": "station", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "celsius", "type": ["null", "float"]},
    ],
}
PIPELINE = """
from msgspec import Struct
from schemas import topics
from schemas.topics import Topic, Version
from streams.pipeline import Pipeline, Source
from streams.window import Tumbling

class Weather(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    station: str
    at: int
    celsius: float | None

topics.declare(Topic(
    name="{topic}", purpose="a test", producer="a test", consumers=(), key="station",
    versions=(Version(number=1, contracts=(Weather,)),), partitions=1, unknown_fields="refuse",
))
weather = Pipeline(
    name="{topic}",
    source=Source("{topic}", schema=Weather, event_time="at", key="station", records="avro"),
    window=Tumbling("1h"),
)
"""
ROWS = 500


async def _push(connection: Connection, topic: str) -> None:
    own = topics.Topic(name=topic, purpose="", producer="", consumers=(), key="", versions=(), partitions=1)
    await ensure([*topics.TOPICS, own], connection)
    async with AIOKafkaProducer(**connection.client_arguments(), enable_idempotence=True) as producer:
        for number in range(ROWS):
            record = {"station": f"s{number}", "at": 1_700_000_000_000 + number, "celsius": number / 2}
            await producer.send(topic, avro_of(record, SCHEMA, number=3 if number % 100 else 99))
        await producer.flush()


def test_a_worker_waits_for_its_registry_and_loses_nothing(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    topic = f"avro-{tmp_path.name.replace('_', '-')}-{time.time_ns() % 1_000_000}"
    asyncio.run(_push(connection, topic))
    file, port = tmp_path / "weather.py", free_port()
    file.write_text(PIPELINE.format(topic=topic))
    dataset = Dataset(tmp_path / "dataset" / topic)
    environment = {
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "TIDEMILL_PATHS__HOME": str(tmp_path),
        "TIDEMILL_WORKER__PIPELINE": str(file),
        "TIDEMILL_SCHEMA_REGISTRY__URL": f"http://127.0.0.1:{port}",
        "TIDEMILL_LOG__FORM": "json",
    }

    def counted() -> dict[str, int]:
        try:
            counts = [c.metadata["counts"] for c in dataset.commits() if c.metadata.get("counts")]
        except DatasetUnreadable:
            return {"rows": 0, "events": 0}
        return {n: sum(c[topic][n] for c in counts) for n in ("rows", "events")}

    with Supervisor() as supervisor:
        log = tmp_path / "worker.log"
        worker = supervisor.start(Supervised("worker", tidemill("worker"), log, environment, most_restarts=0))
        wait_until(
            lambda: "cannot decode, will try again" in log.read_text(), "the worker says that it waits"
        )
        assert counted()["events"] == 0
        with registry({3: json.dumps(SCHEMA)}, port=port):
            wait_until(lambda: counted()["events"] == ROWS, f"all is in; {worker.log_tail()}")
        assert not supervisor.keep_alive()
    assert counted()["rows"] == ROWS - 5
    refused = [c.metadata["counts"][topic]["rejected"] for c in dataset.commits() if c.metadata.get("counts")]
    assert sum(r.get("schema id", 0) for r in refused) == 5
