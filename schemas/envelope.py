"""CloudEvents 1.0 on Kafka, binary content mode: how everything that Tidemill announces is wrapped.

Attributes travel as record headers (`ce_id`, `ce_type`, …), the data as the record's value. An
announcement's id is made from what it announces, so whoever announces it again announces the same id
and consumers drop the repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary
from cloudevents.core.formats.base import Format
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from .contract import Announcement, announcement_for, type_of
from .errors import Rejected

JSON = "application/json"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
CONFLUENT_AVRO = "application/vnd.confluent.avro"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

A = TypeVar("A", bound=Announcement)


class NotAnAnnouncement(Rejected):
    """The record is no CloudEvent of a type that the contracts declare, or its data breaks the contract."""


class _Verbatim(JSONFormat):
    """Data are bytes already (msgspec JSON or an Arrow stream): pass them through untouched."""

    def write_data(self, data: object, datacontenttype: str | None) -> bytes:  # noqa: ARG002
        if not isinstance(data, bytes):
            raise TypeError(f"an announcement's data must be bytes, not {type(data).__name__}")
        return data

    def read_data(self, body: bytes, datacontenttype: str | None) -> bytes:  # noqa: ARG002
        return body


_VERBATIM: Format = _Verbatim()


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """One CloudEvent, its data still encoded.

    `extensions` are lower-case names such as `ledgerversion`; `key` is the Kafka record's key.
    """

    id: str
    type: str
    source: str
    subject: str
    time_ms: int
    data: bytes
    key: str | None = None
    content_type: str = JSON
    data_schema: str | None = None
    extensions: dict[str, str] = field(default_factory=dict)

    def record(self) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
        """Key, value and headers of the Kafka record."""
        attributes: dict[str, object] = {
            "id": self.id,
            "type": self.type,
            "source": self.source,
            "subject": self.subject,
            "time": _EPOCH + self.time_ms * _MILLISECOND,
            "datacontenttype": self.content_type,
            "specversion": "1.0",
            **self.extensions,
        }
        if self.data_schema is not None:
            attributes["dataschema"] = self.data_schema
        message = to_binary(CloudEvent(attributes=attributes, data=self.data), _VERBATIM)
        key = None if self.key is None else self.key.encode()
        return key, message.value, list(message.headers.items())


def wrap(
    announcement: Announcement, *, source: str, time_ms: int, extensions: dict[str, str] | None = None
) -> Envelope:
    """Envelope of an announcement; id, subject and key are the announcement's own."""
    kind = type_of(type(announcement))
    return Envelope(
        id=announcement.event_id(),
        type=kind,
        source=source,
        subject=announcement.subject(),
        time_ms=time_ms,
        data=announcement.encoded(),
        key=announcement.key(),
        data_schema=f"urn:{kind.replace('.', ':')}",
        extensions=extensions or {},
    )


def open_record(
    key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]] | Sequence[tuple[str, bytes]]
) -> Envelope:
    """Read a Kafka record back into an envelope.

    Raises:
        NotAnAnnouncement: the record is no CloudEvent 1.0 in binary mode.
    """
    try:
        message = KafkaMessage(headers=dict(headers), key=key, value=value or b"")
        event: BaseCloudEvent = from_binary(message, _VERBATIM)
        attributes = event.get_attributes()
        time = event.get_time()
        time_ms = 0 if time is None else (time - _EPOCH) // _MILLISECOND
    except Exception as error:  # the binding raises whatever its parts raise
        raise NotAnAnnouncement(f"record is no CloudEvent in Kafka binary mode: {error}") from error
    known = {"id", "type", "source", "subject", "time", "datacontenttype", "dataschema", "specversion"}
    return Envelope(
        id=event.get_id(),
        type=event.get_type(),
        source=event.get_source(),
        subject=event.get_subject() or "",
        time_ms=time_ms,
        data=value or b"",
        key=None if key is None else key.decode("utf-8", "replace"),
        content_type=event.get_datacontenttype() or JSON,
        data_schema=event.get_dataschema(),
        extensions={k: str(v) for k, v in attributes.items() if k not in known and k != "partitionkey"},
    )


def unwrap(envelope: Envelope) -> Announcement:
    """The typed announcement in an envelope. Unknown fields are ignored: a newer producer may add some.

    Raises:
        NotAnAnnouncement: the type is unknown, or the data break the type's contract.
    """
    return unwrap_as(envelope, contract_of(envelope))


def contract_of(envelope: Envelope) -> type[Announcement]:
    """The announcement's type, by what the envelope says.

    Raises:
        NotAnAnnouncement: the type is unknown.
    """
    contract = announcement_for(envelope.type)
    if contract is None:
        raise NotAnAnnouncement(f"event type {envelope.type!r} is not declared in schemas; update the client")
    return contract


def unwrap_as(envelope: Envelope, contract: type[A]) -> A:
    """The announcement as the given type.

    Raises:
        NotAnAnnouncement: the data break the contract.
    """
    try:
        return msgspec.json.decode(envelope.data, type=contract)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotAnAnnouncement(
            f"event {envelope.id!r} breaks the contract of {envelope.type}: {error}"
        ) from error
