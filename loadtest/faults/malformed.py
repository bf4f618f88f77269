"""Records that are hard to read, from a seed: damaged, deep, huge, of another encoding, or nearly right.

Each is made from a good flight. `Made` says how many rows and letters together it must become.
"""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fastavro
import polars as pl

from schemas.envelope import ARROW_STREAM, CONFLUENT_AVRO
from schemas.topics import CONTENT_TYPE_HEADER, WATERMARK_HEADER
from streams.transport.frame import Headers

SCHEMA_ID = 7
AVRO_SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Flight",
    "fields": [
        {"name": "flight_id", "type": ["null", "string"]},
        {"name": "scheduled", "type": ["null", "long"]},
        {"name": "carrier", "type": ["null", "string"]},
        {"name": "flight", "type": ["null", "long"]},
        {"name": "tailnum", "type": ["null", "string"]},
        {"name": "origin", "type": ["null", "string"]},
        {"name": "dest", "type": ["null", "string"]},
        {"name": "distance", "type": ["null", "double"]},
        {"name": "scheduled_arrival_hhmm", "type": ["null", "long"]},
    ],
}
_PARSED = fastavro.parse_schema(AVRO_SCHEMA)
_JSON_HEADERS: Headers = ()
_ARROW: Headers = ((CONTENT_TYPE_HEADER, ARROW_STREAM.encode()),)
_AVRO: Headers = ((CONTENT_TYPE_HEADER, CONFLUENT_AVRO.encode()),)
_TOO_LONG = 8 * 2**20 + 1
_START_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Made:
    """One record; `kind` is how it was made, and it must become `least` to `most` rows or letters."""

    kind: str
    value: bytes | None
    headers: Headers = ()
    least: int = 1
    most: int = 1


def flight(rng: random.Random, number: int) -> dict[str, Any]:
    """A good event."""
    return {
        "flight_id": f"f-{number}",
        "scheduled": _START_MS + number,
        "carrier": rng.choice(["UA", "DL", "Æ", "航"]),
        "flight": rng.randrange(10_000),
        "tailnum": None if rng.random() < 0.2 else "N1",
        "origin": "EWR",
        "dest": "IAH",
        "distance": float(rng.randrange(12_000)),
        "scheduled_arrival_hhmm": rng.randrange(2_401),
    }


