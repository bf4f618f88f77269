"""Avro records in Confluent's framing, held to the same contract as a JSON record.

A value is the byte 0, the writer's schema id (four bytes, big-endian), and the Avro body (Avro 1.11,
"Binary encoding"). Bodies of one writer's schema are read together, as the one block of an Avro file that is
made up around them: a twelfth of the cost of reading them one by one. A block has no bounds between its
records, and its reader panics on some bytes; so `streams.decode.avro_walk` looks at every body first.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
import polars as pl

from schemas.dead_letter import Reason
from schemas.errors import Rejected
from streams.decode.arrow import NotRows, conform
from streams.decode.avro_file import block, file_head
from streams.decode.avro_walk import TYPES, Field, walk
from streams.decode.columns import Column

MAGIC = 0
HEAD_BYTES = 5

Writers = Callable[[Collection[int]], Mapping[int, "WriterSchema | None"]]
"""Schemas by id, None for an id that nobody knows. Raises Retryable where that cannot be found out now."""


class NotASchema(Rejected):
    """It is no Avro schema of a record."""


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """The schema that records were written with."""

    fields: tuple[Field, ...]
    parsed: Any = field(repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether its records can be read together."""
        return all(f.kind in TYPES for f in self.fields)


def parse(text: str) -> WriterSchema:
    """A writer's schema from its JSON.

    Raises:
        NotASchema: it is none, or not of a record.
    """
    try:
        said = json.loads(text)
        if not isinstance(said, dict) or said.get("type") != "record":
            raise NotASchema("it is no schema of a record")
        # Logical types are left out: what counts is the number that was written.
        fields = tuple(_field(each) for each in said["fields"])
        bare = {**said, "fields": [{"name": f.name, "type": f.plain} for f in fields]}
        return WriterSchema(fields, fastavro.parse_schema(bare))
    except NotASchema:
        raise
    except Exception as error:  # fastavro raises several kinds for what is no schema
        raise NotASchema(f"it is no Avro schema: {error}") from error


def _field(said: dict[str, Any]) -> Field:
    branches = said["type"] if isinstance(said["type"], list) else [said["type"]]
    kinds = [_kind(b) for b in branches]
    plain = [_plain(b) for b in branches]
    if len(branches) == 1 and not isinstance(said["type"], list):
        return Field(said["name"], kinds[0], None, plain[0])
    if len(branches) == 2 and "null" in kinds and kinds != ["null", "null"]:
        null_at = kinds.index("null")
        return Field(said["name"], kinds[1 - null_at], null_at, plain)
    return Field(said["name"], f"union of {', '.join(kinds)}", None, plain)


def _kind(said: Any) -> str:
    if isinstance(said, str):
        return said
    if not isinstance(said, dict):
        return "union"
    logical = said.get("logicalType")
    # Epoch milliseconds are what contracts mean by a time; other units would be read as wrong times.
    if logical in (None, "timestamp-millis", "uuid"):
        return str(said["type"])
    return str(logical)


def _plain(said: Any) -> Any:
    if not isinstance(said, dict):
        return said
    if said.get("type") in TYPES and said["type"] != "enum":
        return said["type"]
    return {name: value for name, value in said.items() if name != "logicalType"}


