"""CloudEvents 1.0 over HTTP: the binary, the structured and the batch form, each event on its own.

The attributes travel on as Kafka's binary mode has it (`ce_id`, `ce_source`, …), so that a dead letter names
the event that it was. A body of plain JSON without any attribute is an event, too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import msgspec

from infra.door.stream import BAD_REQUEST, UNPROCESSABLE, Record, Refusal, Stream, media_type
from infra.kafka.batches import Header
from schemas.envelope import JSON
from schemas.topics import CONTENT_TYPE_HEADER

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
VERSION = b"1.0"
REQUIRED = ("id", "source", "type")

Taken = Record | Refusal
_NOT_A_HEADER = ("data", "data_base64", "datacontenttype")
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_JSON_HEADER = (CONTENT_TYPE_HEADER, JSON.encode())


class Reader:
    """Reads CloudEvents; `keep_attributes` says whether they travel on as record headers."""

    def __init__(self, *, keep_attributes: bool) -> None:
        self._keep = keep_attributes

    def binary(self, stream: Stream, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Taken:
        """One event: its attributes in `ce-` headers of the request, its data the body."""
        attributes: dict[str, bytes] = {}
        content_type: str | None = None
        for name, value in headers:
            if len(name) > 3 and name[2:3] == b"-" and name[:3].lower() == b"ce-":
                attributes[_attribute(name)] = unquote_to_bytes(value) if b"%" in value else value
            elif len(name) == 12 and name.lower() == b"content-type":
                content_type = value.decode("latin-1")
        if content_type is None:
            return Refusal(415, f"say what the body is: content-type {JSON}, {STRUCTURED} or {BATCH}")
        kind = media_type(content_type)
        if not attributes:
            return stream.take(body, content_type=kind)
        if (refusal := _missing(attributes)) is not None:
            return refusal
        return self._record(stream, attributes, body, kind)

    def structured(self, stream: Stream, body: bytes | msgspec.Raw) -> Taken:
        """One event in the JSON event format: attributes and data in one object."""
        try:
            members = _RAW_OBJECT.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return Refusal(BAD_REQUEST, f"the event is no JSON object of CloudEvents: {error}")
        attributes: dict[str, bytes] = {}
        for name, raw in members.items():
            if name not in ("data", "data_base64"):
                value = bytes(raw)
                if value == b"null":
                    continue  # as good as absent
                if value[:1] == b'"' and b"\\" not in value:
                    attributes[name] = value[1:-1]
                    continue
                try:
                    attributes[name] = _TEXT.decode(value).encode() if value[:1] == b'"' else value
                except (msgspec.DecodeError, UnicodeError) as error:
                    return Refusal(BAD_REQUEST, f"the attribute {name!r} is no text: {error}")
        if (refusal := _missing(attributes)) is not None:
            return refusal
        said = attributes.get("datacontenttype")
        kind = JSON if said is None else media_type(said.decode("utf-8", "replace"))
        data = _data_of(members, kind)
        return data if isinstance(data, Refusal) else self._record(stream, attributes, data, kind)

    def batch(self, stream: Stream, body: bytes) -> list[Taken] | Refusal:
        """Many events in the JSON batch format, each answered for itself."""
        try:
            events = _RAW_LIST.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return Refusal(BAD_REQUEST, f"the batch is no JSON array: {error}")
        read = self.structured
        return [read(stream, event) for event in events]

    def _record(self, stream: Stream, attributes: dict[str, bytes], data: bytes, kind: str) -> Taken:
        key = attributes.pop("partitionkey", None)
        headers: list[Header] = []
        if self._keep:
            headers = [(_header(n), v) for n, v in attributes.items() if n not in _NOT_A_HEADER]
            headers.append(_JSON_HEADER if kind == JSON else (CONTENT_TYPE_HEADER, kind.encode()))
        return stream.take(data, content_type=kind, headers=headers, key=key)


@lru_cache(maxsize=1024)
def _attribute(header: bytes) -> str:
    return header[3:].decode("latin-1").lower()


@lru_cache(maxsize=1024)
def _header(attribute: str) -> str:
    return f"ce_{attribute}"


def _missing(attributes: dict[str, bytes]) -> Refusal | None:
    """What keeps the attributes from being a CloudEvent's."""
    if (said := attributes.get("specversion")) != VERSION:
        what = (
            "names no specversion" if said is None else f"has specversion {said.decode('utf-8', 'replace')}"
        )
        return Refusal(BAD_REQUEST, f"the event {what}; CloudEvents 1.0 is spoken here")
    for name in REQUIRED:
        if not attributes.get(name):
            return Refusal(BAD_REQUEST, f"the event has no {name}; CloudEvents 1.0 requires {_ALL}")
    return None


_ALL = ", ".join(("specversion", *REQUIRED))


def _data_of(members: dict[str, msgspec.Raw], kind: str) -> bytes | Refusal:
    """The event's own bytes out of its envelope, untouched."""
    if (data := members.get("data")) is not None:
        if "data_base64" in members:
            return Refusal(BAD_REQUEST, "the event has data and data_base64; CloudEvents 1.0 allows one")
        if kind == JSON:
            return bytes(data)
        return Refusal(UNPROCESSABLE, f"data of {kind} are no JSON: send them in data_base64")
    if (encoded := members.get("data_base64")) is None:
        return Refusal(UNPROCESSABLE, "the event has neither data nor data_base64")
    try:
        return base64.b64decode(_TEXT.decode(encoded), validate=True)
    except (msgspec.DecodeError, UnicodeError, binascii.Error, ValueError) as error:
        return Refusal(BAD_REQUEST, f"data_base64 is no base64: {error}")
