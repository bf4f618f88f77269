"""The door: every event answered for itself, acknowledged once Kafka has it, refused with its reason."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from infra.door.cloud_events import BATCH, STRUCTURED, Reader
from infra.door.intake import Full
from infra.door.rest_proxy import Asked, Cut, record_of
from infra.door.run import Open, open_door
from infra.door.several import run_several
from infra.door.stream import Record, Refusal, Stream
from infra.door.tokens import tokens_of
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.running import running_on
from infra.settings import Door, Kafka, Paths, Settings
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.producer.encode import Encoder
from schemas.producer.source import Chunk
from schemas.topics import Topic, Version
from tests.stream_fixtures import Reading
from tests.worker_fixtures import wait_until

PARTITIONS = 3
CE = {"specversion": "1.0", "id": "1", "source": "/sensor/7", "type": "reading.taken"}
CE_HEADERS = {f"ce-{name}": value for name, value in CE.items()}
JSON = {"content-type": "application/json"}


def reading(number: int, **changes: Any) -> dict[str, Any]:
    event = {"id": f"r{number}", "at": number, "level": 0.5, "count": 1, "good": True, "note": None}
    return event | changes


def bytes_of(event: Any) -> bytes:
    return json.dumps(event).encode()


def declared(name: str) -> Topic:
    return Topic(
        name=name,
        purpose="A test's.",
        producer="a test",
        consumers=("a test",),
        key="id",
        partitions=PARTITIONS,
        versions=(Version(number=1, contracts=(Reading,)),),
        unknown_fields="refuse",
    )


STREAM = Stream(declared("readings"), most_bytes=10_000)
EVENTS = Reader(keep_attributes=True)


# ── one event, in each of its forms ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["plain", "binary", "structured", "base64", "v3", "v3-binary"])
def test_an_event_becomes_the_record_that_push_makes_whatever_its_form(form: str) -> None:
    value = b'{ "id":"r\\u00fc1","at":7,"level":1.50,"count":3,"good":true,"note":null}'
    encoded = base64.b64encode(value).decode()
    envelope = bytes_of(CE)[:-1]
    record = {
        "plain": lambda: EVENTS.binary(
            STREAM, [(b"Content-Type", b"application/json; charset=utf-8")], value
        ),
        "binary": lambda: EVENTS.binary(STREAM, raw(CE_HEADERS | JSON), value),
        "structured": lambda: EVENTS.structured(STREAM, envelope + b',"data":' + value + b"}"),
        "base64": lambda: EVENTS.structured(STREAM, envelope + b',"data_base64":"%b"}' % encoded.encode()),
        "v3": lambda: v3(b'{"value":{"type":"JSON","data":' + value + b"}}"),
        "v3-binary": lambda: v3(bytes_of({"value": {"type": "BINARY", "data": encoded}})),
    }[form]()
    assert isinstance(record, Record), record
    pushed = Encoder("id", 1, "json").encode(Chunk(1, lines=[value]))
    assert (record.key, record.value) == pushed[0].pairs()[0] == ("rü1".encode(), value)
    named = dict(record.headers)
    if form in ("binary", "structured", "base64"):
        assert named == {f"ce_{n}": v.encode() for n, v in CE.items()} | {"content-type": b"application/json"}
    else:
        assert named == {}


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def v3(body: bytes) -> Record | Refusal:
    (asked,) = Cut(most_bytes=10_000).feed(body, ended=True)
    return record_of(STREAM, asked)[0] if isinstance(asked, Asked) else asked


@pytest.mark.parametrize("key", ["at", "level", "note", "id"])
def test_the_key_is_what_push_reads_of_the_bytes_whatever_its_type(key: str) -> None:
    """An event may write 1.50 for a number: the key is 1.5 as JSON readers say it, and never 1.50 or 2."""
    stream = Stream(dataclasses.replace(declared("readings"), key=key), most_bytes=10_000)
    value = b'{"id":"r","at":7,"level":1.50,"count":3,"good":true,"note":null}'
    record = stream.take(value)
    assert isinstance(record, Record)
    (pushed,) = Encoder(key, 1, "json").encode(Chunk(1, lines=[value]))
    assert [(record.key, value)] == pushed.pairs()


def test_attributes_are_kept_with_extensions_and_percent_encoding_or_left_out_if_one_says_so() -> None:
    headers = raw(CE_HEADERS | JSON | {"CE-Subject": "%E2%82%AC", "ce-traceparent": "00-ab"})
    record = EVENTS.binary(STREAM, headers, bytes_of(reading(1)))
    assert isinstance(record, Record)
    assert dict(record.headers).items() >= {("ce_subject", "€".encode()), ("ce_traceparent", b"00-ab")}
    said = CE | {"time": "2013-01-01T00:00:00Z", "sequence": 7, "gone": None, "partitionkey": "p"}
    record = EVENTS.structured(STREAM, bytes_of(said | {"data": reading(1)}))
    assert isinstance(record, Record)
    assert record.key == b"p"
    assert dict(record.headers).items() >= {("ce_time", b"2013-01-01T00:00:00Z"), ("ce_sequence", b"7")}
    bare = Reader(keep_attributes=False).structured(STREAM, bytes_of(said | {"data": reading(1)}))
    assert isinstance(bare, Record)
    assert bare.headers == []


@pytest.mark.parametrize(
    ("said", "status", "why"),
    [
        ({"specversion": "0.3"}, 400, "specversion 0.3"),
        ({"specversion": None}, 400, "no specversion"),
        ({"id": ""}, 400, "no id"),
        ({"source": None}, 400, "no source"),
        ({"data": None}, 422, "breaks the contract of readings"),
        ({"data": reading(1, level=70)}, 422, r"level"),
        ({"data": reading(1, extr=1)}, 422, "extr"),
        ({"data": [1]}, 422, "array"),
        ({"data": reading(1) | {"note": "x" * 12_000}}, 413, "at most 10000"),
        ({"datacontenttype": "text/xml"}, 422, "text/xml"),
        ({"data_base64": "AAAA"}, 400, "allows one"),
    ],
)
def test_an_event_that_cannot_be_taken_is_told_why(said: dict[str, Any], status: int, why: str) -> None:
    refusal = EVENTS.structured(STREAM, bytes_of(CE | {"data": reading(1)} | said))
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert why in refusal.error


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"id":"\xff"}', 400),
        (b"[" * 100_000, 413),
        (b"[" * 5_000, 422),
        (b"NaN", 400),
        (bytes_of(reading(1))[:-1] + b',"note":"\\ud800"}', 400),
    ],
)
def test_bad_bytes_are_refused_and_never_an_error_of_ours(body: bytes, status: int) -> None:
    refusal = EVENTS.binary(STREAM, raw(JSON), body)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status, refusal
    for read in (EVENTS.structured, EVENTS.batch):
        assert isinstance(read(STREAM, body), Refusal)


def test_whole_records_of_arrow_and_avro_go_as_they_are_and_nothing_else_does() -> None:
    for kind in ("application/vnd.apache.arrow.stream", "application/vnd.confluent.avro"):
        record = EVENTS.binary(STREAM, raw({"content-type": kind}), b"\0\0\0\0\1x")
        assert isinstance(record, Record)
        assert (record.key, record.headers) == (None, [("content-type", kind.encode())])
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        refusal = EVENTS.binary(STREAM, raw({"content-type": kind}), bytes_of(reading(1)))
        assert isinstance(refusal, Refusal)
        assert refusal.status == 415


# ── the records form ────────────────────────────────────────────────────────────────────────────────

good_records = st.builds(
    lambda n, key: bytes_of({"value": {"type": "JSON", "data": reading(n)}} | ({"key": key} if key else {})),
    st.integers(0, 99),
    st.none() | st.fixed_dictionaries({"type": st.just("STRING"), "data": st.text(max_size=5)}),
)
bad_records = st.sampled_from([b'{"value": 7}', b'{"partition_id": -1}', b"[]", b"7"])
broken_lines = st.sampled_from([b"nonsense\n", b'{"value" 1}\n', b"}\n"])


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(good_records | bad_records | broken_lines, max_size=6),
    between=st.sampled_from([b"", b" ", b"\n", b"\r\n\t"]),
    cuts=st.lists(st.integers(0, 400), max_size=5),
)
def test_records_are_the_same_however_the_body_is_cut(
    parts: list[bytes], between: bytes, cuts: list[int]
) -> None:
    body = (between or b"\n").join(parts)
    whole = list(Cut(most_bytes=10_000).feed(body, ended=True))
    cut = Cut(most_bytes=10_000)
    edges = sorted({min(at, len(body)) for at in cuts} | {0, len(body)})
    found: list[Any] = []
    for start, end in itertools.pairwise(edges):
        found += cut.feed(body[start:end], ended=False)
    found += cut.feed(b"", ended=True)
    assert [kind_of(one) for one in found] == [kind_of(one) for one in whole]
    assert len(whole) == len(parts)


def kind_of(one: Asked | Refusal) -> Any:
    return one.status if isinstance(one, Refusal) else msgspec.json.encode(one)


@pytest.mark.parametrize("number", ["-1", "1.5", "1e-7", "-0.25E+2"])
def test_a_number_may_arrive_in_two_pieces(number: str) -> None:
    body = b'{"value":{"data":%b}} ' % number.encode()
    for at in range(1, len(body)):
        cut = Cut(most_bytes=100)
        found = [*cut.feed(body[:at], ended=False), *cut.feed(body[at:], ended=True)]
        assert [type(one) for one in found] == [Asked], body[:at]


def test_records_without_anything_between_them_are_told_apart() -> None:
    one = bytes_of({"value": {"data": reading(1)}})
    assert len(list(Cut(most_bytes=10_000).feed(one * 5, ended=True))) == 5


@pytest.mark.parametrize(
    ("asked", "status", "why"),
    [
        ({}, 422, "no value"),
        ({"value": {"type": "AVRO", "data": "x"}}, 422, "BINARY"),
        ({"value": {"type": "BINARY", "data": "*"}}, 400, "BINARY"),
        ({"value": {"type": "STRING", "data": 7}}, 400, "STRING"),
        ({"value": {"data": reading(1)}, "headers": [{"name": "h", "value": "*"}]}, 400, "header"),
        ({"value": {"data": reading(1, count="x")}}, 422, "contract"),
        ({"key": {"type": "PROTOBUF"}, "value": {"data": reading(1)}}, 422, "key"),
    ],
)
def test_a_record_that_cannot_be_taken_is_told_why(asked: dict[str, Any], status: int, why: str) -> None:
    refusal = v3(bytes_of(asked))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, why in refusal.error) == (status, True), refusal


# ── who may come in ─────────────────────────────────────────────────────────────────────────────────


def test_a_door_open_to_other_machines_needs_a_token_and_a_token_is_long(tmp_path: Path) -> None:
    assert not tokens_of(Door()).required
    for host in ("0.0.0.0", "::", "10.1.2.3", "gate.example"):
        with pytest.raises(InvalidConfiguration, match=r"door\.token"):
            tokens_of(Door(host=host))
    with pytest.raises(InvalidConfiguration, match="token_urlsafe"):
        tokens_of(Door.model_validate({"token": "short"}))
    (tmp_path / "tokens").write_text("# of the sensors\nfirst-token-of-two\n\nsecond-token-of-two\n")
    tokens = tokens_of(Door(host="0.0.0.0", tokens_file=tmp_path / "tokens"))
    assert tokens.admits("Bearer second-token-of-two")
    assert tokens.admits("bearer first-token-of-two")
    assert not any(
        tokens.admits(said) for said in (None, "", "Bearer ", "Basic x", "Bearer # of the sensors")
    )
    with pytest.raises(InvalidConfiguration, match="tokens_file"):
        tokens_of(Door(tokens_file=tmp_path / "none"))


# ── over HTTP, to a real cluster ────────────────────────────────────────────────────────────────────


class Site:
    """An open door and a client of it."""

    def __init__(self, door: Open, http: aiohttp.ClientSession, topic: str, servers: str) -> None:
        self.door, self.http, self.topic, self.servers = door, http, topic, servers

    async def post(self, path: str, data: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        async with self.http.post(self.door.url + path, data=data, headers=headers or JSON) as response:
            text = await response.text()
            try:
                said = json.loads(text)
            except ValueError:  # reports, one after another
                said = [json.loads(line) for line in text.splitlines()]
            return response.status, said, response.headers

    async def events(self, data: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        return await self.post(f"/v1/events/{self.topic}", data, headers)

    async def held(self) -> dict[tuple[int, int], tuple[bytes | None, bytes | None]]:
        """Key and value by partition and offset: what is on the topic."""
        return await records_of(self.servers, self.topic)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  (what is waited for knows nothing of tests)
            await asyncio.sleep(0.01)


async def records_of(
    servers: str, topic: str, partitions: int = PARTITIONS
) -> dict[tuple[int, int], tuple[bytes | None, bytes | None]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, n) for n in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning()
        ends, found = await consumer.end_offsets(tps), {}
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for own in (await consumer.getmany(timeout_ms=500)).values():
                found |= {(r.partition, r.offset): (r.key, r.value) for r in own}
        return found
    finally:
        await consumer.stop()


@contextmanager
def only(topic: str) -> Iterator[None]:
    """The raw topics, and of other tests' none but this one."""
    with topics.apart():
        topics.declare(declared(topic))
        yield


