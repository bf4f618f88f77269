"""What a client takes from stores: S3 like http, no byte too many, and nothing from where no store may be."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.client.download import Downloader
from schemas.client.errors import ArtifactMismatch, StoreNotAllowed, StoreUnavailable
from schemas.client.reach import forbidden
from schemas.client.store_client import StoreClient
from schemas.client.stores import Stores
from schemas.errors import InvalidConfiguration
from schemas.model import Artifact
from tests.client_fixtures import serving, weights
from tests.s3_fixtures import BUCKET, SECRET, S3Server, raw_server, s3_server

WEIGHTS = weights(1)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
NAME = f"{DIGEST}.safetensors"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.put(f"flights/{NAME}", WEIGHTS)
        yield server


def artifact(uri: str) -> Artifact:
    return Artifact(uri=uri, size_bytes=len(WEIGHTS), sha256=DIGEST)


@asynccontextmanager
async def downloader(
    stores: list[str], folder: Path, *, s3: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[Downloader]:
    connected = StoreClient(stores, s3=s3)
    try:
        yield Downloader(connected, folder, **more)
    finally:
        await connected.close()


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# S3.


async def test_an_artifact_on_s3_is_fetched_and_its_signed_address_shown_to_nobody(
    s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with downloader([f"s3://{BUCKET}/flights/"], tmp_path, s3=s3.options) as from_s3:
        assert await from_s3.fetch(artifact(f"s3://{BUCKET}/flights/{NAME}")) == WEIGHTS
    assert f"s3://{BUCKET}/flights/{NAME}" in caplog.text
    for secret in (SECRET, "X-Amz-Signature"):
        assert not [r for r in caplog.records if r.name == "httpx" and secret in r.getMessage()]


async def test_a_broken_download_from_s3_goes_on_where_it_ended(s3: S3Server, tmp_path: Path) -> None:
    half = len(WEIGHTS) // 2
    (tmp_path / f"{DIGEST}.part").write_bytes(WEIGHTS[:half])
    fetched: list[str] = []

    async with downloader([f"s3://{BUCKET}/flights"], tmp_path, s3=s3.options) as from_s3:

        async def note(response: httpx.Response) -> None:
            fetched.append(response.headers["content-range"])

        from_s3._http.event_hooks = {"response": [note]}
        assert await from_s3.fetch(artifact(f"s3://{BUCKET}/flights/{NAME}")) == WEIGHTS
    assert fetched == [f"bytes {half}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"]


async def test_another_bucket_and_a_wrong_secret_get_nothing(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.client.download._PAUSES_S", (0.0,))
    async with downloader([f"s3://{BUCKET}/flights/"], tmp_path, s3=s3.options) as from_s3:
        for uri in (
            f"s3://other/flights/{NAME}x",
            f"s3://{BUCKET}/{NAME}x",
            f"s3://{BUCKET}/flights/../{NAME}x",
            f"s3://me:secret@{BUCKET}/flights/x",
            f"s3://{BUCKET}:1/flights/x",
        ):
            with pytest.raises(StoreNotAllowed):
                await from_s3.fetch(artifact(uri))
    wrong = s3.options | {"secret_access_key": "wrong"}
    async with downloader([f"s3://{BUCKET}/flights/"], tmp_path, s3=wrong) as stranger:
        with pytest.raises(StoreUnavailable, match="answered 403") as refused:
            await stranger.fetch(artifact(f"s3://{BUCKET}/flights/{NAME}"))
    assert "wrong" not in str(refused.value)
    assert "Signature" not in str(refused.value)


def test_an_s3_option_that_is_none_is_a_mistake_of_configuration() -> None:
    for options in (
        {"endpoint": "ftp://x"},
        {"endpoint": "http://169.254.169.254"},
        {"endpoint": "https://me:secret@x/"},
        {"regoin": "x"},
    ):
        with pytest.raises(InvalidConfiguration) as refused:
            StoreClient(["s3://models/"], s3=options)
        assert "secret" not in str(refused.value)


# Where no store may be.


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
        "255.255.255.255",
    ],
)
def test_no_store_is_at_a_link_local_or_metadata_address(address: str) -> None:
    assert forbidden(address) is not None
    host = f"[{address.partition('%')[0]}]" if ":" in address else address
    with pytest.raises(InvalidConfiguration, match="another store"):
        Stores([f"http://{host}:8700/"])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.1", "fd12::7", "1.1.1.1"])
def test_stores_may_be_on_this_machine_and_in_private_networks(address: str) -> None:
    assert forbidden(address) is None


@pytest.mark.parametrize("spelling", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"])
async def test_odd_spellings_of_a_link_local_address_lead_nowhere(spelling: str, tmp_path: Path) -> None:
    try:
        Stores([f"http://{spelling}/"])
    except InvalidConfiguration:
        return
    async with downloader([f"http://{spelling}/"], tmp_path) as astray:
        with pytest.raises(StoreNotAllowed, match=r"leads to 169\.254\.169\.254"):
            await astray.fetch(artifact(f"http://{spelling}/{NAME}"))


Resolver = Callable[..., Awaitable[list[Any]]]


def resolving(*answers: list[str]) -> Resolver:
    """A resolver as the network might have it: each time it is asked, the next answer, and then the last."""
    left = list(answers)

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    return resolve


@pytest.mark.parametrize("also", [[], ["127.0.0.1"]])
async def test_a_name_that_leads_to_a_link_local_address_is_never_connected_to(
    also: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "store") as store, downloader(["http://models.test/"], tmp_path) as astray:
        store.put(WEIGHTS)
        port = httpx.URL(store.url).port
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolving([*also, "169.254.169.254"]))
        with pytest.raises(StoreNotAllowed, match=r"models.test leads to 169.254.169.254, a link-local"):
            await astray.fetch(artifact(f"http://models.test:{port}/{NAME}"))
    assert store.requests == []


async def test_a_name_is_resolved_once_and_the_connection_goes_where_was_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "store") as store:
        store.put(WEIGHTS)
        base = f"http://models.test:{httpx.URL(store.url).port}/"
        async with downloader([base], tmp_path / "cache") as rebound:
            # A second look would lead to a metadata service.
            resolve = resolving(["127.0.0.1"], ["169.254.169.254"])
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
            assert await rebound.fetch(artifact(base + NAME)) == WEIGHTS


async def test_of_several_addresses_one_that_does_not_answer_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "store") as store:
        store.put(WEIGHTS)
        base = f"http://models.test:{httpx.URL(store.url).port}/"
        async with downloader([base], tmp_path / "cache") as patient:
            resolve = resolving(["127.0.0.2", "127.0.0.1"])
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
            assert await patient.fetch(artifact(base + NAME)) == WEIGHTS


# Stores that lie.


SENT_AT_MOST = 8 * 2**20


def says(head: str, *, length: int | None = len(WEIGHTS)) -> bytes:
    claimed = "" if length is None else f"content-length: {length}\r\n"
    return f"HTTP/1.1 200 OK\r\n{claimed}{head}\r\n".encode()


async def flood(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    for _ in range(SENT_AT_MOST // 65_536 * 4):
        writer.write(chunk)
        await writer.drain()


@pytest.mark.parametrize(
    "claimed", [len(WEIGHTS), 10**12, None], ids=["the right size", "a terabyte", "none"]
)
async def test_whatever_length_a_store_claims_no_more_is_kept_than_the_event_names(
    claimed: int | None, tmp_path: Path
) -> None:
    sent = 0

    async def longer(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(says("", length=claimed))
        while sent < 1024 * 2**20:
            writer.write(b"\0" * 65_536)
            await writer.drain()
            sent += 65_536

    async with raw_server(longer) as url, downloader([url], tmp_path) as wary:
        with pytest.raises(ArtifactMismatch):
            await wary.fetch(artifact(url + NAME))
    assert sent < 64 * 2**20
    assert kept_bytes(tmp_path) <= len(WEIGHTS)


async def test_a_part_that_is_longer_than_was_asked_for_is_cut(tmp_path: Path) -> None:
    half = len(WEIGHTS) // 2

    async def longer(writer: asyncio.StreamWriter) -> None:
        head = f"content-range: bytes {half}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}\r\n"
        writer.write(f"HTTP/1.1 206 Partial Content\r\n{head}\r\n".encode())
        with contextlib.suppress(OSError):
            await flood(writer, b"\0" * 65_536)

    (tmp_path / f"{DIGEST}.part").write_bytes(WEIGHTS[:half])
    async with raw_server(longer) as url, downloader([url], tmp_path) as wary:
        with pytest.raises((ArtifactMismatch, StoreUnavailable)):
            await wary.fetch(artifact(url + NAME))
    assert kept_bytes(tmp_path) <= len(WEIGHTS)


async def test_a_compressed_answer_is_never_unpacked(tmp_path: Path) -> None:
    import gzip

    bomb = gzip.compress(b"\0" * 64 * 2**20)

    async def packed(writer: asyncio.StreamWriter) -> None:
        writer.write(says("content-encoding: gzip\r\n", length=len(bomb)) + bomb)
        await writer.drain()

    claimed = Artifact(uri=f"http://x/{DIGEST}.safetensors", size_bytes=len(bomb), sha256=DIGEST)
    async with raw_server(packed) as url, downloader([url], tmp_path) as wary:
        with pytest.raises(ArtifactMismatch, match=f"gave {len(bomb)} bytes"):
            await wary.fetch(claimed)


async def test_a_store_that_drips_is_left_at_the_deadline(tmp_path: Path) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(says(""))
        for byte in WEIGHTS:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with raw_server(drip) as url, downloader([url], tmp_path, deadline_s=0.5) as wary:
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"within 0.5 s"):
            await wary.fetch(artifact(url + NAME))
    assert time.monotonic() - began_s < 20


@pytest.mark.parametrize(
    "head", ["HTTP/1.1 200 OK\r\nx: " + "y" * 2**20, "\0" * 1000, "HTTP/9.9 200 OK\r\n\r\n"]
)
async def test_an_answer_that_is_no_http_is_a_store_that_is_not_there(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemas.client.download._PAUSES_S", (0.0,))

    async def garbage(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode())
        await writer.drain()

    async with raw_server(garbage) as url, downloader([url], tmp_path) as wary:
        with pytest.raises(StoreUnavailable):
            await wary.fetch(artifact(url + NAME))


async def test_an_artifact_with_any_one_byte_changed_is_never_accepted(tmp_path: Path) -> None:
    """Each byte of a whole model, through the client's own downloader, one changed bit at a time."""
    from aiohttp import web

    place = 0

    async def forged(request: web.Request, content: bytes) -> web.StreamResponse:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        return web.Response(body=bytes(changed))

    accepted = []
    async with serving(tmp_path / "store") as store, downloader([store.url], tmp_path / "cache") as wary:
        store.put(WEIGHTS)
        store.faults[DIGEST] = forged
        for place in range(len(WEIGHTS)):
            with contextlib.suppress(ArtifactMismatch):
                await wary.fetch(artifact(store.url + NAME))
                accepted.append(place)
        assert len(store.requests) == len(WEIGHTS)
    assert accepted == []
    assert not list((tmp_path / "cache").glob("*.safetensors"))


