"""How the command line begins and ends, whichever command it is."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from infra import stopping
from infra.command.main import Stopped


def test_it_starts_without_what_only_some_commands_need() -> None:
    """Each of these costs a tenth of a second to several seconds of a core, at every call."""
    heavy = {"aiokafka", "deltalake", "faust", "jgo", "matplotlib", "numpy", "polars", "requests", "torch"}
    program = "import sys, infra.command.main; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert heavy & set(loaded.stdout.split()) == set()


@pytest.mark.parametrize("where", ["a callback", "a task beside"])
def test_a_stop_ends_the_command_wherever_in_the_loop_the_signal_came(where: str) -> None:
    def stop() -> None:
        raise Stopped

    async def beside() -> None:
        stop()

    async def command() -> None:
        loop = asyncio.get_running_loop()
        began = loop.call_soon(stop) if where == "a callback" else loop.create_task(beside())
        await asyncio.wait_for(asyncio.Event().wait(), 5)
        assert began

    with pytest.raises(Stopped):
        asyncio.run(command())


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_off_nothing_that_the_cleaning_up_waits_for(asked: signal.Signals) -> None:
    cleaned = []

    def stop(_signal: int, _frame: object) -> None:
        raise Stopped

    async def beside(closing: asyncio.Event) -> None:
        signal.raise_signal(asked)
        await closing.wait()
        cleaned.append("beside")

    async def command() -> None:
        closing = asyncio.Event()
        helper = asyncio.create_task(beside(closing))
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 5)
        finally:
            signal.raise_signal(asked)  # impatience changes nothing
            closing.set()
            await asyncio.wait_for(helper, 5)
            cleaned.append("command")

    before = signal.signal(asked, stop)
    try:
        with pytest.raises(Stopped):
            stopping.run(command())
        assert signal.getsignal(asked) is stop
    finally:
        signal.signal(asked, before)
    assert cleaned == ["beside", "command"]


def test_a_signal_that_comes_when_the_work_is_done_is_not_forgotten() -> None:
    async def command() -> int:
        signal.raise_signal(signal.SIGINT)
        return 1

    with pytest.raises(KeyboardInterrupt):
        stopping.run(command())
