"""The door's benchmark: what a door acknowledges under kills is found again, and a loss would be noticed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from infra.settings import Settings
from loadtest.door.form import FORMS, MANY, Acknowledged, event, number_of, read, request
from loadtest.door.held import Found, compare
from loadtest.door.run import Options, measure
from loadtest.ingest.readings import Reading, declare
from schemas.errors import InvalidConfiguration


def test_nothing_that_was_acknowledged_is_lost_when_door_and_broker_are_killed(tmp_path: Path) -> None:
    options = Options(forms=("binary",), seconds=0.5, rounds=1, connections=16, processes=1, kills=2)
    result = measure(options, cache_dir=Settings().cache_dir, said=lambda _: None)
    assert result.kills == ["door", "broker"]
    assert result.holds()
    assert result.found is not None
    assert result.found.acknowledged > 1_000
    assert result.under_kills is not None
    assert result.under_kills.broken >= 16  # the door took the connections along
    assert [each.form for each in result.sent] == ["binary"]
    assert all(each.unanswered == 0 and each.cpu_us_per_event["door"] > 0 for each in result.sent)
    written = json.loads(result.write(tmp_path).read_text())
    assert written["account"]["lost"] == 0
    assert written["targets"]["binary"]["rate"] > 0
    result.found = Found(acknowledged=1, lost=1, misplaced=0, twice=0)
    assert not result.holds()


def test_a_form_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="'carrier-pigeon'; there are plain"):
        measure(Options(forms=("carrier-pigeon",)), cache_dir=tmp_path, said=lambda _: None)


def test_the_account_tells_a_loss_a_wrong_place_and_a_double() -> None:
    found = {0: np.array([1, 2, 3]), 1: np.array([7, 2])}
    before = {0: 10, 1: 0}

    def account(*acknowledged: tuple[int, int, int]) -> Found:
        return compare(np.array(acknowledged, dtype=np.int64), found, before)

    assert account((1, 0, 10), (3, 0, 12), (7, 1, 0)) == Found(acknowledged=3, lost=0, misplaced=0, twice=1)
    assert account((7, 1, -1)).misplaced == 0  # a repeated request hid where it lies
    assert account((1, 0, 11)).misplaced == 1
    assert account((7, 1, 2)).misplaced == 1  # behind the end
    assert account((4, 0, 12)).lost == 1


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_read_for_each_event_and_an_event_keeps_its_number(form: str) -> None:
    numbers = [7, 8] if form in MANY else [7]
    sent = request(form, numbers)
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert event(7) in body
    good = {
        "batch": b'{"events":[{"status":200,"partition":1,"offset":5},{"status":422,"error":"x"}]}',
        "records": b'{"error_code":200,"partition_id":1,"offset":5}\n{"error_code":422,"message":"x"}\n',
    }.get(form, b'{"topic":"t","partition":1,"offset":5}')
    assert read(form, 200, good, numbers) == [Acknowledged(7, 1, 5), 422][: len(numbers)]
    assert read(form, 429, b'{"error":"full"}', numbers) == [429] * len(numbers)


def test_the_events_are_readings_of_the_declared_topic() -> None:
    (contract,) = declare().contracts
    assert contract is Reading
    for number in (0, 89, 12_345_678):
        assert number_of(event(number)) == number
        assert msgspec.json.decode(event(number), type=Reading).id == str(number)
