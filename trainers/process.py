"""The trainer's side of a job's process: a warm one stands by; a job takes it; its death is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from trainers.child import Report
from trainers.work import Assignment

_PR_SET_PDEATHSIG = 1
_LOG_TAIL_BYTES = 4_000
_LINE_LIMIT = 16 * 2**20


def _die_with_the_trainer() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class JobProcess:
    """One child: warm, then at work, then gone."""

    log_file: Path
    _process: asyncio.subprocess.Process | None = None
    _reports: asyncio.StreamReader | None = None
    _transport: asyncio.ReadTransport | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Start it; it warms up by itself."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        read_end, write_end = os.pipe()
        try:
            with self.log_file.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "trainers.child",
                    str(write_end),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_end,),
                    preexec_fn=_die_with_the_trainer,
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        loop = asyncio.get_running_loop()
        self._reports = asyncio.StreamReader(limit=_LINE_LIMIT)
        pipe = os.fdopen(read_end, "rb", buffering=0)
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reports),
            pipe,  # type: ignore[arg-type]
        )

    async def run(self, assignment: Assignment) -> AsyncIterator[Report]:
        """Give it its job; yields what it reports until it has a result or is gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(msgspec.json.encode(assignment) + b"\n")
            await self._process.stdin.drain()
        assert self._reports is not None
        while line := await self._reports.readline():
            report = msgspec.json.decode(line, type=Report)
            if not report.ready:
                yield report
            if report.outcome is not None or report.skipped is not None or report.failed is not None:
                return

    async def warm(self) -> bool:
        """Wait until it is ready for a job. False if it died before."""
        assert self._reports is not None
        return bool(await self._reports.readline())

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    async def end(self) -> int | None:
        """Kill it with all that it started, and wait. Gives its exit code, negative for a signal."""
        if self._process is None:
            return None
        # A result may be out before the process is; it gets a moment to leave by itself.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 0.2)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = await self._process.wait()
        if self._transport is not None:
            self._transport.close()
        return code

    def log_tail(self) -> str:
        """The end of what it printed."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", "replace")


class Standby:
    """Keeps some processes warm, so that no job pays for torch's import."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._waiting: deque[JobProcess] = deque()
        self._serial = 0

    async def fill(self) -> None:
        """Start what is missing; they warm up in the background."""
        while len(self._waiting) < self._count:
            self._waiting.append(await self._new())

    async def take(self) -> JobProcess:
        """A process for one job: a warm one if there is one."""
        while self._waiting:
            process = self._waiting.popleft()
            if process.is_alive():
                return process
            await process.end()
        return await self._new()

    async def _new(self) -> JobProcess:
        self._serial += 1
        process = JobProcess(self._folder / f"{os.getpid()}-{self._serial}.log")
        await process.start()
        return process

    async def end(self) -> None:
        """End all that wait."""
        while self._waiting:
            await self._waiting.popleft().end()