@dataclass(slots=True)
class Bodies:
    """Avro records, as columns: an object a record would set the cyclic garbage collector going.

    `frame` is each one's frame by its number, `index` its place there; `values` have their heads.
    """

    frame: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, frame: int, index: Sequence[int], values: Sequence[bytes]) -> None:
        """Take records of one frame."""
        self.frame += [frame] * len(index)
        self.index += index
        self.values += values

    def take(self, positions: Sequence[int]) -> Bodies:
        """Only those, in that order."""
        return Bodies(
            [self.frame[p] for p in positions],
            [self.index[p] for p in positions],
            [self.values[p] for p in positions],
        )

    def refuse(self, position: int, reason: Reason, rule: str, detail: str) -> Misfit:
        """One of them is no event."""
        return Misfit(self.frame[position], self.index[position], reason, rule, detail)

    def places(self) -> list[pl.Series]:
        """Frames and indices as columns."""
        return [
            pl.Series("_frame", self.frame, dtype=pl.Int32),
            pl.Series("_index", self.index, dtype=pl.Int32),
        ]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A record that is no event."""

    frame: int
    index: int
    reason: Reason
    rule: str
    detail: str


class AvroReader:
    """Reads Avro records of one contract.

    Args:
        columns: the contract's.
        writers: finds writers' schemas; None where no registry is configured.
        unknown_columns: whether records may have fields that the contract does not name.
    """

    def __init__(
        self, columns: Sequence[Column], writers: Writers | None, *, unknown_columns: bool = False
    ) -> None:
        self._columns = columns
        self._writers = writers
        self._unknown_columns = unknown_columns
        self._refused: dict[int, NotRows | None] = {}

    def read(self, bodies: Bodies) -> tuple[list[pl.DataFrame], list[Misfit]]:
        """Rows of these records in the contract's columns, with `_overflow`, `_frame`, `_index` and `_row`.

        Bounds and nulls are not held against the contract yet: that is done for Arrow's rows alike.

        Raises:
            Retryable: the registry is away; nothing is decided, the same call may succeed later.
        """
        by_head, misfits = _by_head(bodies)
        numbers = {head: struct.unpack(">xi", head)[0] for head in by_head}
        schemas = self._schemas(numbers.values())
        tables = []
        for head, own in by_head.items():
            number = numbers[head]
            schema = schemas[number]
            why = self._why_not(number, schema)
            if why is not None:
                misfits += [own.refuse(at, why.reason, why.rule, why.detail) for at in range(len(own))]
                continue
            assert schema is not None
            table, bad = _read(schema, own, self._columns)
            misfits += bad
            if table.height:
                places = table.select("_frame", "_index", pl.lit(0, dtype=pl.Int32).alias("_row"))
                rows = conform(table.drop("_frame", "_index"), self._columns, unknown_columns=True)
                tables.append(pl.concat([rows, places], how="horizontal"))
        return tables, misfits

    def _schemas(self, numbers: Collection[int]) -> Mapping[int, WriterSchema | None]:
        if self._writers is None:
            return dict.fromkeys(numbers)
        return self._writers(numbers)

    def _why_not(self, number: int, schema: WriterSchema | None) -> NotRows | None:
        """What no record of that schema can be an event for; asked once a schema."""
        if schema is None:
            hint = (
                "the registry has no schema of that id"
                if self._writers is not None
                else "no registry is configured: set schema_registry.url or schema_registry.folder"
            )
            return NotRows("unknown_schema", "schema id", f"unknown Avro schema id {number}: {hint}")
        if number not in self._refused:
            self._refused[number] = self._held_against_contract(schema)
        return self._refused[number]

    def _held_against_contract(self, schema: WriterSchema) -> NotRows | None:
        known = {c.name for c in self._columns}
        for each in schema.fields:
            if each.name in known and each.kind not in TYPES:
                detail = f"field {each.name!r} holds {each.kind}, which is no column of the contract"
                return NotRows("unknown_schema", each.name, detail)
        held = {f.name: f.dtype for f in schema.fields if f.kind in TYPES}
        odd = [f.name for f in schema.fields if f.name not in known]
        if odd and not self._unknown_columns:
            return NotRows("unknown_schema", odd[0], f"the contract has no column {odd[0]!r}")
        try:
            conform(pl.DataFrame(schema=held), self._columns, unknown_columns=True)
        except NotRows as why:
            return why
        return None


def _by_head(bodies: Bodies) -> tuple[dict[bytes, Bodies], list[Misfit]]:
    """Records by their first five bytes, and those that do not begin as framed ones do."""
    heads = [value[:HEAD_BYTES] for value in bodies.values]
    if len(kinds := dict.fromkeys(heads)) == 1 and _is_head(heads[0]):
        return {heads[0]: bodies}, []
    positions: dict[bytes, list[int]] = {head: [] for head in kinds}
    for position, head in enumerate(heads):
        positions[head].append(position)
    detail = "no Avro in Confluent's framing: that begins with a byte 0 and a schema id of 4 bytes"
    misfits = [
        bodies.refuse(position, "malformed", "value", detail)
        for head, own in positions.items()
        if not _is_head(head)
        for position in own
    ]
    return {head: bodies.take(own) for head, own in positions.items() if _is_head(head)}, misfits


def _is_head(head: bytes) -> bool:
    return len(head) == HEAD_BYTES and head[0] == MAGIC


def _read(
    schema: WriterSchema, bodies: Bodies, columns: Sequence[Column]
) -> tuple[pl.DataFrame, list[Misfit]]:
    """Rows of one writer's records, in their order, and those that cannot be read."""
    if not schema.is_plain:
        return _one_by_one(schema, bodies, {c.name for c in columns})
    faults = walk(schema.fields, bodies.values, head_bytes=HEAD_BYTES)
    misfits = [bodies.refuse(at, "malformed", "value", why) for at, why in sorted(faults.items())]
    good = bodies.take([at for at in range(len(bodies)) if at not in faults]) if faults else bodies
    return _together(schema, good), misfits


