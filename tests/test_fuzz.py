"""Records that are hard to read: none crashes or stalls ingest, and each is accounted for."""

from __future__ import annotations

import itertools

from loadtest.faults import fuzz as fuzzing
from loadtest.faults.fuzz import fuzz
from loadtest.faults.malformed import Made, records

RECORDS = 12_000


def test_a_seed_gives_the_same_records() -> None:
    assert list(records(3, 500)) == list(records(3, 500))
    assert list(records(3, 500)) != list(records(4, 500))


def test_every_record_that_is_hard_to_read_is_a_row_or_a_dead_letter() -> None:
    """The long form is run by hand: `tidemill bench fuzz --records 1000000`."""
    fuzzed = fuzz(RECORDS, seed=20130101)
    assert fuzzed.holds(), fuzzed.wrong
    assert fuzzed.records == RECORDS
    assert fuzzed.rows > RECORDS / 10
    assert fuzzed.letters > RECORDS / 2
    assert set(fuzzed.reasons) >= {"malformed", "missing", "out_of_range", "unknown_schema"}
    assert len(fuzzed.kinds) > 20


def test_the_account_finds_a_record_that_became_nothing_and_one_that_became_two(monkeypatch) -> None:
    good = [each for each in records(1, 200) if each.kind == "good"][:5]
    nothing = Made("good", good[0].value, least=2, most=2)
    for batch, unaccounted in (([*good], 0), ([*good[1:], nothing], 1)):
        monkeypatch.setattr(fuzzing, "records", lambda *_, batch=batch: itertools.chain(batch))
        fuzzed = fuzz(len(batch), seed=1)
        assert fuzzed.unaccounted == unaccounted
        assert fuzzed.holds() is (unaccounted == 0)


def test_a_batch_that_raises_is_a_crash(monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("as the test wants")

    monkeypatch.setattr(fuzzing.Ingest, "prepare", broken)
    fuzzed = fuzz(10, seed=1)
    assert (fuzzed.crashes, fuzzed.holds()) == (1, False)
    assert "as the test wants" in fuzzed.wrong[0]
