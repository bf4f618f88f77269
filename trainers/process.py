"""The trainer's side of the standby and of its jobs' processes: begin one, hear it, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from infra.job_user import JobUser
from schemas.errors import Retryable
from trainers.assignment import Assignment, Done, Failed, Report, Skipped, Yielded
from trainers.channel import messages, packed
from trainers.standby import BEGIN, COMMAND, KILL, MAKE_ROOM, Ended, News, Warm

_LOG_TAIL_BYTES = 8_000
_LOG_LIMIT_BYTES = 64 * 2**20
_LOG_LOOK_S = 1.0
_NOT_FOR_JOBS = ("TIDEMILL_", "AWS_")
"""Variables that begin so are the trainer's alone: how it proves who it is, to the cluster, to S3 and to
services, and where its keys and settings lie. A job is told all that it needs by its assignment.
"""


class StandbyDied(Retryable):
    """The warm process did not come up, or is gone."""


class JobProcess:
    """One job's process, from its fork to its end."""

    waits_elsewhere = False

    def __init__(self, number: int, channel: socket.socket, log_file: Path, standby: Standby) -> None:
        self.log_file = log_file
        self.cpu_s: float | None = None
        """What it computed, once it has ended; None before, and if the standby went with it."""
        self._number = number
        self._channel = channel
        self._standby = standby
        self._ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def reports(self, assignment: Assignment) -> AsyncIterator[Report]:
        """Hand over the assignment; what the process says until it has a result or is gone."""
        reader, writer = await asyncio.open_connection(sock=self._channel)
        watching = asyncio.create_task(self._bound_log())
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(packed(assignment))
                await writer.drain()
            async for report in messages(reader, Report):  # type: ignore[arg-type]
                yield report
                if isinstance(report, Done | Skipped | Failed | Yielded):
                    return
        finally:
            watching.cancel()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _bound_log(self) -> None:
        """A job that prints without end fills no disk: its log begins anew."""
        while True:
            await asyncio.sleep(_LOG_LOOK_S)
            if self.log_file.stat().st_size > _LOG_LIMIT_BYTES:
                os.truncate(self.log_file, 0)

    def kill(self) -> None:
        """End it, with all that it started."""
        self._standby.kill(self._number)

    def let_go(self) -> None:
        """The trainer ends, and so does all that it forked."""
        self.kill()

    def ask_to_yield(self) -> None:
        """Have it keep its state and end, if it can."""
        self._standby.ask_to_yield(self._number)

    async def ended(self) -> int | None:
        """Wait until it is gone. Its exit code, negative for a signal; None if the standby went with it."""
        return await asyncio.shield(self._ended)

    def note_end(self, code: int | None, cpu_s: float | None = None) -> None:
        """The standby has reaped it, or is gone itself."""
        self.cpu_s = cpu_s
        if not self._ended.done():
            self._ended.set_result(code)

    def log_tail(self) -> str:
        """The end of what it printed."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace")
        except OSError:
            return ""


class Standby:
    """Keeps one warm process, from which every job is forked."""

    def __init__(self, log_file: Path, *, handed_on: Sequence[str] = (), user: JobUser | None = None) -> None:
        """Nothing is started yet.

        Args:
            handed_on: variables of the trainer's own that jobs are to have all the same.
            user: whom jobs run as; the warm process itself stays the trainer's.
        """
        self._user = user
        self.log_file = log_file
        self._handed_on = frozenset(handed_on)
        self._jobs: dict[int, JobProcess] = {}
        self._serial = 0
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._warm: asyncio.Future[Warm] | None = None

    @property
    def pid(self) -> int:
        """Process id of the warm process; 0 before it was started."""
        return self._process.pid if self._process else 0

    @property
    def is_warm(self) -> bool:
        """Whether jobs can be forked at once."""
        if self._listening is None or self._listening.done() or self._warm is None:
            return False
        return self._warm.done() and not self._warm.cancelled()

    async def start(self) -> None:
        """Start it, if it does not run; it warms up by itself."""
        if self._listening is not None and not self._listening.done():
            return
        await self.stop()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs, self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "trainers.standby",
                str(theirs.fileno()),
                *(() if self._user is None else (msgspec.json.encode(self._user).decode(),)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is the trainer's to handle
            )
        self._control = ours.dup()
        self._control.setblocking(False)
        self._warm = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(ours, self._warm))

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in self._handed_on or not name.startswith(_NOT_FOR_JOBS)
        }
        if self._user is not None:
            kept |= {"HOME": self._user.home, "USER": self._user.name, "LOGNAME": self._user.name}
        return kept

    async def _listen(self, ours: socket.socket, warm: asyncio.Future[Warm]) -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            async for news in messages(reader, News):  # type: ignore[arg-type]
                if isinstance(news, Ended):
                    if job := self._jobs.pop(news.number, None):
                        job.note_end(news.code, news.cpu_s)
                elif not warm.done():
                    warm.set_result(news)
        finally:
            for number in list(self._jobs):
                self._jobs.pop(number).note_end(None)
            if not warm.done():
                warm.cancel()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def warm(self) -> Warm:
        """Wait until it is ready to fork, started anew if it died.

        Raises:
            StandbyDied: it cannot start; its log says why.
        """
        await self.start()
        assert self._warm is not None
        try:
            return await asyncio.shield(self._warm)
        except asyncio.CancelledError:
            if not self._warm.cancelled():
                raise
            raise StandbyDied(
                f"the trainer's warm process ended before it was ready; its log {self.log_file} says why"
            ) from None

    async def begin(self, log_file: Path) -> JobProcess:
        """The process of one job: forked ahead, mostly.

        Raises:
            StandbyDied: there is nothing to fork from.
        """
        await self.warm()
        assert self._control is not None
        self._serial += 1
        log_file.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        job = JobProcess(self._serial, ours, log_file, self)
        with theirs:
            # Appending, so that a log that is cut off really begins anew.
            log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                command = COMMAND.pack(BEGIN, self._serial)
                socket.send_fds(self._control, [command], [theirs.fileno(), log])
            except OSError as error:
                ours.close()
                raise StandbyDied(f"the trainer's warm process is gone: {error}") from error
            finally:
                os.close(log)
        self._jobs[self._serial] = job
        return job

    def kill(self, number: int) -> None:
        """End that job's process."""
        self._tell(KILL, number)

    def ask_to_yield(self, number: int) -> None:
        """Tell that job's process to make room."""
        self._tell(MAKE_ROOM, number)

    def _tell(self, command: bytes, number: int) -> None:
        if self._control is not None and number in self._jobs:
            with contextlib.suppress(OSError):
                self._control.send(COMMAND.pack(command, number))

    async def stop(self) -> None:
        """End it and all jobs."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
        if self._process is not None:
            was_warm = self._warm is not None and self._warm.done() and not self._warm.cancelled()
            try:
                # While it imports it hears nothing, and has no jobs to end.
                async with asyncio.timeout(5.0 if was_warm else 0.0):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
            self._process = None
        if self._listening is not None:
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None


def ending(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        if -code == signal.SIGKILL:
            return f"killed by {name}, as the kernel does when memory ends"
        return f"killed by {name}"
    return f"it exited with code {code} and no result"