def _together(schema: WriterSchema, bodies: Bodies) -> pl.DataFrame:
    """Rows of bodies that are known to be whole, read as the one block of an Avro file."""
    places = bodies.places()
    written = [f for f in schema.fields if f.kind != "null"]
    if not len(bodies) or not written:
        table = pl.DataFrame(places)
    else:
        own = [value[HEAD_BYTES:] for value in bodies.values]
        fields = [{"name": f.name, "type": _as_number(f)} for f in written]
        table = pl.read_avro(io.BytesIO(b"".join((file_head(fields), *block(len(bodies), own)))))
        # An enum is written as its symbol's number, and read as that: Polars panics on one that may be null.
        named = [
            pl.col(f.name).replace_strict(list(range(len(f.symbols))), f.symbols, return_dtype=pl.String)
            for f in written
            if f.kind == "enum"
        ]
        table = table.with_columns(*named, *places)
    absent = {f.name: f.dtype for f in schema.fields if f.name not in table.columns}
    return table.with_columns(pl.lit(None, dtype=dtype).alias(name) for name, dtype in absent.items())


def _as_number(each: Field) -> Any:
    if each.kind != "enum":
        return each.plain
    return "int" if each.null_at is None else ["null", "int"] if each.null_at == 0 else ["int", "null"]


def _one_by_one(
    schema: WriterSchema, bodies: Bodies, wanted: Collection[str]
) -> tuple[pl.DataFrame, list[Misfit]]:
    """Records of a schema that cannot be walked, such as with a list that the contract leaves out."""
    fields = [f for f in schema.fields if f.name in wanted]
    values: list[list[Any]] = [[] for _ in fields]
    good: list[int] = []
    misfits = []
    for position, value in enumerate(bodies.values):
        stream = io.BytesIO(value)
        stream.seek(HEAD_BYTES)
        try:
            record: Any = fastavro.schemaless_reader(stream, schema.parsed, None)
            if left := len(value) - stream.tell():
                raise ValueError(f"there are {left} bytes left behind the last field")
        except Exception as error:  # whatever the bytes provoke
            why = f"the Avro body cannot be read: {error or type(error).__name__}"[:200]
            misfits.append(bodies.refuse(position, "malformed", "value", why))
            continue
        good.append(position)
        for column, each in zip(values, fields, strict=True):
            column.append(record[each.name])
    series = [pl.Series(f.name, v, dtype=f.dtype) for f, v in zip(fields, values, strict=True)]
    return pl.DataFrame([*series, *bodies.take(good).places()]), misfits
