"""Records that are written plainly are read by a compiled walk: as msgspec would, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct, defstruct

from loadtest.faults.malformed import records
from schemas.raw import Flight
from streams import compiled
from streams.decode import plain
from streams.decode.columns import columns_of
from streams.decode.plain import FEWEST, MOST_COLUMNS, PlainRecords
from streams.decode.records import Decoder
from streams.transport.frame import column
from tests.stream_fixtures import Reading, frame_of


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    compiled.loading().result()


@pytest.fixture(autouse=True, scope="module")
def dirty() -> Iterator[None]:
    """Memory as a worker has it after a while: what is not written is not 0."""
    clean = plain._Found.room

    def room(columns: int, records: int) -> plain._Found:
        found = clean(columns, records)
        for each in (found.wholes, found.reals, found.starts, found.lengths, found.states, found.alike):
            each.view(np.uint8).fill(0xB7)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain._Found, "room", room)
        yield


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
        patch.setattr(plain, "FEWEST", 10**9)
        one_by_one = outcome(values, contract)
        # Also where hardly any is plain.
        patch.setattr(plain, "FEWEST", 1)
        patch.setattr(plain, "_AT_LEAST", 0.0)
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
    reader = PlainRecords(columns_of(Reading))
    ways = [
        json.dumps(GOOD).encode(),
        json.dumps(dict(reversed(GOOD.items())), separators=(",", ":")).encode(),
    ]
    for way in (*ways, ways[0]):
        read = reader.read(column([way] * FEWEST))
        assert read is not None
        assert read[1].all()
        assert reader._layout is not None
        assert (reader._layout._follows < len(reader._columns)).all(), "what is expected is a column"
    assert reader.read(column([b"{}"] * FEWEST)) is None
    assert reader.read(column([ways[0]] * FEWEST)) is None, "the next batches are not tried"
    for _ in range(plain._REST - 1):
        reader.read(column([ways[0]] * FEWEST))
    assert reader.read(column([ways[0]] * FEWEST)) is not None, "later ones are"
    assert reader.read(column([ways[0]] * (FEWEST - 1))) is None, "few are not worth a walk"


def test_a_contract_that_is_too_wide_or_has_bounds_of_another_meaning_is_left_alone() -> None:
    wide = defstruct("Wide", [(f"field_{n}", int) for n in range(MOST_COLUMNS + 1)])
    odd = defstruct("Odd", [("even", Annotated[int, Meta(multiple_of=2)])])
    for contract in (wide, odd):
        names = contract.__struct_fields__
        values = column([json.dumps(dict.fromkeys(names, 2)).encode()] * FEWEST)
        assert PlainRecords(columns_of(contract)).read(values) is None


def test_keys_are_read_as_they_are_written() -> None:
    odd = defstruct("Odd", [("a", int), ("b", str)], rename={"a": "a.*(", "b": "b|ü"})
    values = [json.dumps({"a.*(": n, "b|ü": "x"}, ensure_ascii=False).encode() for n in range(3)]
    assert_alike([*values, b'{"aaa(": 1, "b": "x"}'], odd)


class Limited(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of each kind, and a default outside its own."""

    whole: Annotated[int, Meta(ge=-3, lt=10)]
    above: Annotated[int, Meta(gt=-3, le=10)]
    real: Annotated[float, Meta(gt=-0.5, le=2.5)]
    below: Annotated[float, Meta(ge=-0.5, lt=2.5)] | None
    a_rather_long_name_of_a_text: Annotated[str, Meta(min_length=2, max_length=5)]
    short: Annotated[str, Meta(max_length=3)] = "by default"


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(-5, 12),
            st.integers(-5, 12),
            st.sampled_from([-0.5, -0.4999999999999999, 2.5, 2.5000000000000004, 1e-320, 25e-1])
            | st.floats(-1, 3),
            st.none() | st.sampled_from([-0.5, -0.5000000000000001, 2.5, 2.4999999999999996]),
            st.text("aü€𝄞", max_size=7),
            st.none() | st.text("aü€𝄞", max_size=4),
            st.permutations(range(6)),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_bounds_are_held_to_a_hair_and_characters_are_no_bytes(rows: list[tuple]) -> None:
    names = Limited.__struct_fields__
    values = []
    for *row, order in rows:
        fields = {names[at]: row[at] for at in order if at < 5 or row[at] is not None}
        values.append(json.dumps(fields, ensure_ascii=False).encode())
    assert_alike(values, Limited)


def test_a_wide_contract_is_walked_too() -> None:
    wide = defstruct("Wide", [(f"field_{n}", int | None) for n in range(MOST_COLUMNS)])
    values = [
        json.dumps({f"field_{n}": n * row for n in range(MOST_COLUMNS)}).encode() for row in range(FEWEST)
    ]
    rows, alike = PlainRecords(columns_of(wide)).read(column(values)) or pytest.fail("left to msgspec")
    assert alike.all()
    assert rows.row(7) == tuple(7 * n for n in range(MOST_COLUMNS))


def test_a_key_that_goes_on_in_the_next_record_is_none() -> None:
    """Records lie one behind the other while they are walked."""
    good = json.dumps(GOOD, separators=(",", ":")).encode()
    for cut in range(len(good)):
        assert_alike([good[:cut], good[cut:], good])


def test_records_none_of_which_is_text_are_all_left_to_msgspec() -> None:
    bad = json.dumps(GOOD).encode().replace(b"a1", b"\xff\xfe")
    assert PlainRecords(columns_of(Reading)).read(column([bad] * FEWEST)) is None
    assert_alike([bad] * FEWEST)


def test_where_nothing_can_be_compiled_all_is_read_one_by_one() -> None:
    program = (
        "from streams import compiled; from streams.decode import plain;"
        "from streams.decode.columns import columns_of;"
        "from streams.transport.frame import column; from tests.stream_fixtures import Reading;"
        "reader = plain.PlainRecords(columns_of(Reading)); values = column([b'{}'] * plain.FEWEST);"
        "assert reader.read(values) is None; assert compiled.loading().exception() is not None;"
        "assert reader.read(values) is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "NUMBA_CACHE_DIR" in done.stdout + done.stderr
