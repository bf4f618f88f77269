"""An Avro object container file (Avro 1.11), made up around records that stand as Avro would write them.

Polars reads columns of such a file, without an object a record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_SYNC = b"tidemill-avro-16"


def file_head(fields: Sequence[Mapping[str, Any]]) -> bytes:
    """The file up to its first block: of uncompressed records with these fields, by name and type."""
    schema = json.dumps({"type": "record", "name": "record", "fields": fields}).encode()
    said = ((b"avro.schema", schema), (b"avro.codec", b"null"))
    entries = (long(len(part)) + part for entry in said for part in entry)
    return b"".join([b"Obj\x01", long(len(said)), *entries, long(0), _SYNC])


def block(records: int, content: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """A block of so many records, in parts: their bytes are large, and are not copied for it."""
    return long(records), long(len(content)), content, _SYNC


def long(value: int) -> bytes:
    """A number that is not negative, zigzag and in groups of seven bits."""
    zigzag, out = value << 1, bytearray()
    while zigzag & ~0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)
