"""One raw topic behind the door: an event that breaks its contract is refused here, with the reason.

What is taken goes to Kafka byte for byte as it came, under the key and so on the partition that
`tidemill push` gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from infra.kafka.batches import Header
from schemas.envelope import ARROW_STREAM, CONFLUENT_AVRO, JSON
from schemas.producer.keys import KeyReader
from schemas.topics import CONTENT_TYPE_HEADER, Topic

KAFKA_DEFAULT_BYTES = 1_048_588
"""Kafka's own `max.message.bytes`, for a topic that declares none."""
FRAMING_BYTES = 256
"""Allowed for a batch's and a record's own framing in `max.message.bytes`."""
_OPAQUE = (ARROW_STREAM, CONFLUENT_AVRO)
_NONE: list[Header] = []
"""No headers: one list for all, since nobody changes a record's."""

BAD_REQUEST, TOO_LARGE, UNSUPPORTED, UNPROCESSABLE = 400, 413, 415, 422


class Record(NamedTuple):
    """What goes to Kafka; `partition` is None where the key decides, and the key where nothing does."""

    key: bytes | None
    value: bytes
    headers: list[Header] = _NONE
    partition: int | None = None

    def size_bytes(self) -> int:
        """About what it takes in a batch."""
        size = len(self.value) + len(self.key or b"")
        for name, value in self.headers:
            size += len(name) + len(value)
        return size


class Refusal(NamedTuple):
    """Why an event was not taken, in HTTP's terms: 4xx it never will be, 5xx it may be later."""

    status: int
    error: str


class Stream:
    """Makes records of one topic's events.

    Args:
        topic: a raw one.
        most_bytes: of one event; less where the topic itself takes less.
    """

    def __init__(self, topic: Topic, *, most_bytes: int) -> None:
        self.topic, self.name = topic, topic.name
        takes = int(topic.settings.get("max.message.bytes", KAFKA_DEFAULT_BYTES))
        self.most_bytes = min(most_bytes, takes - FRAMING_BYTES)
        (contract,) = topic.contracts
        self._contract = msgspec.json.Decoder(contract)
        self._key_of = _key_of(contract, topic.key)

    def take(
        self,
        value: bytes,
        *,
        content_type: str = JSON,
        headers: list[Header] = _NONE,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> Record | Refusal:
        """The record of one event, or why it can be none.

        JSON is held to the contract. Arrow and Avro go as they are: their rows are judged by the worker.

        Args:
            content_type: of the value; a record that is not JSON says its own in `headers`.
            key: the producer's own; None: the event's, from its topic's key field.
            partition: the producer's own choice.
        """
        if len(value) > self.most_bytes:
            return Refusal(
                TOO_LARGE, f"the event has {len(value)} bytes; {self.name} takes at most {self.most_bytes}"
            )
        if content_type == JSON:
            event = self._judge(value)
            if isinstance(event, Refusal):
                return event
            key = self._key_of(event, value) if key is None else key
        elif content_type not in _OPAQUE:
            return Refusal(
                UNSUPPORTED,
                f"an event of {content_type} is not taken; send {JSON}, or whole records of "
                f"{' or '.join(_OPAQUE)}",
            )
        elif not any(name == CONTENT_TYPE_HEADER for name, _ in headers):
            headers = [*headers, (CONTENT_TYPE_HEADER, content_type.encode())]
        record = Record(key, value, headers, partition)
        if headers and record.size_bytes() > self.most_bytes:
            return Refusal(
                TOO_LARGE,
                f"event, key and headers have {record.size_bytes()} bytes; {self.name} takes at most "
                f"{self.most_bytes}",
            )
        return record

    def _judge(self, value: bytes) -> Any:
        """The event by its contract, or a refusal."""
        if not value:
            return Refusal(BAD_REQUEST, f"the event is empty; {self.name} takes JSON objects")
        try:
            return self._contract.decode(value)
        except msgspec.ValidationError as error:
            return Refusal(UNPROCESSABLE, f"the event breaks the contract of {self.name}: {error}")
        except (msgspec.DecodeError, UnicodeError) as error:
            return Refusal(BAD_REQUEST, f"the event is no JSON: {error}")
        except RecursionError:
            return Refusal(BAD_REQUEST, "the event is nested too deeply to be read")


def _key_of(contract: type, field: str) -> Callable[[Any, bytes], bytes]:
    """Gives an event's key, of the event as its contract reads it or of its bytes.

    A text is the same in both. Anything else may be written in several ways; the key is what the bytes say.
    """
    for each in msgspec.structs.fields(contract):
        kind = msgspec.inspect.type_info(each.type)
        if each.encode_name == field and isinstance(kind, msgspec.inspect.StrType):
            name = each.name
            return lambda event, _: getattr(event, name).encode()
    keys = KeyReader(field)
    return lambda _, value: keys.read(value)


def media_type(said: str | None) -> str:
    """A content type without its parameters; every kind of JSON is `application/json`."""
    if said is None:
        return JSON
    bare = said.partition(";")[0].strip().lower()
    return JSON if bare.endswith(("/json", "+json")) else bare
