"""A real Ray head on loopback, from an environment of its own, with a token; it ends with the block."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from infra.kafka.ports import free_port
from loadtest.ingest.environment import python_of
from loadtest.ingest.side import Absent

REQUIREMENTS = Path(__file__).with_name("ray.txt")
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Head:
    """Where it is, and by which token it is asked."""

    address: str
    token: str


@contextlib.contextmanager
def ray_head(folder: Path, *, cache_dir: Path) -> Iterator[Head]:
    """Start it in `folder`, which must have a short name: Ray makes sockets there.

    Raises:
        Absent: it cannot be installed, or does not come up.
    """
    python = python_of(REQUIREMENTS, cache_dir)
    token, port, gcs = secrets.token_hex(32), free_port(), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TIDEMILL_", "RAY_"))},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        str(python.with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", f"--temp-dir={folder}", "--num-cpus=4", "--num-gpus=0",
        "--memory=4294967296", "--object-store-memory=100000000",
    ]  # fmt: skip
    log_file = folder / "head.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        head = Head(f"http://127.0.0.1:{port}", token)
        _await(head, process, log_file)
        yield head
    finally:
        # Its daemons are of its group, but for those that were begun in sessions of their own.
        family = _family(process.pid)
        for each in (process.pid, *family):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for each in (process.pid, *family):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        process.wait()


def _await(head: Head, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    headers = {"authorization": f"Bearer {head.token}"}
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"{head.address}/api/jobs/", headers=headers, timeout=5.0, trust_env=False)
            if answer.is_success:
                return
        time.sleep(0.25)
    raise Absent(f"the Ray head does not come up: {log_file.read_text('utf-8', 'replace')[-2_000:]}")


def _family(pid: int) -> list[int]:

    try:
        return [each.pid for each in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
