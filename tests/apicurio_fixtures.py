"""A real schema registry: Apicurio with Confluent's API, fetched once per user and pinned by its digest."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from filelock import FileLock
from jgo.maven import MavenContext, PythonResolver

from infra.kafka.jars import default_cache_dir
from infra.kafka.java import clean_environment, find_java
from infra.kafka.ports import free_port

VERSION = "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
_READY_S = 120.0
_MEDIA = "application/vnd.schemaregistry.v1+json"


class Apicurio:
    """One registry in a process of its own, its schemas in its memory; `url` is where Confluent's API is."""

    def __init__(self, program: Path, log_file: Path) -> None:
        self._program, self._log_file = program, log_file
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    find_java().executable,
                    *("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
                    *("-jar", self._program / "quarkus-run.jar"),
                ],
                cwd=self._log_file.parent,
                env={
                    **clean_environment(),
                    "QUARKUS_HTTP_HOST": "127.0.0.1",
                    "QUARKUS_HTTP_PORT": str(self._port),
                },
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + _READY_S
        while not self._answers():
            assert self._process.poll() is None, self._log_file.read_text()[-2000:]
            assert time.monotonic() < deadline_s
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextmanager
    def away(self) -> Iterator[None]:
        """For the time of the block it takes connections, and answers nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def register(self, subject: str, schema: Mapping[str, Any], **besides: Any) -> int:
        """The id that the registry gives a schema."""
        answer = httpx.post(
            f"{self.url}/subjects/{subject}/versions",
            json={"schema": json.dumps(schema), **besides},
            headers={"Content-Type": _MEDIA},
            trust_env=False,
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/subjects", trust_env=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def apicurio(home: Path) -> Iterator[Apicurio]:
    """A registry that runs, until the end of the block; skips where it cannot be fetched."""
    registry = Apicurio(_provided(), home / "apicurio.log")
    try:
        registry.start()
        yield registry
    finally:
        registry.stop()


def _provided() -> Path:
    """The folder of the program in the user's cache."""
    folder = default_cache_dir() / "apicurio"
    program = folder / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".fetching"):
        if not program.exists():
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder))
            try:
                _fetch(staging)
                (staging / "program").rename(program)
            except (requests.RequestException, RuntimeError) as error:
                pytest.skip(f"Apicurio {VERSION} cannot be fetched from Maven Central: {error}")
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return program


def _fetch(staging: Path) -> None:
    maven = MavenContext(repo_cache=staging / "maven", resolver=PythonResolver(), timeout=15)
    component = maven.project("io.apicurio", "apicurio-registry-app").at_version(VERSION)
    archive = component.artifact("all", "tar.gz").resolve()
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == SHA256, f"what came as Apicurio {VERSION} has the digest {found}: something altered it"
    with tarfile.open(archive) as tar:
        tar.extractall(staging / "program", filter="data")
