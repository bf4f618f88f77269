"""What producers are told, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from infra.door.lane import Answer, Held
from infra.door.rest_proxy import Sizes

encode = msgspec.json.Encoder().encode

_OK, _MULTI = 200, 207
_COME_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def respond(status: int, body: bytes, *, retry_after_s: int) -> web.Response:
    """The response; whoever may come again is told when."""
    headers = {"Content-Type": "application/json"}
    if status in _COME_AGAIN:
        headers["Retry-After"] = str(retry_after_s)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="tidemill"'
    return web.Response(status=status, body=body, headers=headers)


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
