"""One worker process of a pipeline: started, killed, frozen, woken, asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

SESSION_MS = 6_000
"""The shortest that a broker takes by default."""
_TAIL_BYTES = 8_000


@dataclass
class WorkerProcess:
    """A worker by Faust's own command, in a process that can be struck from the inside (`inside`)."""

    home: Path
    pipeline_file: Path
    bootstrap_servers: str
    member: str | None = "one"
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _lived_bytes: int = 0  # of the log: what its lives before this one wrote

    @property
    def log_file(self) -> Path:
        return self.home / f"worker-{self.member}.log"

    def start(self, strike: tuple[str, int, str] | None = None, *, level: str = "info") -> Self:
        """Start it; gives itself.

        Args:
            strike: where it strikes itself, at which time it comes there, and by which signal: such as
                ("after a commit", 2, "SIGKILL"). The instant is exact, where a kill from outside is not.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        named = {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(self.home),
            "TIDEMILL_WORKER__PIPELINE": str(self.pipeline_file),
            "TIDEMILL_WORKER__SESSION_TIMEOUT_MS": str(SESSION_MS),
            "TIDEMILL_LOG__FORM": "json",
            "POLARS_MAX_THREADS": "2",
            "PYTHONUNBUFFERED": "1",
            **({"TIDEMILL_WORKER__MEMBER": self.member} if self.member else {}),
            **({"FAULTS_STRIKE": ",".join(map(str, strike))} if strike else {}),
            **self.settings,
        }
        command = [sys.executable, "-m", "loadtest.faults.inside", "-l", level, "--without-web"]
        with self.log_file.open("ab") as log:
            self._lived_bytes = log.tell()
            self.process = subprocess.Popen(
                command, env={**os.environ, **named}, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "the worker was never started"
        return self.process

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing where it is gone."""
        self.running.send_signal(number)

    def kill(self) -> None:
        """As the kernel would for want of memory."""
        self.running.kill()
        self.running.wait()

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self.running.poll() is not None

    def is_frozen(self) -> bool:
        """Whether it was stopped by a signal."""
        return psutil.Process(self.running.pid).status() == psutil.STATUS_STOPPED

    def log(self) -> str:
        """All that it wrote, over all its lives."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self) -> str:
        """The end of what it wrote in this life."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(max(self._lived_bytes, self.log_file.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace")

    def close(self) -> None:
        """Whatever became of it, it is gone."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
