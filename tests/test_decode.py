"""Decoding: every record is accounted for, and a bad one costs no other its place."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.envelope import ARROW_STREAM
from schemas.topics import CONTENT_TYPE_HEADER
from streams import compiled
from streams.dead_letter import MOST_BYTES, dead_letter
from streams.decode import plain
from streams.decode.records import MAX_RECORD_BYTES, Decoded, Decoder
from streams.transport.frame import Frame
from tests.stream_fixtures import ARROW_HEADERS, Reading, arrow_of, frame_of, heartbeat_headers

GOOD = {"id": "a1", "at": 1_000, "level": 1.5, "count": 3, "good": True, "note": None}
GOOD_BYTES = json.dumps(GOOD).encode()
SCHEMA = {
    "id": pl.String,
    "at": pl.Int64,
    "level": pl.Float64,
    "count": pl.Int64,
    "good": pl.Boolean,
    "note": pl.String,
    "extra": pl.Float64,
}


@pytest.fixture(autouse=True, scope="module", params=["one by one", "all at once"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whichever way records are read, what is said of them is the same."""
    compiled.loading().result()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "FEWEST", 1 if request.param == "all at once" else 10**9)
        patch.setattr(plain, "_REST", 0)
        yield


def decode(*frames: Frame) -> Decoded:
    return Decoder(Reading).decode(frames)


def but(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != name}).encode()


def table(*rows: dict) -> pl.DataFrame:
    return pl.DataFrame([{**GOOD, "extra": None, **row} for row in rows], schema=SCHEMA)