@asynccontextmanager
async def site(kafka: EmbeddedBroker, topic: str, home: Path, **door: Any) -> AsyncIterator[Site]:
    servers = str(kafka.bootstrap_servers)
    configured = Settings(
        kafka=Kafka(bootstrap_servers=servers),
        paths=Paths(home=home),
        door=Door.model_validate({"port": 0} | door),
    )
    with only(topic):
        async with (
            open_door(configured, Connection(bootstrap_servers=servers)) as opened,
            aiohttp.ClientSession() as http,
        ):
            yield Site(opened, http, topic, servers)


async def test_what_is_acknowledged_is_held_where_the_answer_says(
    kafka: EmbeddedBroker, topic, tmp_path: Path
) -> None:
    async with site(kafka, topic("door"), tmp_path) as at:
        batch = [CE | {"id": str(n), "data": reading(n)} for n in range(50)]
        batch[7]["data"] = reading(7, level="high")
        batch[9] = {"id": "no event"}
        status, said, _ = await at.events(bytes_of(batch), {"content-type": BATCH})
        assert (status, said["accepted"], said["refused"]) == (207, 48, 2)
        assert [n for n, one in enumerate(said["events"]) if one["status"] != 200] == [7, 9]
        assert "level" in said["events"][7]["error"]
        singles = await asyncio.gather(
            at.events(bytes_of(reading(100))),
            at.events(bytes_of(reading(101)), CE_HEADERS | JSON),
            at.events(bytes_of(CE | {"data": reading(102)}), {"content-type": STRUCTURED}),
        )
        assert [status for status, _, _ in singles] == [200] * 3
        answers = {n: one for n, one in enumerate(said["events"]) if one["status"] == 200}
        answers |= {100 + n: one for n, (_, one, _) in enumerate(singles)}
        held = await at.held()
        assert len(held) == 51
        pushed = Encoder("id", PARTITIONS, "json")
        for number, one in answers.items():
            value = bytes_of(reading(number))
            assert held[one["partition"], one["offset"]] == (f"r{number}".encode(), value)
            records = pushed.encode(Chunk(1, lines=[value]))[one["partition"]]
            assert records.pairs() == [(f"r{number}".encode(), value)]


