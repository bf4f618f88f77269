"""Records that are written alike are read by one pattern: as if each were alone, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct, defstruct

from loadtest.faults.malformed import records
from schemas.raw import Flight
from streams.decode import uniform
from streams.decode.columns import columns_of
from streams.decode.records import Decoder
from streams.decode.uniform import FEWEST, MOST_COLUMNS, Uniform
from streams.transport.frame import column
from tests.stream_fixtures import Reading, frame_of

GOOD = {"id": "a1", "at": 1_000, "level": 1.5, "count": 3, "good": True, "note": None}
# How numbers are written, and how they are not.
SPELLED = (
    *(
        "0",
        "-0",
        "0.0",
        "-0.0",
        "7",
        "-7",
        "1.5",
        "-1.5",
        "1e1",
        "1E-1",
        "1.5e+1",
        "0e0",
        "-0e0",
        "0.1e1",
        "100e-1",
    ),
    *(
        "1.",
        ".5",
        "01",
        "-01",
        "00",
        "1.e1",
        "1.E1",
        "+1",
        "1e",
        "1e+",
        "--1",
        "- 1",
        " 1",
        "1 ",
        "1_0",
        "0x1",
        "1.2.3",
    ),
    *(
        "NaN",
        "nan",
        "Infinity",
        "-inf",
        "1e400",
        "-1e400",
        "1e-400",
        "null",
        "true",
        "false",
        '"1"',
        "",
        "[]",
        "{}",
    ),
    *("9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1" * 400),
    *("0.1000000000000000055511151231257827", "2.2250738585072011e-308", "4.9e-324", "123456789012345678"),
)


def outcome(values: Sequence[bytes], contract: type[Struct] = Reading) -> tuple[list, list]:
    """Rows, floats by their bits, and what was refused and why."""
    decoded = Decoder(contract).decode([frame_of(list(values))])
    rows = [
        tuple(np.float64(v).tobytes() if isinstance(v, float) else v for v in row)
        for row in decoded.rows.iter_rows()
    ]
    return rows, sorted((each.index, each.reason, each.rule, each.detail) for each in decoded.refused)


def assert_alike(values: Sequence[bytes], contract: type[Struct] = Reading) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uniform, "FEWEST", 10**9)
        one_by_one = outcome(values, contract)
        # Also where hardly any is like the one that the pattern is made from.
        patch.setattr(uniform, "FEWEST", 1)
        patch.setattr(uniform, "_AT_LEAST", 0.0)
        assert outcome(values, contract) == one_by_one


def written(field: str, spelled: str, *, compact: bool = True) -> bytes:
    """The good record with a field's value as it is spelled."""
    text = json.dumps(GOOD | {field: "HERE"}, separators=(",", ":") if compact else None)
    return text.replace('"HERE"', spelled).encode()


@pytest.mark.parametrize("field", ["level", "count", "at", "good", "note", "id"])
def test_a_number_is_one_however_it_is_spelled_or_none(field: str) -> None:
    good = json.dumps(GOOD, separators=(",", ":")).encode()
    for spelled in SPELLED:
        assert_alike([good, good, written(field, spelled), good])


alphabet = st.characters(exclude_categories=["Cs"])
fields = st.fixed_dictionaries(
    {
        "id": st.text(max_size=9, alphabet=alphabet),
        "at": st.integers(-(2**54), 2**54),
        "level": st.floats(-60, 60) | st.integers(-60, 60),
        "count": st.integers(-(2**64), 2**64),
        "good": st.booleans(),
        "note": st.none() | st.text(max_size=12, alphabet=alphabet),
    },
    optional={"extra": st.none() | st.floats(allow_nan=False)},
)


@settings(deadline=None, max_examples=300)
@given(
    records=st.lists(fields, min_size=1, max_size=30),
    compact=st.booleans(),
    escaped=st.booleans(),
    damage=st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 200), st.binary(max_size=2), st.integers(0, 2)),
        max_size=8,
    ),
)
def test_damaged_or_not_a_record_is_read_as_if_it_were_alone(
    records: list[dict], *, compact: bool, escaped: bool, damage: list[tuple[int, int, bytes, int]]
) -> None:
    separators = (",", ":") if compact else None
    values = [json.dumps(each, separators=separators, ensure_ascii=escaped).encode() for each in records]
    for number, at, put, gone in damage:
        if number < len(values):
            value = values[number]
            values[number] = value[:at] + put + value[at + gone :]
    assert_alike(values)


def test_what_is_hard_to_read_is_refused_alike() -> None:
    made = [each for each in records(7, 6_000) if each.value and not each.headers]
    good = next(each.value for each in made if each.kind == "good")
    assert good is not None
    for first in range(0, len(made), 50):
        some = [each.value or b"" for each in made[first : first + 50]]
        # The pattern is made from the one in the middle.
        assert_alike([*some[:25], good, *some[25:]], Flight)


def test_of_records_that_are_alike_python_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [
        json.dumps(GOOD | {"count": n, "note": f"nach Süden {n}"}, ensure_ascii=False).encode()
        for n in range(FEWEST)
    ]
    decoder = Decoder(Reading)
    monkeypatch.setattr(Decoder, "_rows_of_json", lambda *_: pytest.fail("one was read by itself"))
    rows = decoder.decode([frame_of(values)]).rows
    assert rows.get_column("count").to_list() == list(range(FEWEST))
    assert rows.get_column("note").to_list()[-1] == f"nach Süden {FEWEST - 1}"
    assert rows.get_column("extra").null_count() == FEWEST


def test_a_producer_that_changes_its_way_of_writing_is_followed_and_chaos_is_left_alone() -> None:
    reader = Uniform(columns_of(Reading))
    ways = [
        json.dumps(GOOD).encode(),
        json.dumps(dict(reversed(GOOD.items())), separators=(",", ":")).encode(),
    ]
    for way in (*ways, ways[0]):
        read = reader.read(column([way] * FEWEST))
        assert read is not None
        assert read[1].all()
    assert reader.read(column([b"{}"] * FEWEST)) is None
    assert reader.read(column([ways[0]] * FEWEST)) is None, "the next batches are not tried"
    for _ in range(uniform._REST - 1):
        reader.read(column([ways[0]] * FEWEST))
    assert reader.read(column([ways[0]] * FEWEST)) is not None, "later ones are"
    assert reader.read(column([ways[0]] * (FEWEST - 1))) is None, "few are not worth a pattern"


def test_a_wide_contract_or_bounds_of_another_meaning_are_not_for_a_pattern() -> None:
    wide = defstruct("Wide", [(f"field_{n}", int) for n in range(MOST_COLUMNS + 1)])
    values = column([json.dumps({f"field_{n}": n for n in range(13)}).encode()] * FEWEST)
    assert Uniform(columns_of(wide)).read(values) is None


def test_keys_are_no_pattern() -> None:
    odd = defstruct("Odd", [("a", int), ("b", str)], rename={"a": "a.*(", "b": "b|ü"})
    values = [json.dumps({"a.*(": n, "b|ü": "x"}, ensure_ascii=False).encode() for n in range(3)]
    assert_alike([*values, b'{"aaa(": 1, "b": "x"}'], odd)
