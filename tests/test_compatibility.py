"""A change of a contract is said in words, and one that breaks somebody is found."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import compatibility
from schemas.compatibility import changes, essence, released
from schemas.json_schema import documents

TODAY = essence(documents())
NAME = "flights.arrived.v1.json"


def with_change(change: Any) -> dict[str, Any]:
    changed = copy.deepcopy(TODAY)
    change(changed)
    return changed


def properties(them: dict[str, Any]) -> dict[str, Any]:
    return them[NAME]["$defs"]["Arrival"]["properties"]


def required(them: dict[str, Any]) -> list[str]:
    return them[NAME]["$defs"]["Arrival"]["required"]


CASES = {
    "the field is gone": (lambda c: properties(c).pop("arr_delay"), True),
    "a new field that must be there": (
        lambda c: (properties(c).update(gate={"type": "string"}), required(c).append("gate")),
        True,
    ),
    "a new field that may be left out": (lambda c: properties(c).update(gate={"type": "string"}), False),
    "may be left out now": (lambda c: required(c).remove("air_time"), False),
    "took null and takes it no more": (
        lambda c: properties(c).update(tailnum=properties(c)["tailnum"]["anyOf"][0]),
        True,
    ),
    "takes null now": (
        lambda c: properties(c).update(air_time={"anyOf": [properties(c)["air_time"], {"type": "null"}]}),
        False,
    ),
    "was whole numbers and takes all numbers now": (
        lambda c: properties(c)["arrived"].update(type="number"),
        False,
    ),
    "took number and takes it no more": (lambda c: properties(c)["arr_delay"].update(type="integer"), True),
    "least: 0": (lambda c: properties(c)["air_time"].update(minimum=5), True),
    "most length: 16": (lambda c: properties(c)["carrier"].update(maxLength=2), True),
    "most length: 16 before, none now": (lambda c: properties(c)["carrier"].pop("maxLength"), False),
    'takes only "AA"': (lambda c: properties(c)["carrier"].update(enum=["AA"]), True),
    "the type is gone": (lambda c: c.pop(NAME), True),
}


@pytest.mark.parametrize("words", CASES)
def test_a_change_is_said_in_words_and_known_to_break_or_not(words: str) -> None:
    change, breaks = CASES[words]
    found = changes(TODAY, with_change(change))
    assert len(found) == 1, found
    assert words in found[0].words, found
    assert found[0].breaks == breaks
    assert found[0].contract == "flights.arrived.v1"


def test_a_new_type_breaks_nobody_and_nothing_changed_is_nothing_said() -> None:
    assert changes(TODAY, TODAY) == []
    newer = with_change(lambda c: c.update({"flights.diverted.v1.json": c[NAME]}))
    assert [(c.words, c.breaks) for c in changes(TODAY, newer)] == [("a new type", False)]


def test_in_a_topic_that_promises_full_compatibility_a_wider_value_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compatibility, "_is_full", lambda schema: True)
    (found,) = changes(TODAY, with_change(CASES["takes null now"][0]))
    assert found.breaks


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_undoing_a_break_or_the_change_itself_breaks_for_any_bound(data: st.DataObject) -> None:
    """A bound that moves is a break in exactly one of the two directions."""
    name, key = data.draw(
        st.sampled_from([("carrier", "maxLength"), ("carrier", "minLength"), ("arrived", "maximum")])
    )
    old = TODAY[NAME]["$defs"]["Arrival"]["properties"][name][key]
    other = data.draw(st.integers(0, 2**53).filter(lambda n: n != old))
    newer = with_change(lambda c: properties(c)[name].update({key: other}))
    (there,), (back,) = changes(TODAY, newer), changes(newer, TODAY)
    assert there.breaks != back.breaks


def test_the_contracts_break_nobody_who_has_the_released_ones() -> None:
    assert [str(c) for c in changes(released(), TODAY) if c.breaks] == []


def test_the_command_names_the_breaks_and_fails(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compatibility, "RELEASED", tmp_path / "released.json")
    monkeypatch.setattr("sys.argv", ["compatibility"])
    newer = with_change(lambda c: properties(c).update(gate={"type": "string"}))
    (tmp_path / "released.json").write_text(json.dumps(newer))
    assert compatibility.main() == 1
    out, err = capsys.readouterr()
    assert "BREAK flights.arrived.v1 gate: the field is gone" in out
    assert "--accept" in err
    monkeypatch.setattr("sys.argv", ["compatibility", "--accept"])
    assert compatibility.main() == 0
    monkeypatch.setattr("sys.argv", ["compatibility"])
    assert compatibility.main() == 0
