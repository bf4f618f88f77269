"""Large responses come into the memory that they stay in, and are not copied from buffer to buffer.

asyncio's stream reader adds what came from the socket to a buffer that grows, copies the whole out and moves
the rest; aiokafka then copies each partition's part out of that. Of a fetch of megabytes that was more of a
worker's time than the records' checksums. Here a large response is received where it is wanted, and a
partition's part is a view of it. Small responses go the way they went.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

import aiokafka.conn
import numpy as np
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol

# No text of the protocol is that long: what is longer and read as one is a partition's records.
LARGE_BYTES = 64 * 2**10


class Responses(AIOKafkaProtocol, asyncio.BufferedProtocol):
    """Gives the stream reader what comes, but for a large response that somebody waits for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room = memoryview(bytearray(LARGE_BYTES))
        self._left: memoryview | None = None
        self._is_whole: asyncio.Future[None] | None = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the next bytes belong."""
        return self._room if self._left is None else self._left

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come there."""
        if self._left is None:
            self.data_received(bytes(self._room[:nbytes]))
            return
        self._left = self._left[nbytes:]
        if not self._left and self._is_whole is not None and not self._is_whole.done():
            self._is_whole.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        super().connection_lost(exc)
        self._break_off(exc)

    def eof_received(self) -> bool | None:
        """See `connection_lost`."""
        self._break_off(None)
        return super().eof_received()

    def _break_off(self, why: Exception | None) -> None:
        if self._is_whole is not None and not self._is_whole.done():
            self._is_whole.set_exception(why or asyncio.IncompleteReadError(b"", None))

    async def large(self, reader: asyncio.StreamReader, size_bytes: int) -> memoryview:
        """The next bytes of the connection.

        Raises:
            IncompleteReadError, OSError: it ended before they had come.
        """
        # Not set to zero, and in large pages of memory where the system has some.
        whole = np.empty(size_bytes, dtype=np.uint8).data
        begun = await reader.read(size_bytes)  # all that the reader holds: none of it is behind these bytes
        if not begun:
            raise asyncio.IncompleteReadError(b"", size_bytes)
        whole[: len(begun)] = begun
        if len(begun) < size_bytes:
            self._left, self._is_whole = whole[len(begun) :], asyncio.get_running_loop().create_future()
            try:
                await self._is_whole
            finally:
                self._left = self._is_whole = None
        return whole


class _Parts:
    """Reads on in a response: a long part is a view of it, a short one bytes, as aiokafka's types expect."""

    def __init__(self, whole: memoryview) -> None:
        self._whole, self._at = whole, 0

    def read(self, size: int) -> bytes | memoryview:
        part = self._whole[self._at : self._at + size]
        self._at += len(part)
        return part if size >= LARGE_BYTES else bytes(part)


class Connection(AIOKafkaConnection):
    """A connection to a broker that takes large responses as they lie in memory."""

    @staticmethod
    async def _read(self_ref: Any) -> None:
        self = self_ref()
        if self is None:
            return
        reader, responses = self._reader, self._protocol
        del self  # a connection that nobody holds any more goes, and ends this with it
        while True:
            (size_bytes,) = struct.unpack(">i", await reader.readexactly(4))
            is_large = size_bytes >= LARGE_BYTES
            came = responses.large(reader, size_bytes) if is_large else reader.readexactly(size_bytes)
            response = await came
            self = self_ref()
            if self is None:
                return
            self._handle_frame(response)
            del self, response

    def _handle_frame(self, resp: bytes | memoryview) -> None:
        number, request, asked = self._requests[0]
        if isinstance(resp, memoryview) and number is not None:
            parts = _Parts(resp)
            if request.parse_response_header(parts).correlation_id == number:
                if not asked.done():
                    asked.set_result(request.RESPONSE_TYPE.decode(parts))
                self._last_action = time.monotonic()
                self._requests.popleft()
                return
        super()._handle_frame(bytes(resp))


def receive_in_place() -> None:
    """Let clients that this process makes from now on connect so. Harmless to repeat."""
    aiokafka.conn.AIOKafkaProtocol = Responses  # type: ignore[misc]
    aiokafka.conn.AIOKafkaConnection = Connection  # type: ignore[misc]
