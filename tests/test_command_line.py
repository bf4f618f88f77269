"""How the command line begins and ends, whichever command it is."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

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
