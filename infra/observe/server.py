"""`/metrics`, `/live` and `/ready` of one process, over HTTP, from a thread of their own.

The thread only asks: what is answered is read on the process's event loop, so that it is one state of it. So
a loop that is stuck cannot seem well: `/live` is that very question, answered 503 by the thread if the loop
does not turn in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from infra.logging import logger
from infra.observe import metrics
from infra.observe.instruments import CONTENT_TYPE, Instruments
from infra.settings_model import Metrics
from schemas.errors import InvalidConfiguration

log = logger(__name__)
T = TypeVar("T")

_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a process does its work, and why not."""

    ready: bool
    reason: str = "ready"


@contextlib.asynccontextmanager
async def serve_metrics(
    instruments: Instruments,
    readiness: Callable[[], Readiness],
    *,
    options: Metrics,
    port: int | None,
    setting: str,
) -> AsyncIterator[None]:
    """Metrics and probes are served for the time of the block, if there is a port for them.

    Raises:
        InvalidConfiguration: the port is taken, or the host is not this machine's.
    """
    if port is None:
        yield
        return
    server = ObserveServer(instruments, readiness, options=options, port=port, setting=setting)
    await server.start()
    try:
        yield
    finally:
        await server.stop()


class Stuck(Exception):
    """The event loop does not turn."""


class ObserveServer:
    """Serves one process's metrics and its answers to probes.

    Args:
        readiness: asked on the event loop; quick, and without waiting.
        setting: name of the port's setting, for errors.
    """

    def __init__(
        self,
        instruments: Instruments,
        readiness: Callable[[], Readiness],
        *,
        options: Metrics,
        port: int,
        setting: str,
    ) -> None:
        self.instruments = instruments
        self._readiness = readiness
        self._options, self._port, self._setting = options, port, setting
        self._server: ThreadingHTTPServer | None = None
        instruments.read(metrics.READY, lambda: {(): float(readiness().ready)})

    async def start(self) -> str:
        """Begin to serve; gives the base address.

        Raises:
            InvalidConfiguration: the port is taken, or the host is not this machine's.
        """
        self._loop = asyncio.get_running_loop()
        host = self._options.host
        try:
            self._server = ThreadingHTTPServer((host, self._port), self._handler())
        except OSError as error:
            raise InvalidConfiguration(
                f"metrics cannot be served on {host}:{self._port}: {error.strerror or error}; set "
                f"metrics.host and {self._setting} to an address that is free, or {self._setting} to 0"
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        address = f"http://{host}:{self._server.server_address[1]}/"
        log.info("metrics, /live and /ready are served", address=address)
        return address

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.shutdown)
            server.server_close()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body; called on the server's thread."""
        path = path.partition("?")[0]
        try:
            match path:
                case "/metrics":
                    return HTTPStatus.OK, CONTENT_TYPE, self._on_loop(self.instruments.exposition)
                case "/live":
                    self._on_loop(lambda: None)
                    return HTTPStatus.OK, _PLAIN, b"live\n"
                case "/ready":
                    found = self._on_loop(self._readiness)
                    status = HTTPStatus.OK if found.ready else HTTPStatus.SERVICE_UNAVAILABLE
                    return status, _PLAIN, f"{found.reason}\n".encode()
                case _:
                    said = b"there are /metrics, /live and /ready\n"
                    return HTTPStatus.NOT_FOUND, _PLAIN, said
        except Stuck as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, _PLAIN, f"{error}\n".encode()

    def _on_loop(self, ask: Callable[[], T]) -> T:
        """What it says, on the event loop.

        Raises:
            Stuck: the loop did not turn in time, or is closed.
        """
        answer: Future[T] = Future()

        def say() -> None:
            try:
                answer.set_result(ask())
            except BaseException as error:
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(say)
            return answer.result(self._options.patience_ms / 1000)
        except TimeoutError as error:
            raise Stuck(f"the event loop has not turned for {self._options.patience_ms:,} ms") from error
        except RuntimeError as error:  # closed: the process is ending
            raise Stuck(str(error)) from error

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30  # seconds for a client that connects and says nothing

            def do_GET(self) -> None:
                try:
                    status, kind, body = server.answer(self.path)
                except Exception:
                    log.exception("metrics could not be read")
                    status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN, b"see the log\n"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """A probe every few seconds is no news."""

        return Handler
