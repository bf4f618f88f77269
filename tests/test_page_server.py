"""The page's server: who may look, who may change something, and letters that are pushed again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from typer.testing import CliRunner

from infra.command.main import app
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.reach import ClusterUnreachable
from infra.kafka.topics import ensure
from infra.page import follow
from infra.page.access import SAID_BY_PAGE, port_of, token_of
from infra.page.follow import Follower, TopicsMissing
from infra.page.server import PageServer
from infra.page.service import read_once, whereabouts
from infra.page.view import View
from infra.settings import load
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration
from tests.browser import until

SAYS = {SAID_BY_PAGE: "test"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def serving(
    connection: Connection | None = None, *, token: str | None = None, most_viewers: int = 64
) -> AsyncIterator[tuple[str, aiohttp.ClientSession, View]]:
    """A server, followed by a real follower if there is a cluster: its address, a client, its view."""
    view, port = View(), free_port()
    nowhere = Connection(bootstrap_servers="127.0.0.1:9")
    follower = Follower(connection or nowhere, view)
    server = PageServer(
        view,
        follower,
        connection or nowhere,
        host="127.0.0.1",
        port=port,
        token=token,
        most_viewers=most_viewers,
    )
    await server.start()
    following = asyncio.create_task(follower.run()) if connection else None
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        try:
            if following:
                async with asyncio.timeout(60):
                    await follower.caught_up.wait()
            yield f"http://127.0.0.1:{port}", client, view
        finally:
            if following:
                await follower.end(following)
            await server.stop()


async def test_on_loopback_anyone_here_may_look_but_no_other_sites_page_may_speak_for_him() -> None:
    async with serving() as (url, client, _):
        async with client.get(url) as got:
            assert got.status == 200
            assert "default-src 'none'" in got.headers["Content-Security-Policy"]
        async with client.get(url, headers={"Host": "evil.example"}) as got:
            assert got.status == 403
        asked = {"ids": ["p/t/0/1/0"]}
        async with client.post(f"{url}/api/redrive", json=asked) as got:
            assert got.status == 403, "a form of another site can send this much"
        elsewhere = {**SAYS, "Origin": "http://evil.example"}
        async with client.post(f"{url}/api/redrive", json=asked, headers=elsewhere) as got:
            assert got.status == 403
        async with client.post(f"{url}/api/redrive", json=asked, headers=SAYS) as got:
            assert got.status == 409
            assert "no such letter" in (await got.json())["letters"][0]["error"]
        async with client.post(f"{url}/api/redrive", data=b"{", headers=SAYS) as got:
            assert got.status == 400
        for path, status in (("/api/nothing", 404), ("/api/lineage/m/1", 404), ("/static/../view.py", 404)):
            async with client.get(url + path) as got:
                assert got.status == status, path
        async with client.get(f"{url}/health") as got:
            assert (got.status, await got.json()) == (503, {"connected": False, "caught_up": False})


async def test_with_a_token_nothing_is_shown_without_it_and_the_address_with_it_opens_the_page() -> None:
    async with serving(token="secret") as (url, client, _):
        for path in ("/", "/static/main.js", "/api/road", "/events", "/health"):
            async with client.get(url + path) as got:
                assert got.status == 401, path
        async with client.get(f"{url}/?token=wrong") as got:
            assert got.status == 401
        async with client.get(f"{url}/api/road", headers={"Authorization": "Bearer secret"}) as got:
            assert got.status == 200
        async with client.get(f"{url}/?token=secret") as got:
            assert (got.status, str(got.url)) == (200, f"{url}/"), "the token does not stay in the address"
        async with client.get(f"{url}/api/road") as got:
            assert got.status == 200, "by its cookie"


async def test_no_more_viewers_than_allowed_and_one_who_leaves_makes_room() -> None:
    async with serving(most_viewers=1) as (url, client, _):
        async with client.get(f"{url}/events?section=road") as first:
            assert (await first.content.readline()) == b"event: section\n"
            async with client.get(f"{url}/events?section=road") as second:
                assert (second.status, second.headers["Retry-After"]) == (503, "10")
        async with asyncio.timeout(20):
            while True:
                async with client.get(f"{url}/events?section=road") as again:
                    if again.status == 200:
                        break
                await asyncio.sleep(0.1)


def test_the_token_is_made_once_for_its_owner_alone_and_the_port_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(tmp_path))
    assert token_of(load()) is None
    port = port_of(load())
    assert port_of(load()) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert port_of(load()) != port
    monkeypatch.setenv("TIDEMILL_PAGE__HOST", "0.0.0.0")
    token = token_of(load())
    assert token is not None
    assert len(token) > 20
    assert token_of(load()) == token
    assert stat.S_IMODE((tmp_path / "page.token").stat().st_mode) == 0o600


def test_a_log_is_told_where_the_token_is_and_not_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(tmp_path))
    assert "token" not in whereabouts(load(), to_a_person=True)
    monkeypatch.setenv("TIDEMILL_PAGE__HOST", "0.0.0.0")
    token = token_of(load())
    assert token is not None
    assert f"?token={token}" in whereabouts(load(), to_a_person=True)
    logged = whereabouts(load(), to_a_person=False)
    assert token not in logged
    assert str(tmp_path / "page.token") in logged


def test_without_a_cluster_or_its_topics_the_command_says_so_and_ends(
    kafka: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(tmp_path))
    nowhere = Connection(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(ClusterUnreachable, match="nobody listens there"):
        asyncio.run(read_once(load(), nowhere))
    another = dataclasses.replace(topics.ALERTS, name="tidemill.of-a-newer-version")
    monkeypatch.setattr(follow, "FOLLOWED", (*follow.FOLLOWED, another))
    with pytest.raises(
        TopicsMissing, match=r"no topic .*of-a-newer-version.*; create it by `tidemill topics --create`"
    ):
        asyncio.run(read_once(load(), Connection(bootstrap_servers=kafka.bootstrap_servers)))


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        nowhere = Connection(bootstrap_servers="127.0.0.1:9")
        view = View()
        server = PageServer(
            view, Follower(nowhere, view), nowhere, host="127.0.0.1", port=taken.getsockname()[1]
        )
        with pytest.raises(InvalidConfiguration, match=r"page\.port"):
            await server.start()


@pytest.fixture
async def refused(
    kafka: EmbeddedBroker, create_topic: Callable[..., Awaitable[str]]
) -> tuple[Connection, str, list[DeadLetter]]:
    """A cluster with a topic of two partitions, and three letters of records that came from it."""
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    await ensure(topics.TOPICS, connection)
    origin = await create_topic("refused", partitions=2)
    common = {"pipeline": "p", "topic": origin, "partition": 1, "reason": "malformed", "rule": "decode"}
    letters = [
        DeadLetter(
            **common,
            offset=0,
            detail="no JSON",
            record_key=b"k",
            record_value=b"\xff\x00{",
            record_headers=[("content-type", b"application/json")],
        ),
        DeadLetter(**common, offset=1, detail="left out", record_key=None, record_value=None),
        DeadLetter(**common, offset=2, detail="no JSON", record_key=None, record_value=b"plain"),
    ]
    async with AIOKafkaProducer(**connection.client_arguments()) as producer:
        for letter in letters:
            key, value, headers = wrap(letter, source="/test", time_ms=1).record()
            await producer.send_and_wait(topics.DEAD_LETTERS.name, value, key=key, headers=headers)
    return connection, origin, letters


async def records(connection: Connection, topic: str, partition: int) -> list[tuple]:
    tp = TopicPartition(topic, partition)
    async with AIOKafkaConsumer(**connection.client_arguments(), enable_auto_commit=False) as consumer:
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        found, end = [], (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            for each in (await consumer.getmany(tp, timeout_ms=500)).values():
                found += [(r.key, r.value, list(r.headers)) for r in each]
    return found


async def test_a_letter_goes_back_byte_for_byte_to_where_it_came_from_and_the_event_says_so(
    refused: tuple[Connection, str, list[DeadLetter]],
) -> None:
    connection, origin, letters = refused
    async with serving(connection) as (url, client, view):
        ids = [letter.event_id() for letter in letters[:2]]
        async with client.post(f"{url}/api/redrive", json={"ids": ids}, headers=SAYS) as got:
            assert got.status == 409
            first, second = (await got.json())["letters"]
        assert first == {"id": ids[0], "offset": 0}
        assert "does not hold its bytes" in second["error"]
        assert await records(connection, origin, 1) == [
            (b"k", b"\xff\x00{", [("content-type", b"application/json")])
        ]
        assert await records(connection, origin, 0) == []

        def is_said() -> bool:
            said = {letter["id"]: letter["redriven"] for letter in view.as_json("letters")["letters"]}
            return said[ids[0]] is not None and said[ids[0]]["offset"] == 0

        await until(is_said, "the event that the record was pushed again")


def test_the_command_pushes_what_waits_and_not_what_was_pushed(
    refused: tuple[Connection, str, list[DeadLetter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, origin, letters = refused
    monkeypatch.setenv("TIDEMILL_KAFKA__BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    arguments = ["redrive", "--topic", origin, "--yes", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, "one letter does not hold its bytes"
    said = json.loads(done.stdout.splitlines()[0])["letters"]
    assert {each["id"]: each.get("offset") for each in said} == {
        letters[0].event_id(): 0,
        letters[1].event_id(): None,
        letters[2].event_id(): 1,
    }
    again = json.loads(CliRunner().invoke(app, arguments).stdout.splitlines()[0])["letters"]
    assert [each["id"] for each in again] == [letters[1].event_id()]
