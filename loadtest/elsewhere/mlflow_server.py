"""A real MLflow server on loopback, from an environment of its own; it ends with the block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from infra.kafka.ports import free_port
from loadtest.ingest.environment import python_of
from loadtest.ingest.side import Absent

REQUIREMENTS = Path(__file__).with_name("mlflow.txt")
_PATIENCE_S = 120.0


@contextlib.contextmanager
def mlflow_server(folder: Path, *, cache_dir: Path) -> Iterator[str]:
    """Start it with its database in `folder`; gives its address.

    Raises:
        Absent: it cannot be installed, or does not come up.
    """
    python = python_of(REQUIREMENTS, cache_dir)
    port = free_port()
    url, log_file = f"http://127.0.0.1:{port}", folder / "mlflow.log"
    command = [
        str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + _PATIENCE_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = log_file.read_text("utf-8", "replace")[-2_000:]
                raise Absent(f"the MLflow server does not come up: {said}")
            time.sleep(0.25)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False
