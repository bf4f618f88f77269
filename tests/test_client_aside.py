"""Beside its answers: a service takes short turns while it builds, and its stop is no broken model."""

from __future__ import annotations

import sys
import threading

import pytest

from schemas.client import load as loading
from schemas.client.aside import aside
from schemas.client.load import load
from schemas.errors import TidemillError
from tests.client_fixtures import published, weights

MANIFEST = published("risk", 1, weights(0), store="http://models/").manifest


def test_threads_take_short_turns_until_the_last_one_is_out() -> None:
    before_s = sys.getswitchinterval()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with aside():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with aside():
        assert sys.getswitchinterval() < before_s
    assert sys.getswitchinterval() < before_s, "the other one is still at work"
    leave.set()
    thread.join()
    assert sys.getswitchinterval() == before_s


def test_what_fails_inside_leaves_the_turns_as_they_were() -> None:
    before_s = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), aside():
        _ = 1 / 0
    assert sys.getswitchinterval() == before_s


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_service_that_is_stopped_while_it_loads_is_not_told_that_the_model_is_broken(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr(loading, "_network", stopped)
    with pytest.raises(stop):
        load(MANIFEST, b"")


def test_a_panic_while_it_loads_is_a_model_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As those of Rust come through."""

    def panics(*_: object) -> None:
        raise Panic

    monkeypatch.setattr(loading, "_network", panics)
    with pytest.raises(TidemillError, match="cannot be loaded: Panic"):
        load(MANIFEST, b"")
