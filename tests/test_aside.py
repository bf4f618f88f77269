"""Beside its answers: a service takes short turns while it builds, and its stop is no broken model."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from loadtest.swap import models
from schemas import signature, tabular
from schemas.aside import _answering as in_progress
from schemas.aside import answering, aside, breathe
from schemas.client import load as loading
from schemas.client.load import load
from schemas.client.vouch import vouched
from schemas.errors import TidemillError
from schemas.signature import TrustedKeys
from tests.client_fixtures import published, weights
from trainers.keys import KeyFolder

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


def test_a_network_is_made_hollow_and_takes_the_weights_as_they_are() -> None:
    layer = torch.nn.Linear(200, 200, bias=False)
    with loading._hollow(at_most=40_000):
        hollow = torch.nn.Linear(200, 200, bias=False)
        with pytest.raises(ValueError, match="asks for more than the 40000 weights"):
            torch.nn.Linear(1, 1)
    assert hollow.weight.is_meta, "it takes no memory"
    with pytest.raises(RuntimeError, match="size mismatch"):
        hollow.load_state_dict({"weight": layer.weight[:1]}, assign=True)
    weights = layer.state_dict()
    hollow.load_state_dict(weights, assign=True)
    assert hollow.weight.data_ptr() == layer.weight.data_ptr(), "it is no copy"


def test_weights_are_looked_at_whole_though_a_part_at_a_time() -> None:
    weights = torch.arange(40_000.0).reshape(200, 200)
    assert loading._is_finite(weights)
    for broken in (float("nan"), float("inf"), -float("inf")):
        weights[-1, -1] = broken
        assert not loading._is_finite(weights)
    assert not loading._is_finite(torch.tensor([float("inf"), -float("inf")]))
    assert loading._is_finite(torch.full((9,), 3e38)), "their sum is infinite, and none of them is"
    assert loading._is_finite(torch.empty(0))


def test_no_step_of_a_load_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of thousands of words and the warm-up are parted, too."""
    content = models.weights(1, 64)
    manifest = models.event(models.NAME, 1, content, store="http://models/", size=64).manifest
    places: list[str] = []
    for module in (loading, tabular):
        monkeypatch.setattr(module, "breathe", lambda: places.append(sys._getframe(1).f_code.co_name))
    model = load(manifest, content)
    assert places.count("_codes") == len(model.network.config["categorical"])
    assert places.count("encode") > len(models.WORDS) + models.NUMBERS
    assert not any(weight.is_meta for weight in model.network.state_dict().values())


def test_work_aside_pauses_for_longer_than_it_has_worked_and_other_work_never() -> None:
    def worked_and_paused_s() -> tuple[float, float]:
        began_s, worked_s = time.monotonic(), time.thread_time()
        while time.thread_time() - worked_s < 0.01:
            pass
        between_s = time.monotonic()
        breathe()
        return between_s - began_s, time.monotonic() - between_s

    with aside():
        assert worked_and_paused_s()[1] >= 0.02
        breathe()  # right after a pause there is nothing to pause for
    asleep: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", asleep.append)
        worked_and_paused_s()
    assert asleep == []


def test_work_aside_waits_while_an_answer_is_computed_but_not_for_ever() -> None:
    answered = threading.Event()
    until: list[float] = []

    def work() -> None:
        with aside():
            for _ in range(3):
                breathe()
            until.append(time.monotonic())

    def waited_s(answer_s: float) -> float:
        began_s = time.monotonic()
        with answering():
            thread = threading.Thread(target=work)
            thread.start()
            answered.wait(answer_s)
        thread.join()
        return until.pop() - began_s

    assert waited_s(0.02) >= 0.02
    assert waited_s(5.0) < 2.0, "an answer that takes longer holds no new model up"


def test_the_first_answer_of_a_model_that_is_built_is_part_of_that_and_waits_for_nobody() -> None:
    with aside():
        with answering():
            assert not in_progress
        with answering(), pytest.raises(ZeroDivisionError), answering():
            _ = 1 / 0
    with pytest.raises(ZeroDivisionError), answering():
        _ = 1 / 0
    assert not in_progress, "what fails is no longer computed"


async def test_a_models_event_is_read_in_a_thread_that_gives_way_to_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyFolder(tmp_path)
    keys.ensure()
    event = keys.signed(published("risk", 1, weights(0), store="http://models/"))
    turns_s = sys.getswitchinterval()
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        on_the_loop = threading.current_thread() is threading.main_thread()
        seen.append((on_the_loop, sys.getswitchinterval() < turns_s))

    monkeypatch.setattr(signature, "breathe", look)
    trusted = TrustedKeys(keys.trusted_file)
    assert await vouched(event.encoded(), trusted) == event.manifest
    assert seen == [(False, True)]
    assert await vouched(event.encoded(), trusted, at_once=True) == event.manifest
    assert seen[1:] == [(True, False)]


def test_a_full_round_of_the_garbage_collector_looks_at_no_import() -> None:
    program = """
import atexit
import gc

atexit.register(lambda: print(gc.get_freeze_count(), "frozen at the end"))
from schemas.aside import spare_imports
from schemas.client.load import import_libraries

import_libraries()
spared = gc.get_freeze_count()
assert spared > 50_000, spared
looked_at = sum(len(gc.get_objects(generation=each)) for each in range(3))
assert looked_at < spared / 10, looked_at
kept = [[] for _ in range(1000)]
spare_imports()
assert gc.get_freeze_count() == spared, "once is enough"
gc.unfreeze()
gc.disable()
spare_imports()
assert gc.get_freeze_count() == 0, "a service without the collector is left as it is"
gc.enable()
spare_imports()
assert gc.get_freeze_count() > 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout == "0 frozen at the end\n"


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
