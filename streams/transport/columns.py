"""A record batch's keys and values as columns, read beside Python's lock.

A compiled walk says where each stands; they are cut out of the batches' bytes together, without an object a
record. Batches of which a record has headers are left to aiokafka's own walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from streams.compiled import walks
from streams.cut import binaries

LEAST_RECORDS = 64
"""Of a batch that is worth it: what is looked at of each batch costs as much as to walk so many."""

_NULL = 1
"""Length -1, as a zigzag number."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The records of one batch, uncompressed: so many, for offsets that follow each other."""

    records: int
    content: memoryview | bytes


class Mixed(Exception):
    """A record has headers, or what stands there are no such records."""


def is_bare(content: memoryview | bytes) -> bool:
    """Whether the first record has no headers, so that it may be worth to read all as columns."""
    try:
        at = _behind(content, 0) + 1  # its length, and a byte that says nothing
        at = _behind(content, _behind(content, at))  # timestamp and offset, each less the batch's own
        for _ in range(2):  # key and value
            at = at + 1 if content[at] == _NULL else _skipped(content, at)
        return content[at] == 0
    except IndexError:
        return False


def read_columns(payloads: Sequence[Payload]) -> tuple[pl.Series, pl.Series] | None:
    """Keys and values (N,) of all records, Binary, in their order; None while there is no compiled walk.

    Raises:
        Mixed: a record has headers.
    """
    if (compiled := walks(ask=False)) is None:
        return None
    counts = np.array([each.records for each in payloads], np.int64)
    content = b"".join([*(each.content for each in payloads), bytes(compiled.cut.WORD)])
    ends = np.cumsum([len(each.content) for each in payloads], dtype=np.int64)
    if counts.sum() > ends[-1]:  # room is made for as many as a batch says that it has
        raise Mixed("fewer bytes than records")
    found = np.empty((4, counts.sum()), np.int64)
    whole = np.frombuffer(content, np.uint8)
    if not compiled.records.walk(whole, counts, ends, found):
        raise Mixed("records with headers, or none at all")
    keys, values = (binaries(whole, found[at], found[at + 1], compiled.cut) for at in (0, 2))
    return keys, values


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
