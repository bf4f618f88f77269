"""A TCP proxy before each broker: connections can be slowed and reset, as a bad network would."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

_CHUNK_BYTES = 65_536
# SO_LINGER on, of 0 s: closing sends RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on a free port of the loopback interface and passes on to `target`, a port there.

    `delay_s` is waited before each chunk is passed on, in both directions.
    """

    def __init__(self) -> None:
        self.target = 0
        self.delay_s = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, sock=self._socket))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def reset(self) -> int:
        """Reset every connection; gives how many there were."""

        async def do() -> int:
            count = len(self._open)
            for writer in list(self._open):
                _reset(writer)
            return count

        return self._run(do())

    def close(self) -> None:
        """Reset all and listen no more."""
        self.reset()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the broker is dead: so is the connection
            _reset(writer)
            return
        self._open |= {writer, onward}
        passing = [
            asyncio.create_task(self._pass(reader, onward)),
            asyncio.create_task(self._pass(there, writer)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in passing:
                task.cancel()
            self._open -= {writer, onward}
            for each in (writer, onward):
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(chunk)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
