"""An attempt that is ended from outside says so, whatever its process manages to say before it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from schemas.job import Resources
from trainers.assignment import Began, Failed, Yielded
from trainers.attempt import Attempt, Ending


class Dying:
    """A process that is heard once more after it was killed."""

    waits_elsewhere = False

    def __init__(self, last: Ending | None) -> None:
        self.last, self.killed = last, asyncio.Event()

    async def reports(self, _: Any) -> AsyncIterator[Any]:
        yield Began(pid=1, started_ms=0)
        await self.killed.wait()
        if self.last is not None:
            yield self.last

    def kill(self) -> None:
        self.killed.set()

    async def ended(self) -> int:
        return -9


@pytest.mark.parametrize(
    "last", [None, Failed(reason="BrokenPipeError", retryable=True), Yielded(checkpointed=True)]
)
async def test_what_was_stopped_was_stopped(last: Ending | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.attempt.tree_bytes", lambda *_: 0)
    monkeypatch.setattr("trainers.attempt.private_bytes", lambda *_: 0)
    attempt = Attempt(cast("Any", Dying(last)), Resources(), inherited_bytes=0, grace_s=1)

    async def began(_: Began) -> None:
        attempt.stop("enough")

    async def progressed(_: Any) -> None:
        pytest.fail("there was none")

    ended = await attempt.run(cast("Any", Path()), began=began, progressed=progressed)
    assert ended == (last if isinstance(last, Yielded) else Failed(reason="enough"))
