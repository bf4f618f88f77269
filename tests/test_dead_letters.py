"""What bad input gets on a real broker: a letter with reason, bytes and origin; good neighbours stay."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import pytest

from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.envelope import ARROW_STREAM, unwrap_as
from tests.worker_fixtures import Cluster, Outcome, Sent, Worker, wait_until

GOOD = dict(topics.FLIGHTS_SCHEDULED.examples[0])
FAR_MS = int(time.time() * 1000) + 400 * 86_400_000


def flight(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(field: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != field}).encode()


def arrow(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pl.DataFrame(rows).write_ipc_stream(sink)
    return sink.getvalue()


ARROW = (("content-type", ARROW_STREAM.encode()),)

# (what, value, headers, reason, rule)
TABLE: list[tuple[str, bytes | None, tuple[tuple[str, bytes], ...], str, str]] = [
    ("no JSON at all", b"\x00\xff{", (), "malformed", "value"),
    ("JSON that is cut off", flight()[:40], (), "malformed", "value"),
    ("a wrong type", flight(distance="far"), (), "malformed", "distance"),
    ("an unknown field", flight(colour="red"), (), "malformed", "colour"),
    ("a missing key", without("flight_id"), (), "missing", "flight_id"),
    ("a null key", flight(flight_id=None), (), "missing", "flight_id"),
    ("an empty key", flight(flight_id=""), (), "out_of_range", "flight_id"),
    ("a missing time", without("scheduled"), (), "missing", "scheduled"),
    (
        "a time far in the future",
        flight(scheduled=FAR_MS),
        (),
        "future_event_time",
        "not_in_the_future(scheduled)",
    ),
    ("NaN", flight(distance=0).replace(b'"distance": 0', b'"distance": NaN'), (), "malformed", "value"),
    (
        "an infinity",
        flight(distance=0).replace(b'"distance": 0', b'"distance": 1e999'),
        (),
        "out_of_range",
        "",
    ),
    ("a number out of a rule's range", flight(distance=99_999.0), (), "out_of_range", "between(distance)"),
    ("an unknown content type", flight(), (("content-type", b"text/csv"),), "unknown_schema", "content-type"),
    ("Arrow that is none", b"ARROW?", ARROW, "malformed", "value"),
    ("Arrow of other columns", arrow([{"a": 1}]), ARROW, "unknown_schema", "a"),
    ("a record without a value", None, (), "malformed", "value"),
]


@dataclass
class Outcomes:
    letters: dict[int, DeadLetter]
    rows: pl.DataFrame


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    home = tmp_path_factory.mktemp("letters")
    topic = topics.FLIGHTS_SCHEDULED.name
    good = [Sent(topic, 0, None, flight(flight_id=f"good-{n}")) for n in range(len(TABLE) + 1)]
    mixed = [good[0]]
    for neighbour, (what, value, headers, _, _) in zip(good[1:], TABLE, strict=True):
        mixed += [Sent(topic, 0, what.encode(), value, headers, "bad"), neighbour]
    half = arrow(
        [{**GOOD, "flight_id": "arrow-good"}, {**GOOD, "flight_id": "arrow-bad", "distance": 99_999.0}]
    )
    mixed.append(Sent(topic, 0, b"half an Arrow record", half, ARROW, "bad"))
    with Cluster(home) as cluster, Worker(cluster, home / "picky", "picky") as worker:
        cluster.push(mixed)
        outcome = Outcome(cluster, worker.home, "picky")
        wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "all records accounted for")
        letters = [
            unwrap_as(e, DeadLetter) for _, e in cluster.read(topics.DEAD_LETTERS.name, pipeline="picky")
        ]
        assert worker.end() == 0
        held = outcome.dataset.rows(topic, version=outcome.version(), start_ms=0, end_ms=2**60)
        yield Outcomes({letter.offset: letter for letter in letters}, held)


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[row[0] for row in TABLE])
def test_bad_input_is_a_dead_letter_with_reason_bytes_and_origin(outcomes: Outcomes, number: int) -> None:
    what, value, headers, reason, rule = TABLE[number]
    letter = outcomes.letters[1 + 2 * number]
    assert (letter.topic, letter.partition) == (topics.FLIGHTS_SCHEDULED.name, 0)
    assert letter.reason == reason, letter.detail
    assert letter.rule == rule or not rule
    assert letter.record_value == value
    assert letter.record_key == what.encode()
    assert tuple(letter.record_headers) == headers
    assert len(letter.detail) > 10


def test_good_neighbours_are_rows_and_the_sum_adds_up(outcomes: Outcomes) -> None:
    ids = set(outcomes.rows.get_column("flight_id"))
    assert ids == {f"good-{n}" for n in range(len(TABLE) + 1)} | {"arrow-good"}
    assert len(outcomes.letters) == len(TABLE) + 1


def test_a_bad_row_of_an_arrow_record_is_a_letter_of_its_own_bytes(outcomes: Outcomes) -> None:
    letter = outcomes.letters[1 + 2 * len(TABLE)]
    assert (letter.reason, letter.rule, letter.row) == ("out_of_range", "between(distance)", 1)
    assert letter.record_value is not None
    assert pl.read_ipc_stream(letter.record_value).get_column("flight_id").to_list() == ["arrow-bad"]
