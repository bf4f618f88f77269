"""Tidemill's own processes: started with a log file, ended with their parent, started again when killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import Retryable

_PR_SET_PDEATHSIG = 1
_KEPT_ALIVE_S = 30.0
_PAUSE_S = 5.0


class ProcessFailed(Retryable):
    """A process keeps dying; its log says why."""

    def __init__(self, name: str, code: int, log_file: Path, tail: str) -> None:
        super().__init__(f"{name} ended with {code}; its log is {log_file}. It ends:\n{tail}")
        self.name, self.code, self.log_file = name, code, log_file


def _die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    # Linux only, and only a second line of defence: a supervisor that is killed leaves nothing behind.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends, and end at once if it has.

    On Linux; elsewhere one that is left behind ends by itself.

    Raises:
        SystemExit: the parent is gone already.
    """
    _die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


@dataclass
class Supervised:
    """One process and how to start it again."""

    name: str
    command: Sequence[str]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    most_restarts: int = 5
    vital: bool = True
    """One that is not may fail as often as it likes: it is started again after a pause."""
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _started_s: float = 0.0

    def start(self) -> None:
        """Start it, its output appended to its log."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (nothing but prctl runs there)
                # Ctrl-C is the supervisor's to handle: it ends its processes in the right order.
                start_new_session=True,
            )
        self._started_s = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process else 0

    def keep_alive(self) -> bool:
        """Start it again if it died. True if it had.

        Raises:
            ProcessFailed: it died again and again, or as soon as it was started.
        """
        if self._process is None or (code := self._process.poll()) is None:
            return False
        if not self.vital:
            if time.monotonic() - self._started_s < _PAUSE_S:
                return False
            self.start()
            return True
        if time.monotonic() - self._started_s > _KEPT_ALIVE_S:
            self.restarts = 0
        if self.restarts >= self.most_restarts or code not in (-signal.SIGKILL, -signal.SIGTERM):
            raise ProcessFailed(self.name, code, self.log_file, self.log_tail())
        self.restarts += 1
        self.start()
        return True

    def stop(self, timeout_s: float = 15.0) -> None:
        """SIGTERM, and SIGKILL if it has not ended in time."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 16_384))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])


class Supervisor:
    """A group of processes that live and end together; ended in the reverse of their order."""

    def __init__(self) -> None:
        self.processes: list[Supervised] = []

    def start(self, process: Supervised) -> Supervised:
        """Start one more."""
        process.start()
        self.processes.append(process)
        return process

    def keep_alive(self) -> list[str]:
        """Start again what was killed; gives the names of those.

        Raises:
            ProcessFailed: one failed for good.
        """
        return [p.name for p in self.processes if p.keep_alive()]

    def stop(self) -> None:
        """End all of them."""
        for process in reversed(self.processes):
            process.stop()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def tidemill(*arguments: str) -> list[str]:
    """The command line of one of Tidemill's own commands, in this very environment."""
    return [sys.executable, "-m", "infra.command", *arguments]