async def test_the_records_form_reports_each_record_also_while_more_come(
    kafka: EmbeddedBroker, topic, tmp_path: Path
) -> None:
    async with site(kafka, topic("door"), tmp_path) as at:
        path = f"/v3/clusters/any/topics/{at.topic}/records"
        lines = [
            {
                "value": {"type": "JSON", "data": reading(1)},
                "partition_id": 2,
                "timestamp": "2013-01-01T00:00:00Z",
            },
            {"value": {"type": "JSON", "data": {"id": 1}}},
            {"key": {"type": "STRING", "data": "own"}, "value": {"type": "JSON", "data": reading(3)}},
            {"value": {"type": "JSON", "data": reading(4)}, "partition_id": 3},
        ]
        status, said, _ = await at.post(path, b"".join(map(bytes_of, lines)))
        assert (status, [one["error_code"] for one in said]) == (200, [200, 422, 200, 422])
        assert said[0].items() >= {"topic_name": at.topic, "partition_id": 2, "offset": 0}.items()
        assert said[0]["value"] == {"type": "JSON", "size": len(bytes_of(reading(1)))}
        assert f"{at.topic} has no partition 3" in said[3]["message"]
        async with at.http.get(at.door.url + "/v3/clusters") as response:
            (cluster,) = (await response.json())["data"]
        assert said[0]["cluster_id"] == cluster["cluster_id"]
        # The next record is sent only once the report of the one before has come back.
        reported = asyncio.Event()

        async def one_by_one() -> AsyncIterator[bytes]:
            yield bytes_of({"value": {"data": reading(10)}})
            await asyncio.wait_for(reported.wait(), 30)
            yield b'{"value":'
            yield b'{"data":' + bytes_of(reading(11)) + b"}}\nno JSON\n"

        async with at.http.post(at.door.url + path, data=one_by_one(), headers=JSON) as response:
            first = json.loads(await response.content.readline())
            reported.set()
            rest = [json.loads(line) for line in (await response.text()).splitlines()]
        assert [one["error_code"] for one in (first, *rest)] == [200, 200, 400]
        held = await at.held()
        assert sorted(json.loads(value or b"")["id"] for _, value in held.values()) == [
            "r1",
            "r10",
            "r11",
            "r3",
        ]
        assert held[2, 0][0] == b"r1"
        assert b"own" in {key for key, _ in held.values()}


