"""One attempt at a job: its process is heard, watched, and ended when it takes more than it asked for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from schemas.job import Resources
from trainers.assignment import Assignment, Began, Done, Failed, Progress, Skipped, Yielded
from trainers.memory import private_bytes, tree_bytes
from trainers.process import JobProcess, StandbyDied, ending

WATCH_S = 0.25
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)

Ending = Done | Skipped | Failed | Yielded


class Attempt:
    """From a job's process to what came of it."""

    def __init__(
        self, process: JobProcess, asked: Resources, *, inherited_bytes: int, grace_s: float
    ) -> None:
        """Takes over a process that was just begun.

        Args:
            inherited_bytes: what the process has of the warm one, and is not counted as its own.
            grace_s: how long it may take to keep its state when it is to make room.
        """
        self.pid = 0
        self.used_bytes = 0
        self.preempted_by: str | None = None
        self._process = process
        self._asked = asked
        self._inherited_bytes = inherited_bytes
        self._grace_s = grace_s
        self._cut_off: str | None = None
        self._is_over = asyncio.Event()

    async def run(
        self,
        assignment: Assignment,
        *,
        began: Callable[[Began], Awaitable[None]],
        progressed: Callable[[Progress], Awaitable[None]],
    ) -> Ending:
        """What came of it; its process is gone on return, and so its device is free.

        Raises:
            StandbyDied: the warm process went, and the job's with it.
        """
        watching = asyncio.create_task(self._watch())
        said: Ending | None = None
        try:
            async with asyncio.timeout(self._asked.time_limit_s):
                async for report in self._process.reports(assignment):
                    match report:
                        case Began():
                            self.pid = report.pid
                            await began(report)
                        case Progress():
                            await progressed(report)
                        case _:
                            said = report
        except TimeoutError:
            limit_s = self._asked.time_limit_s
            said = Failed(reason=f"it ran longer than its limit of {limit_s:g} s and was killed")
        finally:
            self._is_over.set()
            watching.cancel()
            self._process.kill()
        code = await self._process.ended()
        if said is not None:
            return said
        if self._cut_off is not None:
            return Failed(reason=self._cut_off)
        if self.preempted_by is not None:
            return Yielded(checkpointed=False)
        if code is None:
            raise StandbyDied("the warm process went, and the job's process with it")
        return Failed(reason=f"its process died: {ending(code)}", retryable=code in _FROM_OUTSIDE)

    def stop(self, reason: str) -> None:
        """End it for good."""
        self._cut_off = self._cut_off or reason
        self._process.kill()

    def preempt(self, by_job_id: str) -> None:
        """Let it keep its state and go; one that does not is ended."""
        if self.preempted_by is None:
            self.preempted_by = by_job_id
            self._process.ask_to_yield()
            self._grace = asyncio.create_task(self._end_after_grace())

    async def _end_after_grace(self) -> None:
        try:
            async with asyncio.timeout(self._grace_s):
                await self._is_over.wait()
        except TimeoutError:
            self._process.kill()

    async def _watch(self) -> None:
        limit = self._asked.memory_bytes
        while True:
            await asyncio.sleep(WATCH_S)
            if not self.pid:
                continue
            self.used_bytes = tree_bytes(self.pid, inherited_bytes=self._inherited_bytes)
            if self.used_bytes <= limit:
                continue
            surely_bytes = private_bytes(self.pid)
            if surely_bytes is None or surely_bytes > limit:
                self.stop(
                    f"it took {self.used_bytes / 2**20:,.0f} MiB of memory and had asked for "
                    f"{limit / 2**20:,.0f} MiB; raise its resources' memory_bytes"
                )
                return
