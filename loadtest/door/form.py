"""Requests to the door, each form of them, and what its answers say. Event number n is made of n alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from loadtest.ingest.readings import FIRST_MS, TOPIC

SINGLE = ("plain", "binary", "structured")
MANY = ("batch", "records")
FORMS = (*SINGLE, *MANY)
"""Plain JSON, CloudEvents' three forms, and REST Proxy v3's records."""

_SOURCES = 32
_ID_AT = len(b'{"id":"')
_OK = 200


class Acknowledged(NamedTuple):
    """One event that the door says the cluster has, and where."""

    number: int
    partition: int
    offset: int


class _Said(msgspec.Struct):
    """What an answer says of one event: by the door's own names, or by REST Proxy's."""

    status: int = _OK
    error_code: int = _OK
    partition: int = -1
    partition_id: int = -1
    offset: int = -1


class _Events(msgspec.Struct):
    events: list[_Said]


_one = msgspec.json.Decoder(_Said)
_many = msgspec.json.Decoder(_Events)


def event(number: int) -> bytes:
    """A reading of about 130 bytes."""
    return b'{"id":"%d","time":%d,"source":"sensor-%05d","kind":"temperature","value":%d.%d,"battery":%d}' % (
        number,
        FIRST_MS + number,
        number % _SOURCES,
        number % 90,
        number % 10,
        number % 101,
    )


def number_of(value: bytes) -> int:
    """The number of an event that lies on the topic."""
    return int(value[_ID_AT : value.index(b'"', _ID_AT)])


def _binary(numbers: Sequence[int]) -> tuple[bytes, bytes]:
    head = (
        b"ce-specversion: 1.0\r\nce-id: %d\r\nce-source: /bench/door\r\nce-type: reading.taken\r\n"
        b"content-type: application/json\r\n" % numbers[0]
    )
    return head, event(numbers[0])


def _structured(number: int) -> bytes:
    return b'{"specversion":"1.0","id":"%d","source":"/bench/door","type":"reading.taken","data":%b}' % (
        number,
        event(number),
    )


def _batch(numbers: Sequence[int]) -> tuple[bytes, bytes]:
    return (
        b"content-type: application/cloudevents-batch+json\r\n",
        b"[" + b",".join(map(_structured, numbers)) + b"]",
    )


def _records(numbers: Sequence[int]) -> tuple[bytes, bytes]:
    lines = [b'{"value":{"type":"JSON","data":%b}}' % event(number) for number in numbers]
    return b"content-type: application/json\r\n", b"\n".join(lines)


_WRITE: dict[str, Callable[[Sequence[int]], tuple[bytes, bytes]]] = {
    "plain": lambda numbers: (b"content-type: application/json\r\n", event(numbers[0])),
    "binary": _binary,
    "structured": lambda numbers: (
        b"content-type: application/cloudevents+json\r\n",
        _structured(numbers[0]),
    ),
    "batch": _batch,
    "records": _records,
}


def request(form: str, numbers: Sequence[int]) -> bytes:
    """A whole HTTP request with these events; one of a form that takes one."""
    head, body = _WRITE[form](numbers)
    path = f"/v3/clusters/any/topics/{TOPIC}/records" if form == "records" else f"/v1/events/{TOPIC}"
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\n%bcontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        head,
        len(body),
        body,
    )


def read(form: str, status: int, body: bytes, numbers: Sequence[int]) -> list[Acknowledged | int]:
    """What became of each event, in their order: where it lies, or the status that refuses it.

    Raises:
        ValueError: the answer is none to these events.
    """
    if form in SINGLE:
        said = [_one.decode(body)] if status == _OK else [_Said(status)]
    elif form == "batch":
        said = _many.decode(body).events if b'"events"' in body[:200] else [_Said(status)] * len(numbers)
    else:
        said = _one.decode_lines(body) if status == _OK else [_Said(status)] * len(numbers)
    if len(said) != len(numbers):
        raise ValueError(f"{len(numbers)} events were sent and {len(said)} answered: {body[:200]!r}")
    return [
        Acknowledged(number, max(one.partition, one.partition_id), one.offset)
        if one.status == one.error_code == _OK
        else max(one.status, one.error_code)
        for number, one in zip(numbers, said, strict=True)
    ]