BAD_RECORDS = {
    "not JSON": (b"hello", "malformed", "value"),
    "cut": (GOOD_BYTES[:-5], "malformed", "value"),
    "nothing but a byte": (b"\x00", "malformed", "value"),
    "a list": (b"[]", "malformed", "value"),
    "null": (b"null", "malformed", "value"),
    "two documents": (GOOD_BYTES + GOOD_BYTES, "malformed", "value"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD_BYTES, "malformed", "value"),
    "NaN": (GOOD_BYTES.replace(b"1.5", b"NaN"), "malformed", "value"),
    "Infinity": (GOOD_BYTES.replace(b"1.5", b"Infinity"), "malformed", "value"),
    "minus infinity": (GOOD_BYTES.replace(b"1.5", b"-Infinity"), "malformed", "value"),
    "1e999": (GOOD_BYTES.replace(b"1.5", b"1e999"), "out_of_range", "level"),
    "2^64": (but(count=2**64), "out_of_range", "count"),
    "2^63": (but(count=2**63), "out_of_range", "count"),
    "an integer of 400 digits": (but(count=10**400), "out_of_range", "count"),
    "beyond the bound": (but(at=2**53 + 1), "out_of_range", "at"),
    "below the bound": (but(level=-50.5), "out_of_range", "level"),
    "text too long": (but(id="x" * 9), "out_of_range", "id"),
    "empty text": (but(id=""), "out_of_range", "id"),
    "text for a number": (but(count="3"), "malformed", "count"),
    "a float for an int": (but(count=3.5), "malformed", "count"),
    "a number for a flag": (but(good=1), "malformed", "good"),
    "a number for text": (but(id=7), "malformed", "id"),
    "null where a value must be": (but(at=None), "missing", "at"),
    "a field that is not there": (without("level"), "missing", "level"),
    "a field that nobody knows": (but(levle=2), "malformed", "levle"),
    "deeply nested": (b'{"note":' + b"[" * 100_000, "malformed", "note"),
    "deeply nested in an unknown field": (b'{"x":' + b'{"x":' * 100_000, "malformed", "x"),
    "a lone surrogate": (GOOD_BYTES.replace(b'"a1"', rb'"a\ud800"'), "malformed", "value"),
    "invalid UTF-8": (GOOD_BYTES.replace(b'"a1"', b'"a\xff"'), "malformed", "value"),
    "an overlong UTF-8 form": (GOOD_BYTES.replace(b'"a1"', b'"\xc0\xaf"'), "malformed", "value"),
    "no value": (None, "malformed", "value"),
    "an empty value": (b"", "malformed", "value"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_refused_with_its_reason_and_its_neighbours_stay(name: str) -> None:
    value, reason, rule = BAD_RECORDS[name]
    decoded = decode(frame_of([but(id="before"), value, but(id="after")], first=70))
    assert decoded.rows.get_column("id").to_list() == ["before", "after"]
    assert decoded.rows.get_column("_index").to_list() == [0, 2]
    (refused,) = decoded.refused
    assert (refused.reason, refused.rule) == (reason, rule), refused.detail
    assert decoded.events == 3
    letter = dead_letter("p", refused)
    assert (letter.topic, letter.partition, letter.offset) == ("readings", 0, 71)
    assert letter.record_value == value
    assert letter.detail


def test_the_last_of_duplicate_keys_counts_as_in_every_common_parser() -> None:
    decoded = decode(frame_of([GOOD_BYTES[:-1] + b', "count": 9}']))
    assert decoded.rows.get_column("count").to_list() == [9]


def test_a_nul_character_is_text_like_any_other() -> None:
    decoded = decode(frame_of([but(id="a\0b")]))
    assert decoded.rows.get_column("id").to_list() == ["a\0b"]


good_records = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=8, alphabet=st.characters(exclude_categories=["Cs"])),
        "at": st.integers(-(2**53), 2**53),
        "level": st.floats(-50, 50) | st.integers(-50, 50),
        "count": st.integers(-(2**63), 2**63 - 1),
        "good": st.booleans(),
        "note": st.none() | st.text(max_size=12, alphabet=st.characters(exclude_categories=["Cs"])),
    },
    optional={"extra": st.none() | st.floats(allow_nan=False, allow_infinity=False)},
)
good_bytes = good_records.map(lambda record: json.dumps(record).encode())
bad_bytes = st.sampled_from([value for value, _, _ in BAD_RECORDS.values()])


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.lists(st.tuples(st.booleans(), good_bytes, bad_bytes), max_size=12), max_size=4),
    headed=st.booleans(),
)
def test_every_record_is_a_row_or_a_refusal_and_rows_keep_their_order(
    parts: list[list[tuple[bool, bytes, bytes | None]]], *, headed: bool
) -> None:
    frames = []
    for number, records in enumerate(parts):
        values = [good if is_good else bad for is_good, good, bad in records]
        # A header that says nothing of the content takes the slower way through the frame.
        headers = dict.fromkeys(range(len(values)), (("trace", b"x"),)) if headed else {}
        frames.append(frame_of(values, first=100 * number, headers=headers))
    decoded = decode(*frames)
    places = list(decoded.rows.select("_frame", "_index").iter_rows())
    assert places == sorted(places)
    expected = [
        (f, i) for f, records in enumerate(parts) for i, (is_good, _, _) in enumerate(records) if is_good
    ]
    assert places == expected
    refused = {(frames.index(r.frame), r.index) for r in decoded.refused}
    everything = {(f, i) for f, records in enumerate(parts) for i in range(len(records))}
    assert refused | set(places) == everything
    assert len(decoded.refused) + decoded.rows.height == len(everything) == decoded.events
    for (f, i), row in zip(places, decoded.rows.iter_rows(named=True), strict=True):
        said = {"extra": None, **json.loads(parts[f][i][1])}
        assert {name: row[name] for name in SCHEMA} == said


