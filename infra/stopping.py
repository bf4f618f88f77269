"""How what runs in a loop is asked to end by Ctrl-C or SIGTERM.

Python's way is to raise in whichever task or callback runs just then. That breaks off one that others wait
for, or is taken by a model's code for a failure of its own; so nobody here leaves it at that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_ASKING = (signal.SIGINT, signal.SIGTERM)


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, but that a signal cancels `work`, and is handled as ever once all is cleaned up.

    A second signal meanwhile changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)  # no other thread hears of signals
    got: list[int] = []

    async def heard() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int, _frame: object) -> None:
            if not got and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)  # wakes a loop that waits
            got.append(number)

        for number in _ASKING:
            signal.signal(number, stop)
        return await work

    before = {number: signal.getsignal(number) for number in _ASKING}
    result: list[T] = []
    try:
        result.append(asyncio.run(heard()))
    except asyncio.CancelledError:
        if not got:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if got:
        signal.raise_signal(got[0])
    if not result:
        raise asyncio.CancelledError  # whoever handles that signal goes on
    return result[0]


@contextlib.contextmanager
def asked_to_stop() -> Iterator[asyncio.Event]:
    """An event that is set by SIGINT or SIGTERM, instead of what they would do otherwise."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in _ASKING}
    try:
        for each in before:
            loop.add_signal_handler(each, stop.set)
        yield stop
    finally:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)