async def test_an_answer_closes_or_keeps_the_connection_as_the_request_asks(
    kafka: EmbeddedBroker, topic, tmp_path: Path
) -> None:
    """Over a bare socket: what clients of our own would hide."""
    body = bytes_of(reading(1))
    length = f"content-length: {len(body)}\r\n"
    post = f"POST /v1/events/{{}} HTTP/{{}}\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}"

    async with site(kafka, topic("door"), tmp_path) as at:
        host, port = at.door.url.removeprefix("http://").split(":")

        async def asked(*requests: bytes) -> list[tuple[str, dict[str, str], bytes]]:
            """Status line, headers and body of each answer until the door closes the connection."""
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"".join(requests))
            text = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            found = []
            while text:
                head, _, text = text.partition(b"\r\n\r\n")
                status, *lines = head.decode().splitlines()
                headers = dict(line.lower().split(": ", 1) for line in lines)
                size = 0 if requests[0].startswith(b"HEAD") else int(headers["content-length"])
                found.append((status, headers, text[:size]))
                text = text[size:]
            return found

        last = b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        kept = post.format(at.topic, "1.1").encode() + b"\r\n" + body
        (status, headers, said), (_, farewell, lives) = await asked(kept, last)
        assert status == "HTTP/1.1 200 OK"
        assert headers.keys() == {"content-type", "content-length", "date"}
        assert json.loads(said)["topic"] == at.topic
        assert (farewell["connection"], lives) == ("close", b'{"ok":true}')
        closing = post.format(at.topic, "1.1").encode() + b"connection: close\r\n\r\n" + body
        assert [headers["connection"] for _, headers, _ in await asked(closing)] == ["close"]
        old = post.format(at.topic, "1.0").encode() + b"\r\n" + body
        assert [headers["connection"] for _, headers, _ in await asked(old)] == ["close"]
        old = post.format(at.topic, "1.0").encode() + b"connection: keep-alive\r\n\r\n" + body
        assert [headers["connection"] for _, headers, _ in await asked(old, last)] == ["keep-alive", "close"]
        head = b"HEAD /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        ((_, headers, rest),) = await asked(head)
        assert (headers["content-length"], rest) == ("11", b"")
        ((status, _, _),) = await asked(b"no HTTP at all\r\n\r\n")
        assert " 400 " in status


