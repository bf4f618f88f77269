"""Writers' schemas: asked for once, never guessed, and waited for while the registry is away.

What a registry does wrong is played by one of our own; what it does right, by Apicurio.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from infra.dataset import Dataset, DatasetUnreadable
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.read import read_to_end
from infra.kafka.topics import ensure
from infra.settings import SchemaRegistry as Options
from infra.supervisor import Supervised, Supervisor, tidemill
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.envelope import CONFLUENT_AVRO, open_record, unwrap_as
from schemas.errors import InvalidConfiguration, Retryable
from streams.decode.records import Decoder
from streams.decode.schema_registry import SchemaRegistry, writers_for
from streams.pipelines.flights import flights
from tests.apicurio_fixtures import Apicurio, apicurio
from tests.avro_fixtures import READING, avro_of, record_schema, registry
from tests.stream_fixtures import Reading, frame_of
from tests.test_decode import GOOD
from tests.worker_fixtures import wait_until

TEXT = json.dumps(READING)
WEATHER = record_schema(
    station="string", at={"type": "long", "logicalType": "timestamp-millis"}, celsius=["null", "float"]
)
WEATHER_TURNED = record_schema(celsius=["null", "float"], at="long", station="string")
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
START_MS = 1_700_000_000_000
UNKNOWN = 88_888


def test_a_schema_is_asked_for_once() -> None:
    with registry({7: TEXT, 8: TEXT}) as served:
        found = SchemaRegistry(Options(url=served.url))
        assert len(found.schemas([7, 8])) == 2
        known = found.schemas([7])[7]
        assert known is not None
        assert [f.name for f in known.fields] == [f["name"] for f in READING["fields"]]
        assert sorted(served.asked) == [7, 8]


def test_an_unknown_id_is_asked_for_again_only_after_a_while() -> None:
    now_s = 1_000.0
    with registry({}) as served:
        found = SchemaRegistry(Options(url=served.url, unknown_again_ms=30_000), now_s=lambda: now_s)
        assert found.schemas([9]) == {9: None}
        now_s += 29
        assert found.schemas([9]) == {9: None}
        assert served.asked == [9]
        served.schemas[9] = TEXT
        now_s += 2
        assert found.schemas([9])[9] is not None


def test_many_unknown_ids_are_each_asked_for_once() -> None:
    with registry({}) as served:
        found = SchemaRegistry(Options(url=served.url))
        for _ in range(3):
            assert set(found.schemas(range(200)).values()) == {None}
        assert sorted(served.asked) == list(range(200))


def test_a_registry_that_is_away_is_retryable_and_names_its_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Retryable, match=url):
        SchemaRegistry(Options(url=url, timeout_ms=500)).schemas([7])


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_registry_that_answers_with_an_error_is_retryable(status: int) -> None:
    with registry({7: TEXT}) as served:
        served.status = status
        found = SchemaRegistry(Options(url=served.url))
        with pytest.raises(Retryable, match=str(status)):
            found.schemas([7])
        served.status = None
        assert found.schemas([7])[7] is not None


def test_files_are_looked_at_before_the_registry(tmp_path: Path) -> None:
    (tmp_path / "7.avsc").write_text(TEXT)
    with registry({8: TEXT}) as served:
        found = SchemaRegistry(Options(url=served.url, folder=tmp_path))
        assert None not in found.schemas([7, 8]).values()
        assert served.asked == [8]
    assert SchemaRegistry(Options(folder=tmp_path)).schemas([8]) == {8: None}


def test_a_schema_of_no_record_is_as_good_as_none() -> None:
    with registry({7: '"string"', 8: "{"}) as served:
        assert SchemaRegistry(Options(url=served.url)).schemas([7, 8]) == {7: None, 8: None}


def test_a_source_of_avro_needs_somewhere_to_find_schemas() -> None:
    from dataclasses import replace

    declared = replace(flights, source=replace(flights.source, records="avro"))
    with pytest.raises(InvalidConfiguration, match=r"flights.scheduled.*schema_registry.url"):
        writers_for(declared, Options())
    assert writers_for(declared, Options(folder=Path("schemas"))) is not None
    assert writers_for(flights, Options()) is None


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apicurio]:
    """A real registry with Confluent's API."""
    with apicurio(tmp_path_factory.mktemp("apicurio")) as running:
        yield running


def test_records_of_a_schema_that_a_real_registry_holds_are_decoded(real: Apicurio) -> None:
    number = real.register("readings-value", READING)
    values = [avro_of({**GOOD, "extra": 1.5}, number=number), avro_of(GOOD, number=number + 1_000)]
    with closing(SchemaRegistry(Options(url=real.url))) as found:
        decoder = Decoder(Reading, writers=found.schemas, unmarked=CONFLUENT_AVRO)
        decoded = decoder.decode([frame_of(values)])
    assert decoded.rows.height == 1
    assert decoded.rows.row(0, named=True).items() >= GOOD.items()
    (refused,) = decoded.refused
    assert str(number + 1_000) in refused.detail


