"""What producers are told, as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from infra.door.lane import Answer, Held
from infra.door.rest_proxy import Sizes

encode = msgspec.json.Encoder().encode

_OK, _MULTI = 200, 207
_COME_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Whole(web.StreamResponse):
    """A response that goes out at once, its head mostly the same bytes every time.

    What aiohttp does to build a head of parts takes longer than all else that an event needs.
    """

    def __init__(self, status: int, head: bytes, body: bytes) -> None:
        super().__init__(status=status)
        self._head, self._content = head, body
        self._lives = True
        self._request: web.BaseRequest | None = None

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on the connection."""
        return self._lives

    def force_close(self) -> None:
        """Have the connection end with this."""
        self._lives = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Nothing is sent before the end."""
        self._request = request
        self._lives = self._lives and request.keep_alive
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it."""
        request, body = self._request, self._content
        assert request is not None
        assert not data
        connection = b""
        if not self._lives:
            connection = b"Connection: close\r\n"
        elif request.version < (1, 1):
            connection = b"Connection: keep-alive\r\n"
        whole = b"%b%b%bContent-Length: %d\r\n\r\n%b" % (
            self._head,
            _date(int(time.time())),
            connection,
            len(body),
            b"" if request.method == "HEAD" else body,
        )
        await request.writer.write(whole)  # type: ignore[attr-defined]  (a writer of the server's)


def respond(status: int, body: bytes, *, retry_after_s: int) -> Whole:
    """The response; whoever may come again is told when."""
    return Whole(status, _head(status, retry_after_s), body)


@lru_cache(maxsize=64)
def _head(status: int, retry_after_s: int) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
    if status in _COME_AGAIN:
        lines.append(f"Retry-After: {retry_after_s}")
    if status == HTTPStatus.UNAUTHORIZED:
        lines.append('WWW-Authenticate: Bearer realm="tidemill"')
    return "".join(f"{line}\r\n" for line in lines).encode()


@lru_cache(maxsize=2)
def _date(now_s: int) -> bytes:
    return f"Date: {formatdate(now_s, usegmt=True)}\r\n".encode()


def refused(reason: str) -> bytes:
    """One reason."""
    return encode({"error": reason})


def of_one(topic: str, answer: Answer) -> tuple[int, bytes]:
    """Status and body for a single event."""
    if isinstance(answer, Held):
        return _OK, b'{"topic":"%b","partition":%d,"offset":%d}' % (topic.encode(), answer[0], answer[1])
    return answer.status, refused(answer.error)


def of_many(topic: str, answers: Sequence[Answer]) -> tuple[int, bytes]:
    """Status and body for a batch, each event answered for itself, in its order.

    200 if all were taken, 207 if some were; if none was, the status that all share, or 207.
    """
    accepted = 0
    lines: list[bytes] = []
    statuses: set[int] = set()
    for answer in answers:
        if isinstance(answer, Held):
            accepted += 1
            lines.append(b'{"status":200,"partition":%d,"offset":%d}' % (answer[0], answer[1]))
        else:
            statuses.add(answer.status)
            lines.append(encode({"status": answer.status, "error": answer.error}))
    if accepted:
        statuses.add(_OK)
    status = _OK if not answers else statuses.pop() if len(statuses) == 1 else _MULTI
    head = b'{"topic":"%b","accepted":%d,"refused":%d,"events":[' % (
        topic.encode(),
        accepted,
        len(answers) - accepted,
    )
    return status, head + b",".join(lines) + b"]}"


def report(cluster_id: str, topic: str, answer: Answer, sizes: Sizes | None) -> bytes:
    """One delivery report of REST Proxy v3."""
    if not isinstance(answer, Held):
        return encode({"error_code": answer.status, "message": answer.error}) + b"\n"
    said: dict[str, Any] = {
        "error_code": _OK,
        "cluster_id": cluster_id,
        "topic_name": topic,
        "partition_id": answer.partition,
        "offset": answer.offset,
    }
    if answer.stamped_ms >= 0:
        stamped = datetime.fromtimestamp(answer.stamped_ms / 1000, UTC)
        said["timestamp"] = stamped.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if sizes is not None:
        if sizes.key_type:
            said["key"] = {"type": sizes.key_type, "size": sizes.key_bytes}
        said["value"] = {"type": sizes.value_type, "size": sizes.value_bytes}
    return encode(said) + b"\n"
