"""One attempt at a job: its process is heard, watched, and ended when it takes more than it asked for."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from schemas.job import Resources
from trainers.assignment import Assignment, Began, Done, Failed, Progress, Skipped, Yielded
from trainers.memory import private_bytes, tree_bytes
from trainers.process import JobProcess, StandbyDied, ending
from trainers.ray import RayJob

WATCH_S = 0.25
_HEAR_OUT_S = 5.0
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)

Ending = Done | Skipped | Failed | Yielded


class Attempt:
    """From a job's process to what came of it."""

    def __init__(
        self, process: JobProcess | RayJob, asked: Resources, *, inherited_bytes: int, grace_s: float
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
        limit_s, loop = self._asked.time_limit_s, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None if self._process.waits_elsewhere else limit_s) as deadline:
                async for report in self._process.reports(assignment):
                    match report:
                        case Began():
                            self.pid = report.pid
                            if self._process.waits_elsewhere:
                                deadline.reschedule(loop.time() + self._left_s(report))
                            await began(report)
                        case Progress():
                            await progressed(report)
                        case _:
                            said = report
        except asyncio.CancelledError:
            self._process.let_go()
            raise
        except TimeoutError:
            said = Failed(reason=f"it ran longer than its limit of {limit_s:g} s and was killed")
        except BaseException:
            self._process.kill()
            raise
        finally:
            self._is_over.set()
            watching.cancel()
        self._process.kill()
        code = await self._process.ended()
        if said is None or (self._cut_off is not None and isinstance(said, Failed)):
            # What a process still says while it is ended is no news, and nothing to try again for.
            return self._silent_end(code)
        return said

    def _silent_end(self, code: int | None) -> Ending:
        """What it comes to that the process ended without a word on that."""
        if self._cut_off is not None:
            return Failed(reason=self._cut_off)
        if self.preempted_by is not None:
            return Yielded(checkpointed=False)
        if code is None:
            raise StandbyDied("the warm process went, and the job's process with it")
        return Failed(reason=f"its process died: {ending(code)}", retryable=code in _FROM_OUTSIDE)

    def _left_s(self, report: Began) -> float:
        """Of its time limit; what ended while no trainer was there is still heard to its last word."""
        ran_s = max(0.0, time.time() - report.started_ms / 1000)
        return max(_HEAR_OUT_S, self._asked.time_limit_s - ran_s)

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