def as_json(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def as_arrow(events: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pl.DataFrame(events, infer_schema_length=None).write_ipc_stream(sink)
    return sink.getvalue()


def as_avro(event: dict[str, Any], schema_id: int = SCHEMA_ID) -> bytes:
    sink = io.BytesIO()
    sink.write(struct.pack(">bI", 0, schema_id))
    fastavro.schemaless_writer(sink, _PARSED, event)
    return sink.getvalue()


def _cut(rng: random.Random, value: bytes) -> bytes:
    return value[: rng.randrange(1, len(value))]


def _flipped(rng: random.Random, value: bytes) -> bytes:
    damaged = bytearray(value)
    for _ in range(rng.randrange(1, 4)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    "x" * 5_000,
    [],
    {},
    [[]],
    -1,
    0,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    1e308,
    -0.0,
    5e-324,
    "12",
)
# As they stand in JSON's text, where Python has no value for them.
_ODD_TEXTS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e400",
    b"18446744073709551616",
    b"9" * 400,
    b"-" + b"9" * 400,
    b"0x10",
    b"01",
    b"1.",
    b".5",
    b"+1",
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\x00"',
    b'"\xff"',
    b"nul",
    b"'x'",
    b"1" + b"0" * 5_000 + b".0",
)


def _odd_value(rng: random.Random, number: int) -> Made:
    event = flight(rng, number)
    event[rng.choice(list(event))] = rng.choice(_ODD_VALUES)
    return Made("odd value", as_json(event))


def _odd_text(rng: random.Random, number: int) -> Made:
    event = flight(rng, number)
    name = rng.choice(list(event))
    event[name] = "@@@"
    return Made("odd text", as_json(event).replace(b'"@@@"', rng.choice(_ODD_TEXTS)))


def _field_gone(rng: random.Random, number: int) -> Made:
    event = flight(rng, number)
    del event[rng.choice(list(event))]
    return Made("field gone", as_json(event))


def _field_too_many(rng: random.Random, number: int) -> Made:
    return Made(
        "field too many", as_json({**flight(rng, number), rng.choice(["x", "", "Flight", "flight "]): 1})
    )


def _duplicate_keys(rng: random.Random, number: int) -> Made:
    event = as_json(flight(rng, number))
    again = as_json({"flight_id": f"g-{number}", "flight": rng.choice([1, "no", None])})
    return Made("duplicate keys", event[:-1] + b"," + again[1:])


def _deep(rng: random.Random, _number: int) -> Made:
    depth = rng.choice([100, 1_000, 10_000, 100_000])
    inside = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    middle = b"1" if inside[0] != b"[" else b""
    nested = inside[0] * depth + middle + (inside[1] * depth if rng.random() < 0.5 else b"")
    return Made("deep nesting", nested)


def _encoded(rng: random.Random, number: int) -> Made:
    text = as_json(flight(rng, number)).decode()
    how = rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7", "utf-16-be"])
    return Made("other encoding", text.encode(how))


def _no_object(rng: random.Random, _number: int) -> Made:
    return Made(
        "no object", rng.choice([b"[]", b"null", b"1", b'"x"', b"{}", b" ", b"\n", b"{}{}", b"\x00" * 9])
    )


def _tombstone(rng: random.Random, _number: int) -> Made:
    return Made("tombstone", rng.choice([None, b""]))


def _bad_heartbeat(rng: random.Random, _number: int) -> Made:
    said = rng.choice([b"soon", b"", b"1e9", b"9" * 30, b"\xff", None, b"9" * 10_000])
    return Made("bad heartbeat", rng.choice([None, b""]), ((WATERMARK_HEADER, said),))


def _giant(rng: random.Random, _number: int) -> Made:
    return Made(
        "giant", rng.choice([b"[", b"0", b'"']) * _TOO_LONG, rng.choice([_JSON_HEADERS, _ARROW, _AVRO])
    )


def _content_type(rng: random.Random, number: int) -> Made:
    said = rng.choice(
        [b"text/plain", b"", b"\xff\xfe", b"application/json", b"application/JSON ", None, b"x" * 9_000]
    )
    return Made("content type", as_json(flight(rng, number)), ((CONTENT_TYPE_HEADER, said),))


def _arrow(rng: random.Random, number: int) -> Made:
    events = [flight(rng, number * 100 + k) for k in range(rng.randrange(1, 6))]
    return Made("arrow", as_arrow(events), _ARROW, len(events), len(events))


def _arrow_odd(rng: random.Random, number: int) -> Made:
    events = [flight(rng, number * 100 + k) for k in range(rng.randrange(1, 6))]
    bad = rng.choice(events)
    name = rng.choice(["flight_id", "scheduled", "carrier", "distance", "scheduled_arrival_hhmm"])
    bad[name] = rng.choice([None, *([""] if isinstance(bad[name], str) else [type(bad[name])(-(2.0**60))])])
    return Made("arrow, an odd row", as_arrow(events), _ARROW, len(events), len(events))


def _arrow_schema(rng: random.Random, number: int) -> Made:
    rows = pl.DataFrame([flight(rng, number)])
    name = rng.choice(rows.columns)
    table = rng.choice(
        [
            rows.drop(name),
            rows.rename({name: "x"}),
            rows.with_columns(x=1),
            rows.with_columns(pl.lit([1]).alias(name)),
            rows.with_columns(pl.lit(b"\xff").alias(name)),
            rows.select(pl.struct(pl.all()).alias(name)),
            rows.clear(),
            rows.with_columns(pl.lit(1, dtype=pl.Decimal(20, 2)).alias(name)),
            rows.select([]),
        ]
    )
    is_empty = table.height == 0 and table.columns == rows.columns
    sink = io.BytesIO()
    table.write_ipc_stream(sink)
    return Made("arrow, another schema", sink.getvalue(), _ARROW, 0 if is_empty else 1)


def _arrow_damaged(rng: random.Random, number: int) -> Made:
    table = as_arrow([flight(rng, number * 100 + k) for k in range(3)])
    # Arrow has no checksum: a flipped bit may be any number, that of the rows among them.
    return Made("arrow, damaged", rng.choice([_cut, _flipped])(rng, table), _ARROW, 0, 10**9)


def _avro(rng: random.Random, number: int) -> Made:
    return Made("avro", as_avro(flight(rng, number)), _AVRO)


def _avro_odd(rng: random.Random, number: int) -> Made:
    event = flight(rng, number)
    name = rng.choice(list(event))
    is_text = name not in ("scheduled", "flight", "distance", "scheduled_arrival_hhmm")
    event[name] = rng.choice([None, *(["", "x" * 99] if is_text else [-(2**60)])])
    return Made("avro, odd value", as_avro(event), _AVRO)


def _avro_unknown(rng: random.Random, number: int) -> Made:
    return Made(
        "avro, unknown schema", as_avro(flight(rng, number), rng.choice([0, 8, 2**31 - 1, 2**32 - 1])), _AVRO
    )


def _avro_damaged(rng: random.Random, number: int) -> Made:
    return Made("avro, damaged", rng.choice([_cut, _flipped])(rng, as_avro(flight(rng, number))), _AVRO)


def _mistaken(rng: random.Random, number: int) -> Made:
    values = [as_json(flight(rng, number)), as_arrow([flight(rng, number)]), as_avro(flight(rng, number))]
    return Made("named as another", rng.choice(values), rng.choice([_JSON_HEADERS, _ARROW, _AVRO]))


def _noise(rng: random.Random, _number: int) -> Made:
    return Made("noise", rng.randbytes(rng.randrange(1, 200)), rng.choice([_JSON_HEADERS, _ARROW, _AVRO]))


_KINDS: tuple[tuple[float, Callable[[random.Random, int], Made]], ...] = (
    (8, lambda rng, n: Made("good", as_json(flight(rng, n)))),
    (6, lambda rng, n: Made("cut short", _cut(rng, as_json(flight(rng, n))))),
    (6, lambda rng, n: Made("bits flipped", _flipped(rng, as_json(flight(rng, n))))),
    (8, _odd_value),
    (8, _odd_text),
    (4, _field_gone),
    (3, _field_too_many),
    (3, _duplicate_keys),
    (0.3, _deep),
    (3, _encoded),
    (3, _no_object),
    (2, _tombstone),
    (2, _bad_heartbeat),
    (0.001, _giant),
    (2, _content_type),
    (0.5, _arrow),
    (0.5, _arrow_odd),
    (0.5, _arrow_schema),
    (1, _arrow_damaged),
    (4, _avro),
    (3, _avro_odd),
    (2, _avro_unknown),
    (4, _avro_damaged),
    (1, _mistaken),
    (3, _noise),
)


def records(seed: int, count: int) -> Iterator[Made]:
    """So many records, the same for the same seed."""
    rng = random.Random(seed)
    weights, makers = zip(*_KINDS, strict=True)
    for number, make in enumerate(rng.choices(makers, weights, k=count)):
        yield make(rng, number)
