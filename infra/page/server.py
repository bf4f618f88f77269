"""Serves the page: plain files, a section as JSON, and sections as they change by server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from infra.kafka.connection import Connection
from infra.page.access import add_headers, guard
from infra.page.follow import Follower
from infra.page.redrive import letter_at, redrive
from infra.page.view import SECTIONS, Section, View
from schemas.errors import InvalidConfiguration, TidemillError

_FILES = Path(__file__).parent / "static"
_LOOK_S = 0.5
# Time alone changes these: a rate falls to 0, a job's time left passes.
_AGAIN_S = {"road": 2.0, "jobs": 2.0}
_KEEP_ALIVE_S = 10.0
_MOST_LETTERS = 200


class PageServer:
    """One view, for any number of browsers."""

    def __init__(
        self,
        view: View,
        follower: Follower,
        connection: Connection,
        *,
        host: str,
        port: int,
        token: str | None = None,
        most_viewers: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._follower, self._connection = view, follower, connection
        self._host, self._port, self._token = host, port, token
        self._most_viewers, self._clock = most_viewers, clock
        self.viewers = 0
        """Browsers that are served live."""
        self.answered: Counter[tuple[str]] = Counter()
        """Requests by the status that they got."""
        self.redriven = 0
        """Letters that were pushed again."""
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._encoded: dict[Section, tuple[tuple[int, int], bytes]] = {}

    async def start(self) -> None:
        """Begin serving.

        Raises:
            InvalidConfiguration: the port is taken.
        """
        app = web.Application(middlewares=[guard(self._token)], client_max_size=256 * 1024)
        app.on_response_prepare.append(add_headers)
        app.on_response_prepare.append(self._count)
        app.router.add_get("/", self._index)
        app.router.add_static("/static", _FILES)
        app.router.add_get("/events", self._events)
        app.router.add_get("/health", self._health)
        app.router.add_get("/api/decision", self._decision)
        app.router.add_get("/api/lineage/{name}/{version:\\d+}", self._lineage)
        app.router.add_post("/api/redrive", self._redrive)
        app.router.add_get("/api/{section}", self._section)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self.stop()
            raise InvalidConfiguration(
                f"the page cannot listen on {self._host}:{self._port}: {error}; "
                "set page.host and page.port to an address that is free, or page.port to 0"
            ) from error

    async def stop(self) -> None:
        """Stop serving."""
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _count(self, _request: web.Request, response: web.StreamResponse) -> None:
        self.answered[(str(response.status),)] += 1

    async def _index(self, _request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_FILES / "index.html")

    async def _health(self, _request: web.Request) -> web.Response:
        return _json(self._state(), 200 if self._follower.is_connected else 503)

    async def _section(self, request: web.Request) -> web.Response:
        return web.Response(body=self._body(_section_of(request.match_info["section"])), **_AS_JSON)

    async def _decision(self, request: web.Request) -> web.Response:
        said = self._view.decisions.one(request.query.get("pipeline", ""), request.query.get("window", ""))
        return _json(said) if said is not None else _json({"error": "no such decision is known"}, 404)

    async def _lineage(self, request: web.Request) -> web.Response:
        name, version = request.match_info["name"], int(request.match_info["version"])
        said = self._view.lineage(name, version)
        return (
            _json(said)
            if said is not None
            else _json({"error": f"no {name} version {version} is known"}, 404)
        )

    async def _redrive(self, request: web.Request) -> web.Response:
        """Push letters again: `{"ids": […]}`, each answered for itself."""
        try:
            ids = msgspec.json.decode(await request.read(), type=dict[str, list[str]])["ids"]
        except (msgspec.DecodeError, KeyError):
            return _json({"error": 'say {"ids": ["pipeline/topic/partition/offset/row", …]}'}, 400)
        if len(ids) > _MOST_LETTERS:
            return _json({"error": f"at most {_MOST_LETTERS} letters at once"}, 400)
        answers, letters = [], []
        for letter_id in dict.fromkeys(ids):
            offset = self._view.letters.place(letter_id)
            try:
                if offset is None:
                    answers.append({"id": letter_id, "error": "no such letter is among the newest"})
                else:
                    letters.append(await letter_at(self._connection, offset))
            except TidemillError as error:
                answers.append({"id": letter_id, "error": str(error)})
        if letters:
            pushed = await redrive(self._connection, letters)
            self.redriven += sum("offset" in each for each in pushed)
            answers += pushed
        return _json({"letters": answers}, 200 if all("offset" in each for each in answers) else 409)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """A section whenever it has changed, at most twice a second."""
        section = _section_of(request.query.get("section", "road"))
        if self.viewers >= self._most_viewers:
            raise web.HTTPServiceUnavailable(
                text=f"{self.viewers} browsers look at this page; page.most_viewers allows no more",
                headers={"Retry-After": "10"},
            )
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        self.viewers += 1
        try:
            await response.prepare(request)
            await self._stream(response, section)
        except ConnectionResetError:
            pass  # he has gone
        finally:
            self.viewers -= 1
        return response

    async def _stream(self, response: web.StreamResponse, section: Section) -> None:
        sent: tuple[int, int] | None = None
        state: dict[str, Any] | None = None
        said_s = self._clock()
        while not self._closing.is_set():
            stamp, said = self._stamp(section), self._state()
            if stamp != sent:
                await response.write(b"event: section\ndata: " + self._body(section) + b"\n\n")
                sent, said_s = stamp, self._clock()
            if said != state or self._clock() - said_s > _KEEP_ALIVE_S:
                await response.write(b"event: state\ndata: " + msgspec.json.encode(said) + b"\n\n")
                state, said_s = said, self._clock()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def _stamp(self, section: Section) -> tuple[int, int]:
        again_s = _AGAIN_S.get(section)
        return self._view.revision[section], 0 if again_s is None else int(self._clock() / again_s)

    def _body(self, section: Section) -> bytes:
        """A section encoded, once for all who look at it."""
        stamp = self._stamp(section)
        known = self._encoded.get(section)
        if known is None or known[0] != stamp:
            known = self._encoded[section] = (stamp, msgspec.json.encode(self._view.as_json(section)))
        return known[1]

    def _state(self) -> dict[str, Any]:
        return {"connected": self._follower.is_connected, "caught_up": self._follower.caught_up.is_set()}


_AS_JSON: dict[str, Any] = {"content_type": "application/json", "charset": "utf-8"}


def _json(said: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(said), status=status, **_AS_JSON)


def _section_of(name: str) -> Section:
    for section in SECTIONS:
        if section == name:
            return section
    raise web.HTTPNotFound(text=f"no section {name!r}; there are {', '.join(SECTIONS)}")
