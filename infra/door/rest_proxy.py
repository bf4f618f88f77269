"""The records form of Confluent's REST Proxy, API v3: JSON objects one after another, each a record.

Source: Confluent REST Proxy API reference, "Produce Records" (v3). A record's value is
`{"type": "JSON", "data": …}`, BINARY (base64) or STRING; key, headers and partition_id are the producer's,
if given. The record's time is the cluster's: raw topics are stamped when they are appended.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec

from infra.door.stream import BAD_REQUEST, UNPROCESSABLE, Record, Refusal, Stream, media_type
from infra.kafka.batches import Header
from schemas.envelope import JSON
from schemas.topics import CONTENT_TYPE_HEADER

_ENDS_AT = re.compile(r"trailing characters \(byte (\d+)\)")
"""msgspec counts from one here: the value and the blanks behind it have one byte less."""
_BYTE = re.compile(r"\(byte (\d+)\)")
_CUT_SHORT = "Input data was truncated"


class Part(msgspec.Struct, frozen=True, gc=False):
    """A key or a value."""

    data: msgspec.Raw = msgspec.Raw()
    type: str = "JSON"


class NamedValue(msgspec.Struct, frozen=True, gc=False):
    """A header; its value is base64."""

    name: str
    value: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """One record as a producer asks for it."""

    value: Part | None = None
    key: Part | None = None
    headers: list[NamedValue] = []
    partition_id: Annotated[int, msgspec.Meta(ge=0)] | None = None
    timestamp: str | None = None


class Sizes(msgspec.Struct, frozen=True):
    """What a report says of a record that was taken."""

    key_type: str
    key_bytes: int
    value_type: str
    value_bytes: int


_ASKED = msgspec.json.Decoder(Asked)
_TEXT = msgspec.json.Decoder(str)


class Cut:
    """Cuts a body into its records, piece by piece as it arrives."""

    def __init__(self, *, most_bytes: int) -> None:
        self._most = most_bytes
        self._left = b""
        self._skipping = False

    def feed(self, piece: bytes, *, ended: bool) -> Iterator[Asked | Refusal]:
        """Records that are whole by now. After something that is no JSON, the next line is looked at again.

        Args:
            ended: nothing follows.
        """
        rest = memoryview(self._left + piece)
        while rest:
            if self._skipping:
                rest = self._behind_the_line(rest)
                continue
            if not (start := _blank(rest)) < len(rest):
                rest = rest[:0]
                break
            rest = rest[start:]
            try:
                asked, used = _first_of(rest)
            except msgspec.DecodeError as error:
                if not ended and len(rest) <= self._most and _may_go_on(str(error), len(rest)):
                    break
                yield Refusal(BAD_REQUEST, f"the record is no JSON: {error}")
                self._skipping = True
                continue
            yield asked
            rest = rest[used:]
        self._left = bytes(rest)

    def _behind_the_line(self, text: memoryview) -> memoryview:
        """What follows the line that cannot be read, whose end may not have come yet."""
        at = bytes(text).find(b"\n")
        self._skipping = at < 0
        return text[len(text) if at < 0 else at + 1 :]


def _may_go_on(problem: str, size_bytes: int) -> bool:
    """Whether a text that is no JSON so far may become some: it ends too early, or within a number."""
    at = _BYTE.search(problem)
    return problem == _CUT_SHORT or (at is not None and int(at[1]) >= size_bytes)


def _blank(text: memoryview) -> int:
    """How many bytes of white space it begins with."""
    for at, byte in enumerate(text):
        if byte not in b" \t\r\n":
            return at
    return len(text)


def _first_of(text: memoryview) -> tuple[Asked | Refusal, int]:
    """The first JSON value of a text, and how many bytes it has.

    Raises:
        msgspec.DecodeError: it is cut short, or no JSON.
    """
    used = len(text)
    try:
        return _ASKED.decode(text), used
    except msgspec.ValidationError as error:
        # Told at the first wrong member: where the value ends is not known yet.
        used = _end_of(text)
        return Refusal(UNPROCESSABLE, f"the record is none of the records form: {error}"), used
    except msgspec.DecodeError as error:
        if (found := _ENDS_AT.search(str(error))) is None:
            raise
        used = int(found[1]) - 1
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    try:
        return _ASKED.decode(text[:used]), used
    except msgspec.ValidationError as error:
        return Refusal(UNPROCESSABLE, f"the record is none of the records form: {error}"), used


def _end_of(text: memoryview) -> int:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if (found := _ENDS_AT.search(str(error))) is None:
            raise
        return int(found[1]) - 1
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    return len(text)


def record_of(stream: Stream, asked: Asked) -> tuple[Record | Refusal, Sizes]:
    """The record that was asked for, or why it can be none, and what a report says of it."""
    key = None if asked.key is None else _bytes_of(asked.key, "key")
    value = (
        Refusal(UNPROCESSABLE, "the record has no value")
        if asked.value is None
        else _bytes_of(asked.value, "value")
    )
    sizes = Sizes(
        asked.key.type if asked.key else "",
        len(key) if isinstance(key, bytes) else 0,
        asked.value.type if asked.value else "",
        len(value) if isinstance(value, bytes) else 0,
    )
    if isinstance(key, Refusal):
        return key, sizes
    if isinstance(value, Refusal):
        return value, sizes
    headers: list[Header] = []
    for header in asked.headers:
        try:
            content = base64.b64decode(header.value or "", validate=True)
        except (binascii.Error, ValueError) as error:
            return Refusal(BAD_REQUEST, f"the header {header.name!r} is no base64: {error}"), sizes
        headers.append((header.name, content))
    said = next((content for name, content in headers if name == CONTENT_TYPE_HEADER), None)
    kind = JSON if said is None else media_type(said.decode("utf-8", "replace"))
    taken = stream.take(value, content_type=kind, headers=headers, key=key, partition=asked.partition_id)
    return taken, sizes


def _bytes_of(part: Part, what: str) -> bytes | Refusal:
    raw = bytes(part.data)
    try:
        match part.type.upper():
            case "JSON":
                return raw
            case "STRING":
                return _TEXT.decode(raw).encode()
            case "BINARY":
                return base64.b64decode(_TEXT.decode(raw), validate=True)
            case other:
                return Refusal(
                    UNPROCESSABLE,
                    f"a {what} of type {other} is not taken: send JSON, STRING, or BINARY (Avro in "
                    "Confluent's framing, with its content-type header)",
                )
    except (msgspec.DecodeError, UnicodeError, binascii.Error, ValueError) as error:
        return Refusal(BAD_REQUEST, f"the {what} is no {part.type.upper()}: {error}")
