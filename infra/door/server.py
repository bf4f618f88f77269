"""The door's HTTP side: who may come in, what a path means, and an answer for each event.

    POST /v1/events/{stream}                       CloudEvents 1.0: binary, structured, batch; or plain JSON
    GET  /v1/events                                the streams
    POST /v3/clusters/{id}/topics/{topic}/records  REST Proxy v3: records, also streamed
    GET  /v3/clusters                              the one cluster there is
    GET  /live, /ready                             this process answers; the cluster is connected, too

A path is taken apart here and not by a router: at ten thousand requests a second that is a tenth of the work.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache

from aiohttp import web

from infra.door import answers
from infra.door import body as bodies
from infra.door.answers import Whole
from infra.door.body import Body, Unread
from infra.door.cloud_events import BATCH, STRUCTURED, Reader
from infra.door.intake import Full, Intake
from infra.door.lane import Answer, Held
from infra.door.rest_proxy import Asked, Cut, Sizes, record_of
from infra.door.stream import Record, Refusal, Stream, media_type
from infra.door.tokens import Tokens
from infra.logging import logger
from infra.loopback import is_loopback
from infra.settings_model import Door
from schemas.envelope import JSON

log = logger(__name__)

_OURS = 500
"""Statuses from here on are of what may be taken when it is sent again."""
_EVENTS = "/v1/events"
_CLUSTERS = "/v3/clusters"
_FAREWELL_S = 0.5
"""So long a producer that sends all the while may find out that the door closes, before it is shut."""


class Handler:
    """Answers requests.

    Args:
        streams: by name.
        cluster_id: what reports call the cluster.
    """

    def __init__(
        self, door: Door, intake: Intake, streams: Mapping[str, Stream], tokens: Tokens, *, cluster_id: str
    ) -> None:
        self._door, self._intake, self._streams, self._tokens = door, intake, streams, tokens
        self._cluster_id = cluster_id
        self._events = Reader(keep_attributes=door.keep_attributes)
        self._closing = False
        self.answered: Counter[tuple[str]] = Counter()
        """Requests by the status that they got."""
        self.events: Counter[tuple[str, str]] = Counter()
        """Events by topic and by what was answered: acknowledged, refused, unconfirmed."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request; never raises for what a producer sent."""
        try:
            response = await self._routed(request)
        except Full as full:
            response = self._say(429, f"{full.reason}; come again in {self._door.retry_after_s} s")
        except Unread as unread:
            response = self._say(unread.status, unread.reason)
        self.answered[(str(response.status),)] += 1
        if self._closing:
            response.force_close()
        if not request.content.is_eof():
            response.force_close()  # refused unread: the next request would stand behind the rest of this one
            if request.content.exception() is not None:
                request.content.feed_eof()
        return response

    async def farewell(self, connections: Callable[[], int]) -> None:
        """Tell producers that keep a connection, with their next answer, that this was the last on it."""
        self._closing = True
        until_s = time.monotonic() + _FAREWELL_S
        while connections() and time.monotonic() < until_s:  # noqa: ASYNC110  (aiohttp tells nobody)
            await asyncio.sleep(0.01)

    async def _routed(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0].rstrip("/")
        if path in ("/live", "/ready"):
            return self._health(path)
        if (problem := self._stranger(request)) is not None:
            return problem
        if path.startswith(f"{_EVENTS}/"):
            return await self._v1(request, path[len(_EVENTS) + 1 :])
        pieces = path[1:].split("/")
        if pieces[:2] + pieces[3:4] + pieces[5:] == ["v3", "clusters", "topics", "records"]:
            return await self._v3(request, pieces[4])
        return self._elsewhere(request.method, path)

    # ── who ─────────────────────────────────────────────────────────────────────────────────────────

    def _stranger(self, request: web.BaseRequest) -> Whole | None:
        """The response to somebody who may not come in."""
        if self._tokens.required:
            if self._tokens.admits(request.headers.get("Authorization")):
                return None
            return self._say(401, "say who you are: authorization: Bearer TOKEN, one of the door's tokens")
        # A page in a browser on this machine must not reach the door by a name that it made up.
        if _names_loopback(request.headers.get("Host", "localhost")):
            return None
        return self._say(
            403, "without tokens the door is open to this machine alone: ask for 127.0.0.1, or set door.token"
        )

    def _health(self, path: str) -> Whole:
        well = path == "/live" or self._intake.telegraph.connected()
        return self._answer(200, b'{"ok":true}') if well else self._say(503, "the cluster is away")

    def _stream(self, name: str) -> Stream | Whole:
        if (stream := self._streams.get(name)) is not None:
            return stream
        return self._say(404, f"there is no stream {name!r}; there are {', '.join(sorted(self._streams))}")

    def _elsewhere(self, method: str, path: str) -> Whole:
        """What is not sent to a stream."""
        if (method, path) == ("GET", _EVENTS):
            streams = [
                {"name": s.name, "purpose": s.topic.purpose, "key": s.topic.key, "most_bytes": s.most_bytes}
                for s in self._streams.values()
            ]
            return self._answer(200, answers.encode({"streams": streams}))
        if (method, path) == ("GET", _CLUSTERS):
            cluster = {"kind": "KafkaCluster", "cluster_id": self._cluster_id}
            return self._answer(200, answers.encode({"kind": "KafkaClusterList", "data": [cluster]}))
        if path in (_EVENTS, _CLUSTERS):
            return self._say(405, f"name the stream: POST {_EVENTS}/STREAM")
        return self._say(404, f"there is nothing at {path or '/'}; events go to {_EVENTS}/STREAM")

    # ── CloudEvents ─────────────────────────────────────────────────────────────────────────────────

    async def _v1(self, request: web.BaseRequest, name: str) -> Whole:
        if request.method != "POST":
            return self._say(405, f"events are sent by POST, not by {request.method}")
        stream = self._stream(name)
        if isinstance(stream, Whole):
            return stream
        body = await bodies.read(request, self._intake, most_bytes=self._door.request_bytes)
        try:
            said = request.headers.get("Content-Type")
            bare = None if said is None else said.partition(";")[0].strip().lower()
            if bare == BATCH:
                taken = self._events.batch(stream, body.content)
                if isinstance(taken, Refusal):
                    return self._say(taken.status, taken.error)
                said_of_each = self._counted(stream, await self._submit(stream, taken, body))
                return self._answer(*answers.of_many(name, said_of_each))
            one = (
                self._events.structured(stream, body.content)
                if bare == STRUCTURED
                else self._events.binary(stream, request.raw_headers, body.content)
            )
            if isinstance(one, Refusal):
                self.events[name, "refused"] += 1
                return self._say(one.status, one.error)
            (answer,) = self._counted(stream, await self._submit(stream, [one], body))
            return self._answer(*answers.of_one(name, answer))
        finally:
            body.drop()

    def _submit(
        self, stream: Stream, taken: list[Record | Refusal], body: Body
    ) -> asyncio.Future[list[Answer]]:
        if len(taken) > self._intake.most_records:
            raise Unread(
                413, f"{len(taken)} events at a time are too many: {self._intake.most_records} at most"
            )
        said = self._intake.submit(stream.name, taken, size_bytes=body.size_bytes)
        body.hand_over()
        return said

    # ── REST Proxy v3 ───────────────────────────────────────────────────────────────────────────────

    async def _v3(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        if request.method != "POST":
            return self._say(405, f"records are sent by POST, not by {request.method}")
        stream = self._stream(name)
        if isinstance(stream, Whole):
            return stream
        said = request.headers.get("Content-Type")
        if said is None or media_type(said) != JSON:
            return self._say(415, f"records are sent as {JSON}, not as {said or 'nothing named'}")
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            return await self._streamed(request, stream)
        body = await bodies.read(request, self._intake, most_bytes=self._door.request_bytes)
        try:
            taken, sizes = self._cut(stream, Cut(most_bytes=len(body.content)), body.content, ended=True)
            if not taken:
                return self._say(400, "the body holds no record")
            reports = self._reports(stream, await self._submit(stream, taken, body), sizes)
            return self._answer(200, reports)
        finally:
            body.drop()

    async def _streamed(self, request: web.BaseRequest, stream: Stream) -> web.StreamResponse:
        """Reports go out, in order, while records still come in."""
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.enable_chunked_encoding()
        await response.prepare(request)
        cut = Cut(most_bytes=stream.most_bytes * 2)  # as base64 and with its key a record is larger
        body = Body(self._intake)
        last: asyncio.Task[None] | None = None
        try:
            async for piece in _with_an_end(request, body):
                taken, sizes = self._cut(stream, cut, piece or b"", ended=piece is None)
                # One piece may be on its way while the next is read: slow answers slow the producer down.
                if last is not None:
                    await last
                    last = None
                if taken:
                    said = self._submit(stream, taken, body)
                    last = asyncio.create_task(self._write(response, stream, said, sizes))
        except (Full, Unread) as problem:
            status = problem.status if isinstance(problem, Unread) else 429
            why = Refusal(status, problem.reason)
            if last is not None:
                await last
            await response.write(answers.report(self._cluster_id, stream.name, why, None))
            response.force_close()
            return response
        finally:
            body.drop()
        if last is not None:
            await last
        return response

    async def _write(
        self,
        response: web.StreamResponse,
        stream: Stream,
        said: asyncio.Future[list[Answer]],
        sizes: list[Sizes | None],
    ) -> None:
        await response.write(self._reports(stream, await said, sizes))

    def _cut(
        self, stream: Stream, cut: Cut, piece: bytes, *, ended: bool
    ) -> tuple[list[Record | Refusal], list[Sizes | None]]:
        taken: list[Record | Refusal] = []
        sizes: list[Sizes | None] = []
        for asked in cut.feed(piece, ended=ended):
            one, size = record_of(stream, asked) if isinstance(asked, Asked) else (asked, None)
            taken.append(one)
            sizes.append(size)
        return taken, sizes

    def _counted(self, stream: Stream, said: list[Answer]) -> list[Answer]:
        name, events = stream.name, self.events
        held = 0
        for answer in said:
            if isinstance(answer, Held):
                held += 1
            else:
                events[name, "unconfirmed" if answer.status >= _OURS else "refused"] += 1
        if held:
            events[name, "acknowledged"] += held
        return said

    def _reports(self, stream: Stream, said: list[Answer], sizes: list[Sizes | None]) -> bytes:
        self._counted(stream, said)
        return b"".join(
            answers.report(self._cluster_id, stream.name, answer, size)
            for answer, size in zip(said, sizes, strict=True)
        )

    def _say(self, status: int, reason: str) -> Whole:
        return self._answer(status, answers.refused(reason))

    def _answer(self, status: int, body: bytes) -> Whole:
        return answers.respond(status, body, retry_after_s=self._door.retry_after_s)


async def _with_an_end(request: web.BaseRequest, body: Body) -> AsyncIterator[bytes | None]:
    """The body's pieces, and then None. A stream may be as long as it likes: it is held piece by piece."""
    async for piece in bodies.pieces(request, body, most_bytes=sys.maxsize):
        yield piece
    yield None


@lru_cache(maxsize=64)
def _names_loopback(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    return is_loopback(name if colon and port.isdigit() else host)