@settings(deadline=None, max_examples=150)
@given(value=st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_no_bytes_whatever_stop_the_decoder(value: bytes) -> None:
    decoded = decode(frame_of([value, GOOD_BYTES]))
    assert decoded.events == 2
    assert decoded.rows.get_column("id").to_list()[-1] == "a1"


# ── heartbeats and headers ──────────────────────────────────────────────────────────────────────────


def test_a_heartbeat_is_no_event_and_the_latest_of_a_partition_counts() -> None:
    headers = {0: heartbeat_headers(5_000), 2: heartbeat_headers(4_000)}
    decoded = decode(frame_of([b"", GOOD_BYTES, None], partition=3, headers=headers))
    assert decoded.heartbeats == {3: 5_000}
    assert decoded.events == decoded.rows.height == 1
    assert decoded.refused == []


@pytest.mark.parametrize("said", ["soon", "", "1.5", "1e3", "9" * 5_000, str(2**53 + 1), str(-(2**62)), "∞"])
def test_a_heartbeat_that_says_no_time_is_refused(said: str) -> None:
    decoded = decode(frame_of([b"", GOOD_BYTES], headers={0: heartbeat_headers(said)}))
    assert decoded.heartbeats == {}
    assert [(r.reason, r.rule) for r in decoded.refused] == [("malformed", "value")]
    assert "tidemill-watermark" in decoded.refused[0].detail
    assert decoded.rows.height == 1


def test_a_null_header_says_nothing() -> None:
    headers = {
        0: ((CONTENT_TYPE_HEADER, None), ("tidemill-watermark", None)),
        1: (("tidemill-watermark", None),),
    }
    decoded = decode(frame_of([GOOD_BYTES, None], headers=headers))
    assert decoded.rows.height == 1
    (refused,) = decoded.refused
    assert dead_letter("p", refused).record_headers == [("tidemill-watermark", b"")]


@pytest.mark.parametrize("content_type", [b"application/json", b"application/json; charset=utf-8"])
def test_json_may_be_named_as_such(content_type: bytes) -> None:
    decoded = decode(frame_of([GOOD_BYTES], headers={0: ((CONTENT_TYPE_HEADER, content_type),)}))
    assert decoded.rows.height == 1


@pytest.mark.parametrize("content_type", [b"application/avro", b"", b"\xff\xfe"])
def test_an_unknown_content_type_is_an_unknown_schema(content_type: bytes) -> None:
    headers = {1: ((CONTENT_TYPE_HEADER, content_type),)}
    decoded = decode(frame_of([GOOD_BYTES, GOOD_BYTES, GOOD_BYTES], headers=headers))
    assert [(r.reason, r.rule, r.index) for r in decoded.refused] == [
        ("unknown_schema", CONTENT_TYPE_HEADER, 1)
    ]
    assert decoded.rows.get_column("_index").to_list() == [0, 2]


def test_a_record_too_large_for_a_letter_is_named_by_its_digest() -> None:
    huge = b'{"id": "' + b"x" * MAX_RECORD_BYTES + b'"}'
    decoded = decode(frame_of([GOOD_BYTES, huge, GOOD_BYTES]))
    assert decoded.rows.height == 2
    (refused,) = decoded.refused
    assert refused.reason == "too_large"
    # One megabyte beyond what fits a letter: only the digest travels.
    letter = dead_letter("p", decode(frame_of([b"[" * (MOST_BYTES + 1)])).refused[0])
    assert letter.record_value is None
    assert "SHA-256" in letter.detail


# ── Arrow ───────────────────────────────────────────────────────────────────────────────────────────


def arrow(*tables: pl.DataFrame | bytes) -> Decoded:
    values = [t if isinstance(t, bytes) else arrow_of(t) for t in tables]
    return decode(frame_of(values, headers=dict.fromkeys(range(len(values)), ARROW_HEADERS)))


def test_rows_of_an_arrow_record_are_events_with_their_place_in_it() -> None:
    decoded = arrow(table({"id": "a"}, {"id": "b"}), table({"id": "c"}))
    assert list(decoded.rows.select("id", "_index", "_row").iter_rows()) == [
        ("a", 0, 0),
        ("b", 0, 1),
        ("c", 1, 0),
    ]
    assert decoded.events == 3


def test_json_and_arrow_records_keep_the_order_of_their_offsets() -> None:
    values = [but(id="j0"), arrow_of(table({"id": "a1"}, {"id": "a2"})), but(id="j3")]
    decoded = decode(frame_of(values, headers={1: ARROW_HEADERS}), frame_of([but(id="last")], partition=1))
    assert decoded.rows.get_column("id").to_list() == ["j0", "a1", "a2", "j3", "last"]


def test_an_arrow_record_without_rows_holds_no_event() -> None:
    decoded = arrow(table().clear())
    assert decoded.events == 0
    assert decoded.refused == []


BAD_ROWS = {
    "null where a value must be": ({"at": None}, "missing", "at"),
    "beyond the bound": ({"at": 2**53 + 1}, "out_of_range", "at"),
    "not a number": ({"level": float("nan")}, "out_of_range", "level"),
    "infinite": ({"level": float("inf")}, "out_of_range", "level"),
    "infinite where no bound is": ({"extra": float("-inf")}, "out_of_range", "extra"),
    "text too long": ({"id": "x" * 9}, "out_of_range", "id"),
    "empty text": ({"id": ""}, "out_of_range", "id"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_arrow_row_is_refused_with_its_own_bytes_and_its_neighbours_stay(name: str) -> None:
    change, reason, rule = BAD_ROWS[name]
    decoded = arrow(table({"id": "before"}, change, {"id": "after"}))
    assert decoded.rows.get_column("id").to_list() == ["before", "after"]
    assert decoded.rows.get_column("_row").to_list() == [0, 2]
    (refused,) = decoded.refused
    assert (refused.reason, refused.rule, refused.row) == (reason, rule, 1)
    letter = dead_letter("p", refused)
    assert letter.row == 1
    assert letter.record_value is not None
    assert_frame_equal(pl.read_ipc_stream(letter.record_value), table(change))


def test_a_row_that_breaks_several_bounds_is_refused_once() -> None:
    decoded = arrow(table({"at": None, "level": 99.0, "id": ""}, {}))
    assert len(decoded.refused) == 1
    assert decoded.events == 2


def cast(**dtypes: pl.DataType | type[pl.DataType]) -> pl.DataFrame:
    return table({}, {}).with_columns(pl.col(name).cast(dtype) for name, dtype in dtypes.items())


@pytest.mark.parametrize(
    "good",
    [
        cast(count=pl.Int8, at=pl.UInt32),
        cast(level=pl.Float32),
        cast(level=pl.Int16),
        cast(id=pl.Categorical),
        cast(note=pl.Null, extra=pl.Null),
        table({}).drop("extra"),
        table({}).select(sorted(SCHEMA)),
    ],
    ids=[
        "narrow integers",
        "float32",
        "integers for floats",
        "dictionary",
        "all null",
        "default",
        "other order",
    ],
)
def test_arrow_types_that_hold_the_same_values_are_taken(good: pl.DataFrame) -> None:
    decoded = arrow(good)
    assert decoded.refused == []
    assert decoded.rows.height == good.height
    assert dict(decoded.rows.select(*SCHEMA).schema) == {n: t() for n, t in SCHEMA.items()}


@pytest.mark.parametrize(
    ("bad", "reason", "rule"),
    [
        (cast(count=pl.String), "unknown_schema", "count"),
        (cast(count=pl.Float64), "unknown_schema", "count"),
        (cast(count=pl.Boolean), "unknown_schema", "count"),
        (cast(at=pl.Datetime("us")), "unknown_schema", "at"),
        (cast(level=pl.String), "unknown_schema", "level"),
        (cast(id=pl.Binary), "unknown_schema", "id"),
        (cast(good=pl.Int8), "unknown_schema", "good"),
        (table({}).drop("level"), "missing", "level"),
        (table({}).with_columns(levle=1), "unknown_schema", "levle"),
        (pl.DataFrame(), "missing", "id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrow_columns_of_another_kind_refuse_the_record(bad: pl.DataFrame, reason: str, rule: str) -> None:
    decoded = arrow(table({"id": "before"}), bad, table({"id": "after"}))
    assert [(r.reason, r.rule, r.index) for r in decoded.refused] == [(reason, rule, 1)], decoded.refused
    assert decoded.rows.get_column("id").to_list() == ["before", "after"]


def test_an_integer_of_64_unsigned_bits_is_refused_by_its_row() -> None:
    wide = table({}, {}, {}).with_columns(count=pl.Series([1, 2**63, 3], dtype=pl.UInt64))
    decoded = arrow(wide)
    assert decoded.rows.get_column("count").to_list() == [1, 3]
    (refused,) = decoded.refused
    assert (refused.reason, refused.rule, refused.row) == ("out_of_range", "count", 1)
    assert pl.read_ipc_stream(dead_letter("p", refused).record_value or b"").item(0, "count") == 2**63


def test_an_arrow_stream_cut_anywhere_is_refused_and_never_read_as_shorter() -> None:
    whole = arrow_of(table({"id": "a"}, {"id": "b", "note": "of more bytes than a view holds inline"}))
    # Messages begin and end at multiples of eight bytes: there a reader sees a whole, shorter stream.
    for length in (*range(8, len(whole), 8), 1, 7, len(whole) - 1):
        decoded = arrow(table({"id": "before"}), whole[:length])
        assert decoded.rows.height == 1, f"cut at {length}"
        assert [(r.reason, r.index) for r in decoded.refused] == [("malformed", 1)], f"cut at {length}"


def test_bytes_after_an_arrow_stream_are_not_ignored() -> None:
    one = arrow_of(table({}))
    assert [r.reason for r in arrow(one + one).refused] == ["malformed"]
    assert [r.reason for r in arrow(one + b"\0").refused] == ["malformed"]


def test_json_named_as_arrow_is_refused() -> None:
    assert [r.reason for r in arrow(GOOD_BYTES).refused] == ["malformed"]


@settings(deadline=None, max_examples=150)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_no_damage_to_an_arrow_record_stops_the_decoder(flips: list[tuple[int, int]]) -> None:
    """The reader panics on some (an error that `except Exception` does not catch)."""
    damaged = bytearray(arrow_of(table({"id": "a"}, {"id": "b", "note": "x"})))
    for at, byte in flips:
        damaged[at % len(damaged)] = byte
    decoded = arrow(table({"id": "before"}), bytes(damaged))
    assert decoded.rows.get_column("id").to_list()[0] == "before"
    assert decoded.events == decoded.rows.height + len(decoded.refused)


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_a_length_that_no_memory_holds_is_refused_before_the_reader_believes_it(compression: str) -> None:
    """Rust ends the process where it cannot allocate: one such record would have killed all workers."""
    sink = io.BytesIO()
    rows = table({"id": "a"}, {"id": "b", "note": "of more bytes than a view holds inline"})
    rows.write_ipc_stream(sink, compression=compression)
    whole = sink.getvalue()
    assert arrow(whole).rows.height == 2
    refused = 0
    for at in range(0, len(whole) - 8, 8):
        for huge in (2**57 + 2, 2**62, -(2**63)):
            decoded = arrow(whole[:at] + huge.to_bytes(8, "little", signed=True) + whole[at + 8 :])
            assert decoded.events >= 1
            refused += len(decoded.refused)
    assert refused > 100


# ── both ────────────────────────────────────────────────────────────────────────────────────────────

wild_records = st.fixed_dictionaries(
    {
        "id": st.none() | st.text(max_size=10, alphabet="aé\U0001d4b3 "),
        "at": st.none() | st.integers(-(2**54), 2**54),
        "level": st.none() | st.floats(-60, 60),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
        "good": st.none() | st.booleans(),
        "note": st.none() | st.text(max_size=3, alphabet="ab"),
        "extra": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    }
)


@settings(deadline=None, max_examples=80)
@given(records=st.lists(wild_records, min_size=1, max_size=6))
def test_json_and_arrow_agree_on_what_is_valid(records: list[dict]) -> None:
    by_json = decode(frame_of([json.dumps(r).encode() for r in records]))
    by_arrow = arrow(pl.DataFrame(records, schema=SCHEMA))
    assert by_json.rows.get_column("_index").to_list() == by_arrow.rows.get_column("_row").to_list()
    assert_frame_equal(by_json.rows.select(*SCHEMA), by_arrow.rows.select(*SCHEMA))
    # Of several faults in a record either may name another first; with one fault they name the same.
    if len(records) == 1 and sum(_faults(records[0])) == 1:
        assert [(r.reason, r.rule) for r in by_json.refused] == [(r.reason, r.rule) for r in by_arrow.refused]


def _faults(record: dict) -> list[bool]:
    """For each field, whether the contract refuses it; asked of msgspec, one field at a time."""
    faults = []
    for name, value in record.items():
        try:
            msgspec.json.decode(json.dumps({**GOOD, name: value}), type=Reading)
        except msgspec.ValidationError:
            faults.append(True)
        else:
            faults.append(False)
    return faults


def test_a_contract_that_takes_unknown_fields_takes_them_in_both_forms() -> None:
    class Loose(msgspec.Struct):
        id: str
        """Anything else is ignored."""

    decoder = Decoder(Loose)
    frame = frame_of(
        [b'{"id": "a", "more": [1]}', arrow_of(pl.DataFrame({"id": ["b"], "more": [1]}))],
        headers={1: ((CONTENT_TYPE_HEADER, ARROW_STREAM.encode()),)},
    )
    assert decoder.decode([frame]).rows.get_column("id").to_list() == ["a", "b"]


def test_renamed_fields_go_by_their_name_in_the_record() -> None:
    class Camel(msgspec.Struct, rename="camel"):
        flight_id: str
        dep_delay: float = 0.5

    rows = Decoder(Camel).decode([frame_of([b'{"flightId": "a"}'])]).rows
    assert list(rows.select("flightId", "depDelay").iter_rows()) == [("a", 0.5)]


def test_sparse_offsets_reach_the_dead_letter() -> None:
    decoded = decode(frame_of([GOOD_BYTES, b"x", b"y"], offsets=[3, 8, 20], first=2))
    assert [dead_letter("p", r).offset for r in decoded.refused] == [8, 20]