async def test_strangers_unknown_streams_and_what_is_too_large_are_told_so(
    kafka: EmbeddedBroker, topic, tmp_path: Path
) -> None:
    limits = {"event_bytes": 1_000, "request_bytes": 20_000, "in_flight_records": 10}
    async with site(kafka, topic("door"), tmp_path, **limits) as at:
        status, said, _ = await at.post("/v1/events/flights.schedule", b"{}")
        assert status == 404
        assert "flights.scheduled" in said["error"]
        assert at.topic in said["error"]
        for path, expected in (
            ("/v1/events", 405),
            ("/nothing", 404),
            (f"/v3/clusters/x/topics/{at.topic}", 404),
        ):
            assert (await at.post(path, b"{}"))[0] == expected
        assert (await at.events(b"{}", {"content-type": "text/plain"}))[0] == 415
        assert (await at.events(bytes_of(reading(1, note="x" * 2_000))))[0] == 413
        assert (await at.events(b"x" * 20_001))[0] == 413
        assert (await at.events(gzip.compress(b" " * 500_000), JSON | {"content-encoding": "gzip"}))[0] == 413
        assert (await at.events(b"no gzip", JSON | {"content-encoding": "gzip"}))[0] == 400
        eleven = bytes_of([CE | {"data": reading(n)} for n in range(11)])
        assert (await at.events(eleven, {"content-type": BATCH}))[0] == 413
        assert (await at.events(b"[]", {"content-type": BATCH}))[0] == 200
        packed = gzip.compress(bytes_of(reading(5)))
        assert (await at.events(packed, JSON | {"content-encoding": "gzip"}))[0] == 200
        assert (await at.events(bytes_of(reading(1)), JSON | {"host": "gate.example:80"}))[0] == 403
        async with at.http.get(at.door.url + "/v1/events") as response:
            assert at.topic in {stream["name"] for stream in (await response.json())["streams"]}
        intake = at.door.intake
        assert (intake.records, intake.size_bytes) == (0, 0)
    token = "a-token-of-this-test"
    async with site(kafka, at.topic, tmp_path, token=token) as at:
        status, _, headers = await at.events(bytes_of(reading(1)))
        assert (status, headers["www-authenticate"][:6]) == (401, "Bearer")
        assert (await at.events(bytes_of(reading(1)), JSON | {"authorization": f"Bearer {token}"}))[0] == 200
        async with at.http.get(at.door.url + "/live") as response:
            assert response.status == 200


