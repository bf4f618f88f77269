"""How what runs in a loop is asked to end: Ctrl-C and SIGTERM set an event, and it ends in its own time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def asked_to_stop() -> Iterator[asyncio.Event]:
    """An event that is set by SIGINT or SIGTERM, instead of what they would do otherwise."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for each in before:
            loop.add_signal_handler(each, stop.set)
        yield stop
    finally:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)