def test_a_real_registry_gives_each_schema_its_id_and_says_which_it_has_not(real: Apicurio) -> None:
    schemas = [
        record_schema(a="long"),
        record_schema(a="long", b=["null", "string"]),
        record_schema(c="double"),
    ]
    numbers = [real.register(f"subject-{at}", schema) for at, schema in enumerate(schemas)]
    assert real.register("another-subject", schemas[0]) == numbers[0]
    of_json = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": {}}
    other = real.register("json-value", of_json, schemaType="JSON")
    with closing(SchemaRegistry(Options(url=real.url))) as asked:
        found = asked.schemas([*numbers, other, 99_999])
    for number, schema in zip(numbers, schemas, strict=True):
        known = found[number]
        assert known is not None
        assert [field.name for field in known.fields] == [field["name"] for field in schema["fields"]]
    assert (found[other], found[99_999]) == (None, None)


async def push(connection: Connection, topic: str, numbers: tuple[int, int]) -> None:
    """Records by two writers' schemas, every hundredth by one that nobody knows."""
    own = topics.Topic(name=topic, purpose="", producer="", consumers=(), key="", versions=(), partitions=1)
    await ensure([*topics.TOPICS, own], connection)
    async with AIOKafkaProducer(**connection.client_arguments(), enable_idempotence=True) as producer:
        for n in range(ROWS):
            record = {"station": f"s{n}", "at": START_MS + n, "celsius": n / 2}
            schema, number = ((WEATHER, numbers[0]), (WEATHER_TURNED, numbers[1]))[n % 2]
            await producer.send(topic, avro_of(record, schema, number=number if n % 100 else UNKNOWN))
        await producer.flush()


async def letters_of(connection: Connection, topic: str) -> list[DeadLetter]:
    read = read_to_end(connection, {topics.DEAD_LETTERS.name: None})
    found = [unwrap_as(open_record(r.key, r.value, r.headers), DeadLetter) async for r in read]
    return [letter for letter in found if letter.topic == topic]


def test_a_worker_waits_for_its_real_registry_and_loses_nothing(
    real: Apicurio, kafka: EmbeddedBroker, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("avro")
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    numbers = (real.register("weather-value", WEATHER), real.register("weather-turned-value", WEATHER_TURNED))
    asyncio.run(push(connection, name, numbers))
    file = tmp_path / "weather.py"
    file.write_text(PIPELINE.format(topic=name))
    dataset = Dataset(tmp_path / "dataset" / name)
    environment = {
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "TIDEMILL_PATHS__HOME": str(tmp_path),
        "TIDEMILL_WORKER__PIPELINE": str(file),
        "TIDEMILL_SCHEMA_REGISTRY__URL": real.url,
        "TIDEMILL_SCHEMA_REGISTRY__TIMEOUT_MS": "1000",
        "TIDEMILL_LOG__FORM": "json",
    }

    def counted(what: str) -> int:
        try:
            return sum(
                c.metadata["counts"][name][what] for c in dataset.commits() if c.metadata.get("counts")
            )
        except DatasetUnreadable:
            return 0

    with Supervisor() as supervisor:
        log = tmp_path / "worker.log"
        with real.away():
            worker = Supervised("worker", tidemill("worker"), log, environment, most_restarts=0)
            supervisor.start(worker)
            wait_until(
                lambda: "cannot decode, will try again" in log.read_text(), "the worker says that it waits"
            )
            assert real.url in log.read_text()
            assert counted("events") == 0
        wait_until(lambda: counted("events") == ROWS, f"all is in; {worker.log_tail()}")
        assert not supervisor.keep_alive()
    rows = dataset.rows(
        name,
        version=dataset.newest_version(),
        start_ms=START_MS,
        end_ms=START_MS + ROWS,
        columns=["station", "celsius"],
    )
    assert {row["station"]: row["celsius"] for row in rows.to_dicts()} == {
        f"s{n}": n / 2 for n in range(ROWS) if n % 100
    }
    letters = asyncio.run(letters_of(connection, name))
    assert sorted(letter.offset for letter in letters) == [0, 100, 200, 300, 400]
    assert {(letter.reason, letter.rule) for letter in letters} == {("unknown_schema", "schema id")}
    assert all(str(UNKNOWN) in letter.detail for letter in letters)


def test_a_real_registry_that_dies_is_waited_for_and_what_was_known_stays_known(real: Apicurio) -> None:
    """The last of its tests: its schemas are gone with it."""
    number = real.register("kept-value", READING)
    with closing(SchemaRegistry(Options(url=real.url, timeout_ms=2_000))) as found:
        assert found.schemas([number])[number] is not None
        real.stop()
        with pytest.raises(Retryable, match=real.url):
            found.schemas([number + 1])
        assert found.schemas([number])[number] is not None