async def test_while_the_cluster_is_frozen_producers_wait_are_told_so_and_lose_nothing(
    kafka: EmbeddedBroker, topic, tmp_path: Path
) -> None:
    limits = {"in_flight_records": 5, "answer_within_s": 1.0, "retry_after_s": 3}
    async with site(kafka, topic("door"), tmp_path, **limits) as at:
        assert (await at.events(bytes_of(reading(0))))[0] == 200
        running = running_on(kafka.data_dir)
        assert running is not None
        os.kill(running.pid, signal.SIGSTOP)
        try:
            await until(lambda: psutil.Process(running.pid).status() == psutil.STATUS_STOPPED)
            five = bytes_of([CE | {"data": reading(n)} for n in range(1, 6)])
            waiting = asyncio.create_task(at.events(five, {"content-type": BATCH}))
            await until(lambda: at.door.intake.records == 5 or waiting.done())
            assert not waiting.done(), waiting
            status, said, headers = await at.events(bytes_of(reading(6)))
            assert (status, headers["retry-after"]) == (429, "3")
            assert "5 of at most 5" in said["error"]
            status, said, headers = await waiting
            assert (status, headers["retry-after"]) == (503, "3")
            assert "may still arrive" in said["events"][0]["error"]
            assert at.door.intake.records == 5  # told or not, they are on their way
        finally:
            os.kill(running.pid, signal.SIGCONT)
        await until(lambda: at.door.intake.records == 0)
        assert (await at.events(bytes_of(reading(7))))[0] == 200
        held = await at.held()
        assert sorted(key for key, _ in held.values() if key) == [b"r%d" % n for n in (0, 1, 2, 3, 4, 5, 7)]


async def test_room_in_flight_is_bounded_in_bytes_and_records(
    kafka: EmbeddedBroker, topic, tmp_path: Path
) -> None:
    limits = {"in_flight_records": 2, "event_bytes": 900, "request_bytes": 1_000, "in_flight_bytes": 1_000}
    async with site(kafka, topic("door"), tmp_path, **limits) as at:
        intake = at.door.intake
        intake.enter(990)
        status, said, headers = await at.events(bytes_of(reading(1)))
        assert (status, headers["retry-after"]) == (429, "1")
        assert "bytes" in said["error"]
        intake.leave(990)
        record = STREAM.take(bytes_of(reading(1)))
        on_their_way = [intake.submit(at.topic, [record], size_bytes=0) for _ in range(2)]
        with pytest.raises(Full, match="2 of at most 2 records"):
            intake.submit(at.topic, [record], size_bytes=0)
        await asyncio.gather(*on_their_way)
        assert (await at.events(bytes_of(reading(1))))[0] == 200
        assert (intake.records, intake.size_bytes) == (0, 0)


