"""A request's body, within its bounds: what is too large is refused before it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from infra.door.intake import Intake

READ_WITHIN_S = 30.0


class Unread(Exception):
    """The body cannot be had: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Body:
    """What was read of it; `size_bytes` are counted as in flight until `hand_over`."""

    __slots__ = ("content", "intake", "size_bytes")

    def __init__(self, intake: Intake) -> None:
        self.intake, self.size_bytes, self.content = intake, 0, b""

    def grow(self, size_bytes: int) -> None:
        """So much more is in flight.

        Raises:
            Full: there is no room for it.
        """
        self.intake.enter(size_bytes)
        self.size_bytes += size_bytes

    def hand_over(self) -> int:
        """Its size, which somebody else gives back."""
        size, self.size_bytes = self.size_bytes, 0
        return size

    def drop(self) -> None:
        """Give its room back."""
        self.intake.leave(self.hand_over())


async def read(request: web.BaseRequest, intake: Intake, *, most_bytes: int) -> Body:
    """The whole body, decompressed. Its room is the caller's to give back.

    Raises:
        Unread: it is too large, broken off, too slow, or compressed wrongly.
        Full: there is no room for it now.
    """
    body = Body(intake)
    headers, length = request.headers, request.content_length
    try:
        if length is not None and "Content-Encoding" not in headers:
            if length > most_bytes:
                raise _too_large(most_bytes)
            body.grow(length)
            if "Expect" in headers:
                await go_on(request)
            if request.content.is_eof():
                body.content = request.content.read_nowait()
            else:
                async with in_time():
                    body.content = await request.content.read()
            return body
        parts = [part async for part in pieces(request, body, most_bytes=most_bytes)]
    except BaseException:
        body.drop()
        raise
    body.content = b"".join(parts)
    return body


async def pieces(request: web.BaseRequest, body: Body, *, most_bytes: int) -> AsyncIterator[bytes]:
    """The body in the pieces in which it arrives, each counted as in flight. Raises what `read` raises."""
    if (request.content_length or 0) > most_bytes:
        raise _too_large(most_bytes)
    await go_on(request)
    total = 0
    while True:
        async with in_time():
            piece = await request.content.readany()
        if not piece:
            return
        total += len(piece)
        if total > most_bytes:
            raise _too_large(most_bytes)
        body.grow(len(piece))
        yield piece


async def go_on(request: web.BaseRequest) -> None:
    """Tell a producer who asked first that the body is wanted."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # type: ignore[attr-defined]


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Reading ends within `READ_WITHIN_S`, and what breaks it off is said.

    Raises:
        Unread: see there.
    """
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            yield
    except TimeoutError:
        raise Unread(408, f"the body did not arrive within {READ_WITHIN_S:g} s") from None
    except (RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        raise Unread(400, f"the body cannot be read: {error}") from error


def _too_large(most_bytes: int) -> Unread:
    return Unread(413, f"the body is larger than the {most_bytes} bytes that are taken at a time: send less")
