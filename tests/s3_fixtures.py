"""A real S3 server over a folder: S3Proxy, its jars pinned as the broker's are; and a server that lies."""

from __future__ import annotations

import asyncio
import subprocess
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import obstore
from obstore.store import S3Store

from infra.kafka.jars import Jar, default_cache_dir, provide_jars
from infra.kafka.java import clean_environment, find_java
from infra.kafka.ports import free_port

LOCK = Path(__file__).with_name("s3proxy.toml")
BUCKET = "models"
KEY_ID, SECRET = "tests", "not-a-secret-of-anybody"
_READY_S = 60.0
_QUIET = """<configuration><root level="warn">
<appender class="ch.qos.logback.core.ConsoleAppender" name="out">
<encoder><pattern>%d %-5level %logger{20} %msg%n</pattern></encoder></appender></root></configuration>"""


class S3Server:
    """S3Proxy in a process of its own. What was put there lies as files below `folder / BUCKET`."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As `ModelFollower(s3=…)` takes them."""
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": KEY_ID,
            "secret_access_key": SECRET,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """As the section `store` takes them."""
        return {"address": f"s3://{BUCKET}/flights", **self.options}

    def store(self) -> S3Store:
        """The tests' own way in, past everything that is tested."""
        return S3Store(BUCKET, **self.options, client_options={"allow_http": True})

    def put(self, path: str, content: bytes) -> None:
        """Put an object there."""
        obstore.put(self.store(), path, content)

    @property
    def files(self) -> list[Path]:
        """All that it holds."""
        return sorted(p for p in (self.folder / BUCKET).rglob("*") if p.is_file())

    def start(self) -> None:
        """Start it, and wait until it answers."""
        jars = tuple(Jar(**entry) for entry in tomllib.loads(LOCK.read_text())["jars"])
        paths = provide_jars(jars=jars, folder=default_cache_dir() / "s3proxy")
        (self.folder / BUCKET).mkdir(parents=True, exist_ok=True)
        configuration, quiet = self.folder / "s3proxy.properties", self.folder / "logback.xml"
        quiet.write_text(_QUIET)
        configuration.write_text(
            f"s3proxy.endpoint={self.endpoint}\n"
            "s3proxy.authorization=aws-v2-or-v4\n"
            f"s3proxy.identity={KEY_ID}\ns3proxy.credential={SECRET}\n"
            "jclouds.provider=filesystem-nio2\n"
            f"jclouds.filesystem.basedir={self.folder}\n"
        )
        with (self.folder / "s3proxy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    find_java().executable,
                    *("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
                    f"-Dlogback.configurationFile={quiet}",
                    *("-cp", ":".join(map(str, paths)), "org.gaul.s3proxy.Main"),
                    *("--properties", configuration),
                ],
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )
        deadline_s = time.monotonic() + _READY_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "s3proxy.log").read_text()[-2000:]
            assert time.monotonic() < deadline_s
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(self.endpoint, trust_env=False, timeout=5).status_code == 403
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """One that runs, until the end of the block."""
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def raw_server(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """Answers each request with whatever bytes it likes."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