DOOR = [sys.executable, "-m", "infra.command", "door"]


def environment_of(kafka: EmbeddedBroker, home: Path, *, port: int = 0, processes: int = 1) -> dict[str, str]:
    return {
        **os.environ,
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": str(kafka.bootstrap_servers),
        "TIDEMILL_PATHS__HOME": str(home),
        "TIDEMILL_DOOR__PORT": str(port),
        "TIDEMILL_DOOR__PROCESSES": str(processes),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_answers_what_was_let_in_and_loses_nothing_that_was_acknowledged(
    kafka: EmbeddedBroker, topic, tmp_path: Path, processes: int
) -> None:
    """The command itself, with producers that send all the while."""
    servers, stream = str(kafka.bootstrap_servers), topics.WEATHER_HOURLY
    environment = environment_of(kafka, tmp_path, processes=processes)
    mark = topic("C")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(DOOR, env=environment, stdout=out, stderr=out)
        opened = wait_until(lambda: said_in(tmp_path / "out", "the door is open at "), "the door is open")
        url = opened.split("/STREAM")[0] + f"/{stream.name}"
        if processes > 1:
            lose_one_of(process, tmp_path / "out", url, kafka)
        sender = Producers(url, mark)
        sender.start()
        wait_until(lambda: len(sender.acknowledged) > 50 or not sender.is_alive(), "events go in")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        sender.join(60)
    assert "every event that was acknowledged is on the cluster" in (tmp_path / "out").read_text()
    assert sender.broken_off == []  # whoever was inside had an answer
    held = asyncio.run(records_of(servers, stream.name, stream.partitions))
    ids = {value for _, value in held.values()}
    assert len(sender.acknowledged) > 50
    assert [one for one in sender.acknowledged if one not in ids] == []


def lose_one_of(process: subprocess.Popen[bytes], out: Path, url: str, kafka: EmbeddedBroker) -> None:
    """kill -9 of one of two: it comes back, and meanwhile the port is nobody else's."""
    doors = psutil.Process(process.pid).children()
    assert len(doors) == 2
    port = int(url.split("/")[2].rsplit(":", 1)[1])
    another = Settings(
        kafka=Kafka(bootstrap_servers=str(kafka.bootstrap_servers)), door=Door(port=port, processes=2)
    )
    with pytest.raises(InvalidConfiguration, match=f"cannot listen on 127.0.0.1:{port}"):
        run_several(another, ["door", "--beside"], Console(quiet=True))
    os.kill(doors[0].pid, signal.SIGKILL)
    wait_until(lambda: said_in(out, "door 1 was killed and is started"), "its loss is seen")
    log = out.parent / "logs" / "door-1.log"
    wait_until(lambda: log.read_text().count("the door is open at ") == 2, "it is open again")


def said_in(file: Path, what: str) -> str:
    return next((line.split(what)[1] for line in file.read_text().splitlines() if what in line), "")


class Producers(threading.Thread):
    """Eight clients that send event after event until they are not let in any more."""

    def __init__(self, url: str, mark: str) -> None:
        super().__init__(daemon=True)
        self.url, self.mark = url, mark
        self.acknowledged: list[bytes] = []
        self.broken_off: list[str] = []

    def run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        async with aiohttp.ClientSession() as http:
            await asyncio.gather(*(self._one(http, n) for n in range(8)))

    async def _one(self, http: aiohttp.ClientSession, client: int) -> None:
        for number in range(10_000):
            event = {
                **topics.WEATHER_HOURLY.examples[0],
                "observed": number,
                "origin": f"{self.mark[:12]}{client}",
            }
            value = bytes_of(event)
            try:
                async with http.post(self.url, data=value, headers=JSON) as response:
                    if response.status != 200:
                        self.broken_off.append(f"{response.status} {await response.text()}")
                        return
                    await response.read()
                    self.acknowledged.append(value)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                return  # the door is closed, or an idle connection was as the request was under way
            except aiohttp.ClientError as error:
                self.broken_off.append(repr(error))
                return
