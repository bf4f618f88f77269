"""Turns at what is heavy: so many at a time, and nobody holds one for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turns:
    """A semaphore whose turns run out: who holds one for longer goes on, and no longer counts.

    So a store that gives a byte a minute slows the one model down that lies there, and no other.

    Args:
        at_once: turns that are taken at the same time.
        longest_s: after which a turn is given to the next, whether or not its holder is through.
    """

    def __init__(self, at_once: int, *, longest_s: float) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._longest_s = longest_s

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it inside."""
        await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        runs_out = asyncio.get_running_loop().call_later(self._longest_s, give_back)
        try:
            yield
        finally:
            runs_out.cancel()
            give_back()
