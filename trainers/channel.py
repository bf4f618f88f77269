"""Length-delimited JSON over a stream socket: how the trainer, its standby and a job's process talk."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import TypeVar

import msgspec

_HEAD = struct.Struct(">I")
LIMIT_BYTES = 64 * 2**20
YIELD = signal.SIGUSR1
"""Asks a job's process to keep its state and end. Before it has a handler it ends: it has no state yet."""

T = TypeVar("T")


def packed(message: msgspec.Struct) -> bytes:
    """A message as it travels.

    Raises:
        ValueError: it is larger than anybody reads.
    """
    data = msgspec.json.encode(message)
    if len(data) > LIMIT_BYTES:
        raise ValueError(f"a {type(message).__name__} of {len(data)} bytes; at most {LIMIT_BYTES} travel")
    return _HEAD.pack(len(data)) + data


@cache
def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """What reads messages of a kind.

    Looking through the types of an assignment takes 13 ms of the processor: who asks for its decoder before a
    fork spares every fork that.
    """
    return msgspec.json.Decoder(kind)


def receive(channel: socket.socket, kind: type[T]) -> T | None:
    """The next message of a blocking socket; None where the other side has closed it."""
    head = _exactly(channel, _HEAD.size)
    data = None if head is None else _exactly(channel, _HEAD.unpack(head)[0])
    return None if data is None else decoder(kind).decode(data)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 2**20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def unpacked(content: bytes, kind: type[T]) -> Iterator[tuple[T, int]]:
    """Messages of what was appended to a file, each with where it ends; what is not all there yet is left.

    Raises:
        msgspec.DecodeError: that is none.
    """
    at = 0
    while len(content) - at >= _HEAD.size:
        (size,) = _HEAD.unpack_from(content, at)
        end = at + _HEAD.size + size
        if end > len(content):
            return
        yield decoder(kind).decode(content[at + _HEAD.size : end]), end
        at = end


async def messages(reader: asyncio.StreamReader, kind: type[T]) -> AsyncIterator[T]:
    """Messages until the other side closes, or sends what is none: nothing after that is sure."""
    try:
        while True:
            (size,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            if size > LIMIT_BYTES:
                return
            yield decoder(kind).decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
        return
