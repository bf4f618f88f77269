"""A record batch's keys and values as columns, read beside Python's lock.

Kafka writes a record as Avro would: zigzag numbers, and bytes behind their length. So batches are a block
of an Avro file that is made up around them, and Polars reads them without an object a record. What Avro
cannot say is a record without a value or with headers: whose batches are left to aiokafka's own walk.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

import numpy as np
import polars as pl

from streams.avro_file import block, file_head

LEAST_RECORDS = 64
"""Of a batch that is worth it: what is looked at of each batch costs as much as to walk so many."""

_NULL = 1
"""Length -1, as a zigzag number."""


class Shape(Enum):
    """What all records of a batch have in common, if they are like its first."""

    KEYED = "bytes"
    KEYLESS = "long"


@dataclass(frozen=True, slots=True)
class Payload:
    """The records of one batch, uncompressed: so many, for offsets that follow each other."""

    records: int
    content: memoryview | bytes
    shape: Shape


class Mixed(Exception):
    """Not all records of a batch are like its first."""


def shape_of(content: memoryview | bytes) -> Shape | None:
    """What the first record is like; None where such cannot be read here."""
    try:
        at = _behind(content, 0) + 1  # its length, and a byte that says nothing
        at = _behind(content, _behind(content, at))  # timestamp and offset, each less the batch's own
        keyless = content[at] == _NULL
        at = at + 1 if keyless else _skipped(content, at)
        if content[at] == _NULL or content[_skipped(content, at)] != 0:
            return None  # a heartbeat or a tombstone, or one with headers
    except IndexError:
        return None
    return Shape.KEYLESS if keyless else Shape.KEYED


def read_columns(payloads: Sequence[Payload]) -> tuple[pl.Series, pl.Series]:
    """Keys and values (N,) of all records, Binary, in their order.

    Raises:
        Mixed: not all of a batch's records are like its first.
    """
    parts = [_read(shape, list(own)) for shape, own in groupby(payloads, key=lambda each: each.shape)]
    return pl.concat([keys for keys, _ in parts]), pl.concat([values for _, values in parts])


def _read(shape: Shape, payloads: Sequence[Payload]) -> tuple[pl.Series, pl.Series]:
    """All as one block, however many batches there are: each block has its price."""
    records = [each.records for each in payloads]
    content = block(sum(records), [each.content for each in payloads])
    file = io.BytesIO(b"".join((_HEADS[shape], *content)))
    try:
        read = pl.read_avro(file, columns=["length", "offset", "key", "value", "headers"])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise Mixed(str(error)) from error
    # Each record was read as it is if all before it were and it has no headers. So the first that is not like
    # the others shows, whatever was made of those behind it.
    expected = pl.concat([pl.int_range(count, eager=True) for count in records])
    alike = (read.get_column("headers") == 0).all() and (read.get_column("offset") == expected).all()
    # And none reaches into the next batch.
    ends = np.cumsum(_sizes(read.get_column("length").to_numpy()))[np.cumsum(records) - 1]
    alike = alike and np.array_equal(ends, np.cumsum([len(each.content) for each in payloads]))
    keys = read.get_column("key")
    if shape is Shape.KEYLESS:
        alike = alike and (keys == -1).all()
        keys = pl.repeat(None, keys.len(), dtype=pl.Binary, eager=True).alias("key")
    if not alike:
        raise Mixed("records with headers, or without a key or a value, among others")
    return keys, read.get_column("value")


def _sizes(lengths: np.ndarray) -> np.ndarray:
    """Bytes (N,) that records of these lengths take, with the length: seven bits of its zigzag a byte."""
    sizes = lengths + 1
    for bits in range(6, 32, 7):
        sizes += lengths >> bits > 0
    return sizes


# Not by aiokafka's `decode_varint`, which reads on behind the end of what it is given.


def _behind(content: memoryview | bytes, at: int) -> int:
    """Where what follows the number at that place begins."""
    while content[at] & 0x80:
        at += 1
    return at + 1


def _skipped(content: memoryview | bytes, at: int) -> int:
    """Where what follows the bytes at that place begins."""
    length = shift = 0
    while True:
        byte = content[at]
        length |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not byte & 0x80:
            return at + (length >> 1)


def _head(shape: Shape) -> bytes:
    types = {"length": "long", "attributes": "long", "timestamp": "long", "offset": "long"}
    types |= {"key": shape.value, "value": "bytes", "headers": "long"}
    return file_head([{"name": name, "type": kind} for name, kind in types.items()])


_HEADS = {shape: _head(shape) for shape in Shape}
