"""Avro: the same events are valid as in JSON, and a damaged body costs no other record its place."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.envelope import CONFLUENT_AVRO
from schemas.topics import CONTENT_TYPE_HEADER
from streams.decode import avro
from streams.decode.records import Decoded, Decoder
from tests.avro_fixtures import READING, Known, avro_of, record_schema
from tests.stream_fixtures import Reading, frame_of, heartbeat_headers
from tests.test_decode import GOOD, GOOD_BYTES, SCHEMA, wild_records

FULL = {**GOOD, "extra": None}
HEADERS = ((CONTENT_TYPE_HEADER, CONFLUENT_AVRO.encode()),)


def decode(*values: bytes | None, contract: Any = Reading, first: int = 0, **schemas: Any) -> Decoded:
    """Decode Avro records of a source that declares them, without any header."""
    writers = Known(**{"n7": READING, **schemas})
    return Decoder(contract, writers=writers, unmarked=CONFLUENT_AVRO).decode([frame_of(values, first=first)])


def but(**changes: Any) -> bytes:
    return avro_of({**FULL, **changes})


@settings(deadline=None, max_examples=80)
@given(records=st.lists(wild_records, min_size=1, max_size=6))
def test_json_and_avro_agree_on_what_is_valid(records: list[dict]) -> None:
    by_json = Decoder(Reading).decode([frame_of([json.dumps(r).encode() for r in records])])
    by_avro = decode(*(avro_of(r) for r in records))
    assert by_json.rows.get_column("_index").to_list() == by_avro.rows.get_column("_index").to_list()
    assert_frame_equal(by_json.rows, by_avro.rows)
    assert by_avro.events == len(records)
    assert {r.index for r in by_json.refused} == {r.index for r in by_avro.refused}
    if len(records) == 1 and len(by_json.refused) == 1:
        (json_says,), (avro_says,) = by_json.refused, by_avro.refused
        assert avro_says.rule == json_says.rule or sum(_is_bad(records[0])) > 1


def _is_bad(record: dict) -> list[bool]:
    found = []
    for name, value in record.items():
        try:
            msgspec.json.decode(json.dumps({**GOOD, name: value}), type=Reading)
        except msgspec.ValidationError:
            found.append(True)
        else:
            found.append(False)
    return found


BAD_VALUES = {
    "null where a value must be": ({"at": None}, "missing", "at"),
    "beyond the bound": ({"at": 2**53 + 1}, "out_of_range", "at"),
    "not a number": ({"level": float("nan")}, "out_of_range", "level"),
    "infinite where no bound is": ({"extra": float("-inf")}, "out_of_range", "extra"),
    "text too long": ({"id": "x" * 9}, "out_of_range", "id"),
    "empty text": ({"id": ""}, "out_of_range", "id"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_value_outside_the_contract_is_refused_alone_and_by_its_field(name: str) -> None:
    change, reason, rule = BAD_VALUES[name]
    bad = but(**change)
    decoded = decode(but(id="before"), bad, but(id="after"), first=70)
    assert decoded.rows.get_column("id").to_list() == ["before", "after"]
    assert decoded.rows.get_column("_index").to_list() == [0, 2]
    (refused,) = decoded.refused
    assert (refused.reason, refused.rule, refused.index) == (reason, rule, 1)


GOOD_AVRO = avro_of(FULL)
BAD_BODIES = {
    "no framing": GOOD_BYTES,
    "only the head": GOOD_AVRO[:5],
    "half a head": GOOD_AVRO[:3],
    "another magic byte": b"\x01" + GOOD_AVRO[1:],
    "cut": GOOD_AVRO[:-1],
    "something behind": GOOD_AVRO + b"\0",
    "two bodies": GOOD_AVRO + GOOD_AVRO[5:],
    "a text longer than its record": GOOD_AVRO[:5] + b"\x02\xfe\xff\xff\xff\x0f" + GOOD_AVRO[7:],
    "a text of negative length": GOOD_AVRO[:5] + b"\x02\x03" + GOOD_AVRO[7:],
    "a text of 2^62 bytes": GOOD_AVRO[:5] + b"\x02" + b"\x80" * 8 + b"\x40" + GOOD_AVRO[7:],
    "invalid UTF-8": GOOD_AVRO.replace(b"a1", b"a\xff"),
    "a branch that is not there": GOOD_AVRO[:5] + b"\x04" + GOOD_AVRO[6:],
    "a number of eleven bytes": GOOD_AVRO[:5] + GOOD_AVRO[5:9] + b"\x00" + b"\xff" * 10 + b"\x01",
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_damaged_body_is_refused_and_its_neighbours_stay(name: str) -> None:
    decoded = decode(but(id="before"), BAD_BODIES[name], but(id="after"), GOOD_AVRO)
    assert decoded.rows.get_column("id").to_list() == ["before", "after", "a1"]
    assert decoded.rows.get_column("_index").to_list() == [0, 2, 3]
    assert [(r.reason, r.rule, r.index) for r in decoded.refused] == [("malformed", "value", 1)]
    assert decoded.events == 4


def test_two_wrong_lengths_that_make_up_for_each_other_are_both_refused() -> None:
    """Read as one block these bytes are three whole records: the second takes its last byte of the third."""
    first, second = but(id="second"), but(id="third")
    cut, longer = first[:-1], second[:5] + first[-1:] + second[5:]
    decoded = decode(GOOD_AVRO, cut, longer, GOOD_AVRO)
    assert decoded.rows.get_column("_index").to_list() == [0, 3]
    assert {r.index for r in decoded.refused} == {1, 2}


def test_a_boolean_byte_that_no_writer_writes_is_refused() -> None:
    at = GOOD_AVRO.index(b"\x02\x01\x00\x00", 5)  # good = true, then note and extra null
    decoded = decode(GOOD_AVRO, GOOD_AVRO[: at + 1] + b"\x07" + GOOD_AVRO[at + 2 :])
    assert decoded.rows.height == 1
    assert [r.index for r in decoded.refused] == [1]


@settings(deadline=None, max_examples=120)
@given(
    parts=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=2),
            st.integers(-3, 3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_a_damaged_record_is_never_hangs_on_its_neighbours(
    parts: list[tuple[int, list[tuple[int, int]], int]],
) -> None:
    values = []
    for number, flips, longer in parts:
        value = bytearray(but(id=f"n{number}", count=number * 1_000))
        for at, byte in flips:
            value[5 + at % (len(value) - 5)] = byte
        values.append(bytes(value[: len(value) + min(longer, 0)]) + b"\0" * max(longer, 0))
    together = decode(*values)
    alone = [decode(value) for value in values]
    assert together.rows.get_column("_index").to_list() == [i for i, d in enumerate(alone) if d.rows.height]
    assert_frame_equal(
        together.rows.drop("_index"), pl.concat([d.rows for d in alone]).drop("_index"), check_dtypes=True
    )
    assert together.events == len(values)


def test_a_block_with_some_bad_ones_keeps_every_good_one_in_order() -> None:
    values = [but(id=f"r{n}") if n % 97 else GOOD_AVRO[:-1] for n in range(5_000)]
    decoded = decode(*values)
    assert decoded.rows.get_column("_index").to_list() == [n for n in range(5_000) if n % 97]
    assert sorted(r.index for r in decoded.refused) == [n for n in range(5_000) if n % 97 == 0]


# ── writers' schemas ────────────────────────────────────────────────────────────────────────────────

PLAIN = {"id": "string", "at": "long", "level": "double", "count": "long", "good": "boolean"}
SAID = {"id": "a1", "at": 1_000, "level": 1.5, "count": 3, "good": True}


def of_schema(said: dict[str, Any], **fields: Any) -> Decoded:
    schema = record_schema(**fields)
    return decode(but(id="before"), avro_of(said, schema, number=9), n9=schema)


@pytest.mark.parametrize(
    ("types", "values"),
    [
        ({"note": ["null", "string"]}, {"note": "x"}),
        ({"note": "null"}, {"note": None}),
        ({"note": ["string", "null"]}, {"note": None}),
        ({"note": {"type": "enum", "name": "e", "symbols": ["x", "y"]}}, {"note": "y"}),
        ({"note": ["null", {"type": "enum", "name": "e", "symbols": ["x", "y"]}]}, {"note": "y"}),
        ({"note": ["string"]}, {"note": "x"}),
        ({"note": {"type": "string", "avro.java.string": "String"}}, {"note": "x"}),
        ({"count": "int", "note": "string"}, {"count": 3, "note": "x"}),
        ({"level": "float", "note": "string"}, {"level": 1.5, "note": "x"}),
        ({"level": "int", "note": "string"}, {"level": 2, "note": "x"}),
        ({"at": {"type": "long", "logicalType": "timestamp-millis"}, "note": "string"}, {"note": "x"}),
        ({"note": "string", "extra": "double"}, {"note": "x", "extra": 2.5}),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_types_that_hold_the_same_values_are_taken(types: dict[str, Any], values: dict[str, Any]) -> None:
    decoded = of_schema({**SAID, **values}, **{**PLAIN, **types})
    if types.get("note") == ["string"]:  # a union of one: no writer has it, and it is refused by name
        assert [r.rule for r in decoded.refused] == ["note"]
        return
    assert decoded.refused == []
    row = decoded.rows.row(1, named=True)
    assert {n: row[n] for n in SCHEMA} == {**SAID, "note": None, "extra": None, **values}
    assert dict(decoded.rows.select(*SCHEMA).schema) == {n: t() for n, t in SCHEMA.items()}


@pytest.mark.parametrize(
    ("types", "values", "reason", "rule"),
    [
        ({"count": "string"}, {"count": "3"}, "unknown_schema", "count"),
        ({"count": "double"}, {"count": 3.0}, "unknown_schema", "count"),
        ({"at": {"type": "long", "logicalType": "timestamp-micros"}}, {}, "unknown_schema", "at"),
        ({"id": "bytes"}, {"id": b"a1"}, "unknown_schema", "id"),
        ({"id": ["string", "long"]}, {}, "unknown_schema", "id"),
        ({"id": {"type": "array", "items": "string"}}, {"id": ["a1"]}, "unknown_schema", "id"),
        ({"levle": "double"}, {"levle": 1.0}, "unknown_schema", "levle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_of_another_kind_refuse_the_schemas_records(
    types: dict[str, Any], values: dict[str, Any], reason: str, rule: str
) -> None:
    decoded = of_schema({**SAID, "note": "x", **values}, **{**PLAIN, "note": "string", **types})
    assert [(r.reason, r.rule, r.index) for r in decoded.refused] == [(reason, rule, 1)], decoded.refused
    assert decoded.rows.height == 1


def test_a_field_that_a_writer_lacks_takes_its_default_or_is_missing() -> None:
    assert of_schema({**SAID, "note": "x"}, **PLAIN, note="string").rows.row(1, named=True)["extra"] is None
    without = {n: t for n, t in PLAIN.items() if n != "level"}
    decoded = of_schema({**SAID, "note": "x"}, **without, note="string")
    assert [(r.reason, r.rule) for r in decoded.refused] == [("missing", "level")]


def test_a_contract_that_takes_unknown_fields_takes_those_of_any_type() -> None:
    class Loose(msgspec.Struct):
        id: str
        """Anything else is ignored."""

    schema = record_schema(id="string", more={"type": "array", "items": "long"})
    good = avro_of({"id": "a", "more": [1, 2]}, schema, number=9)
    decoded = decode(good, good[:-1], good, contract=Loose, n9=schema)
    assert decoded.rows.get_column("id").to_list() == ["a", "a"]
    assert [(r.reason, r.index) for r in decoded.refused] == [("malformed", 1)]


def test_records_of_several_schemas_keep_the_order_of_their_offsets() -> None:
    schema = record_schema(**PLAIN, note="string")
    other = avro_of({**SAID, "id": "other", "note": "x"}, schema, number=9)
    decoded = decode(but(id="a"), other, but(id="b"), other, n9=schema)
    assert decoded.rows.get_column("id").to_list() == ["a", "other", "b", "other"]


def test_an_unknown_schema_id_is_a_dead_letter_that_names_it() -> None:
    decoded = decode(GOOD_AVRO, avro_of(FULL, number=4_711), b"\0\xff\xff\xff\xff")
    assert decoded.rows.height == 1
    assert [(r.reason, r.rule) for r in decoded.refused] == [("unknown_schema", "schema id")] * 2
    assert "4711" in decoded.refused[0].detail


def test_without_a_registry_the_letter_says_what_to_set() -> None:
    decoded = Decoder(Reading, unmarked=CONFLUENT_AVRO).decode([frame_of([GOOD_AVRO])])
    assert "schema_registry.url" in decoded.refused[0].detail


@pytest.mark.parametrize("text", ["", "[]", '"string"', '{"type": "record"}', '{"type": "array"}'])
def test_what_is_no_schema_of_a_record_is_said(text: str) -> None:
    with pytest.raises(avro.NotASchema):
        avro.parse(text)


# ── beside other records ────────────────────────────────────────────────────────────────────────────


def test_avro_may_be_named_by_its_content_type_beside_json() -> None:
    frame = frame_of([GOOD_BYTES, GOOD_AVRO, GOOD_BYTES], headers={1: HEADERS})
    decoded = Decoder(Reading, writers=Known(n7=READING)).decode([frame])
    assert decoded.rows.height == 3
    assert decoded.rows.get_column("_index").to_list() == [0, 1, 2]


def test_a_heartbeat_among_avro_records_is_no_event() -> None:
    frame = frame_of([GOOD_AVRO, b"", None, GOOD_AVRO], headers={1: heartbeat_headers(5_000)})
    decoded = Decoder(Reading, writers=Known(n7=READING), unmarked=CONFLUENT_AVRO).decode([frame])
    assert decoded.heartbeats == {0: 5_000}
    assert decoded.rows.get_column("_index").to_list() == [0, 3]
    assert [(r.reason, r.index) for r in decoded.refused] == [("malformed", 2)]


def test_json_named_as_such_is_taken_from_a_source_of_avro() -> None:
    frame = frame_of([GOOD_AVRO, GOOD_BYTES], headers={1: ((CONTENT_TYPE_HEADER, b"application/json"),)})
    decoded = Decoder(Reading, writers=Known(n7=READING), unmarked=CONFLUENT_AVRO).decode([frame])
    assert decoded.rows.height == 2
