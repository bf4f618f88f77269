"""A broker that runs on a data folder: who it is, whether it lives, how it ends."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from infra import atomic_file

RUN_FILE = "broker.json"
MAIN_CLASS = "kafka.Kafka"


@dataclass(frozen=True, kw_only=True)
class RunningBroker:
    """One broker process, known by pid and start time, so that a reused pid is never mistaken for it."""

    pid: int
    started_s: float
    """The process's creation time as psutil gives it, epoch seconds."""
    host: str
    port: int

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"

    def is_alive(self) -> bool:
        return self._process() is not None

    def stop(self, timeout_s: float = 20.0) -> None:
        """End it cleanly (SIGTERM), or after `timeout_s` by SIGKILL. Returns when it is gone."""
        if process := self._process():
            process.terminate()
            self._wait(process, timeout_s)
        self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would. Returns when it is gone."""
        if process := self._process():
            process.kill()
            self._wait(process, 10.0)

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started_s) > 1 or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process
        except psutil.NoSuchProcess:
            return None

    @staticmethod
    def _wait(process: psutil.Process, timeout_s: float) -> None:
        with contextlib.suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
            process.wait(timeout_s)


def record(data_dir: Path, broker: RunningBroker) -> None:
    """Say beside the data which process serves it."""
    atomic_file.write_text(data_dir / RUN_FILE, json.dumps(asdict(broker)))


def forget(data_dir: Path) -> None:
    """Nobody serves the data any more."""
    (data_dir / RUN_FILE).unlink(missing_ok=True)


def running_on(data_dir: Path) -> RunningBroker | None:
    """The live broker that serves `data_dir`, or None."""
    try:
        broker = RunningBroker(**json.loads((data_dir / RUN_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return broker if broker.is_alive() else None
