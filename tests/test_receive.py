"""Responses of a broker, received in place: whole whatever pieces they come in, over where one breaks off."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.fetch import FetchResponse_v4

from streams.transport.receive import LARGE_BYTES, Connection, Responses

SIZES = (0, 1, 40, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 3_000_000, 7, 1_000_000, 500_000, 12)


class Kept(Connection):
    """Keeps what it is handed, without a broker behind it."""

    def __init__(self, reader: asyncio.StreamReader, protocol: Responses) -> None:
        self._reader, self._protocol = reader, protocol
        self.came: list[bytes] = []

    def _handle_frame(self, resp: bytes | memoryview) -> None:
        self.came.append(bytes(resp))

    async def read(self) -> None:
        await self._read(lambda: self)


def response(number: int, size_bytes: int) -> bytes:
    return random.Random(number).randbytes(size_bytes)


async def received(sent: bytes, pieces: Sequence[int]) -> Kept:
    """What comes of these bytes, sent in pieces of these sizes over and over, once the sender has gone."""

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = 0
        while at < len(sent):
            for size_bytes in pieces:
                writer.write(sent[at : at + size_bytes])
                await writer.drain()
                at += size_bytes
                await asyncio.sleep(0)
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(send, "127.0.0.1", 0)
    try:
        reader = asyncio.StreamReader(limit=2**16, loop=loop)
        protocol = Responses(loop.create_future(), reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, *server.sockets[0].getsockname())
        kept = Kept(reader, protocol)
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.IncompleteReadError):
                await kept.read()
        transport.close()
    finally:
        server.close()
    return kept


@pytest.mark.parametrize("pieces", [(10_000_000,), (1, 3, 100_003), (65_540, 5), (2_000_000, 4)])
async def test_responses_are_the_same_whatever_pieces_they_come_in(pieces: Sequence[int]) -> None:
    whole = [response(number, size_bytes) for number, size_bytes in enumerate(SIZES)]
    kept = await received(b"".join(struct.pack(">i", len(each)) + each for each in whole), pieces)
    assert kept.came == whole


@pytest.mark.parametrize("left_out", [1, 1_000_000, 2_999_999, 3_000_000])
async def test_a_response_that_breaks_off_is_the_connections_end(left_out: int) -> None:
    whole = [response(1, 20), response(2, 3_000_000)]
    sent = b"".join(struct.pack(">i", len(each)) + each for each in whole)
    kept = await received(sent[:-left_out], (100_000,))
    assert kept.came == whole[:1]


def test_a_partitions_records_are_a_view_of_the_response_and_all_else_is_as_ever() -> None:
    records = response(3, 2 * LARGE_BYTES)
    parts = (0, [("flights", [(0, 0, 9, 9, [], records), (1, 3, 0, 0, [], b"few"), (2, 0, 1, 1, [], None)])])
    sent = memoryview(struct.pack(">i", 5) + FetchResponse_v4.SCHEMA.encode(parts))
    connection = object.__new__(Connection)
    header = SimpleNamespace(correlation_id=5)
    got: list[Any] = []
    asked: Any = SimpleNamespace(done=lambda: False, set_result=got.append)

    def parse(parts: Any) -> SimpleNamespace:
        parts.read(4)
        return header

    request: Any = SimpleNamespace(RESPONSE_TYPE=FetchResponse_v4, parse_response_header=parse)
    connection._requests = deque([(5, request, asked)])
    connection._handle_frame(sent)
    [(topic, partitions)] = got[0].topics
    assert topic == "flights"
    assert [each[:2] for each in partitions] == [(0, 0), (1, 3), (2, 0)]
    view = partitions[0][-1]
    assert isinstance(view, memoryview)
    assert view == records
    assert [each[-1] for each in partitions[1:]] == [b"few", None]
    assert not connection._requests