async def test_a_stores_password_reaches_the_store_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(WEIGHTS) + WEIGHTS)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    base = f"127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    caplog.set_level(logging.DEBUG)
    try:
        async with downloader([f"http://me:s3cret@{base}"], tmp_path) as fetching:
            assert await fetching.fetch(artifact(f"http://{base}{NAME}")) == WEIGHTS
    finally:
        server.close()
    assert base64.b64encode(b"me:s3cret") in heads[0]
    assert "HTTP Request" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_download_that_is_given_up_while_it_writes_writes_no_byte_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes cannot be called back, and the next try goes on behind what it wrote."""
    content = random.Random(1).randbytes(4_194_304)
    digest = hashlib.sha256(content).hexdigest()
    append, writing, written = Downloader._append, threading.Event(), threading.Event()

    def slowly(self: Downloader, artifact: Artifact, have: int, chunks: list[bytes]) -> None:
        if have == 0:
            append(self, artifact, have, chunks)
            return
        writing.set()
        time.sleep(0.2)
        append(self, artifact, have, chunks)
        written.set()

    async def first_part(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content))
        writer.write(content[:3_200_000])
        await writer.drain()
        await asyncio.sleep(60)

    monkeypatch.setattr(Downloader, "_append", slowly)
    async with raw_server(first_part) as store, downloader([store], tmp_path) as slow:
        one = Artifact(uri=f"{store}{digest}.safetensors", size_bytes=len(content), sha256=digest)
        fetching = asyncio.create_task(slow.fetch(one))
        assert await asyncio.to_thread(writing.wait, 10)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        assert await asyncio.to_thread(written.wait, 10)
        await asyncio.sleep(0.3)
    there = (tmp_path / f"{digest}.part").read_bytes()
    assert len(there) >= 2_097_152
    assert there == content[: len(there)]
