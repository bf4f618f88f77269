"""An Avro object container file (Avro 1.11), made up around records that stand as Avro would write them.

Polars reads columns of such a file, without an object a record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.record.util import encode_varint

_SYNC = b"tidemill-avro-16"


def file_head(fields: Sequence[Mapping[str, Any]]) -> bytes:
    """The file up to its first block: of uncompressed records with these fields, by name and type."""
    schema = json.dumps({"type": "record", "name": "record", "fields": fields}).encode()
    said = ((b"avro.schema", schema), (b"avro.codec", b"null"))
    entries = (_long(len(part)) + part for entry in said for part in entry)
    return b"".join([b"Obj\x01", _long(len(said)), *entries, _long(0), _SYNC])


def block(records: int, contents: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A block of so many records, in parts: their bytes are large, and are not copied for it.

    One of many records is cheaper to read than many of few.
    """
    return [_long(records), _long(sum(map(len, contents))), *contents, _SYNC]


def _long(value: int) -> bytes:
    """A number, zigzag and in groups of seven bits: Kafka's varint is Avro's long."""
    written = bytearray()
    encode_varint(value, written.append)
    return bytes(written)
