"""The broker's jars: named exactly by `jars.toml`, fetched once per user, and checked at every start.

jgo knows where Maven artifacts lie and how to fetch one; it neither checks what is cached nor writes
atomically. So each jar is fetched into a staging folder, its SHA-256 compared with the lock, and only then
renamed to its place.

What fetches is imported where something is missing: it costs more than all else of a command's start.

`python -m infra.kafka.relock VERSION` writes the lock anew.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from schemas.errors import InvalidConfiguration, Retryable

LOCK_FILE = Path(__file__).with_name("jars.toml")
FETCH_THREADS = 8
FETCH_ATTEMPTS = 3
"""Tries per jar when the network fails; a wrong digest is fetched once more, whatever this says."""
LOCK_TIMEOUT_S = 600.0


class JarUnavailable(Retryable):
    """A jar could not be fetched, or what came is not what the lock names."""


@dataclass(frozen=True, kw_only=True)
class Jar:
    """One locked Maven artifact."""

    coordinate: str
    """group:artifact:version"""
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def read_lock(path: Path = LOCK_FILE) -> tuple[str, tuple[Jar, ...]]:
    """(Kafka's version, its jars) as the lock names them. Raises InvalidConfiguration if it is no lock."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return document["kafka_version"], tuple(Jar(**entry) for entry in document["jars"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidConfiguration(
            f"{path} is no jar lock ({error}); restore it from the repository"
        ) from error


KAFKA_VERSION, JARS = read_lock()


def default_cache_dir() -> Path:
    """The user's cache folder for Tidemill; follows XDG_CACHE_HOME."""
    return platformdirs.user_cache_path("tidemill")


def jar_folder(cache_dir: Path) -> Path:
    """Where this Kafka version's jars lie under `cache_dir`."""
    return cache_dir / "kafka" / KAFKA_VERSION


def faulty_jars(cache_dir: Path, jars: Sequence[Jar] = JARS, *, folder: Path | None = None) -> list[Jar]:
    """The locked jars that are not cached, or whose bytes are not the locked ones. Reads every jar."""
    folder = folder or jar_folder(cache_dir)
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        good = pool.map(lambda jar: _is_as_locked(folder / jar.file_name, jar), jars)
        return [jar for jar, is_good in zip(jars, good, strict=True) if not is_good]


def provide_jars(
    cache_dir: Path | None = None,
    *,
    repository: str | None = None,
    console: Console | None = None,
    jars: Sequence[Jar] = JARS,
    folder: Path | None = None,
) -> list[Path]:
    """Paths of all locked jars, each with the locked SHA-256, fetched if need be.

    `repository` is the base address of a Maven repository to use instead of Maven Central; `folder` is where
    they lie, if not where the broker's do. A cached jar that
    is not as locked is deleted and fetched once more. Two processes that start at once share one download.
    Interrupting leaves only whole, checked jars behind. Raises JarUnavailable.
    """
    cache_dir = cache_dir or default_cache_dir()
    folder = folder or jar_folder(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if faulty_jars(cache_dir, jars, folder=folder):
            with _one_at_a_time(folder, console):
                missing = faulty_jars(
                    cache_dir, jars, folder=folder
                )  # another process may just have fetched them
                if missing:
                    _fetch_all(missing, folder, repository, console)
    except OSError as error:
        import requests

        if isinstance(error, requests.RequestException):
            raise
        raise InvalidConfiguration(
            f"the jar cache {cache_dir} cannot be written ({error}); free space there, correct its "
            "permissions, or name another folder by the setting cache_dir"
        ) from error
    return [folder / jar.file_name for jar in jars]


def _is_as_locked(path: Path, jar: Jar) -> bool:
    try:
        if path.stat().st_size != jar.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


@contextmanager
def _one_at_a_time(folder: Path, console: Console | None) -> Iterator[None]:
    lock = FileLock(folder / ".fetching")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if console:
            console.print("another process is fetching the broker's jars; waiting for it")
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise JarUnavailable(
                f"another process has held {lock.lock_file} for {LOCK_TIMEOUT_S:.0f} s; end that first"
            ) from None
    try:
        yield
    finally:
        lock.release()


class _Interrupted(Exception):
    """Ends a download thread from within jgo's read loop."""


class _Fetching:
    """What the download threads share: the way to the repository, the progress, the wish to stop."""

    def __init__(
        self, folder: Path, staging: Path, repository: str | None, advance: Callable[[int], None]
    ) -> None:
        self.folder, self.staging, self.advance = folder, staging, advance
        self.remote_repos = {"configured": repository.rstrip("/")} if repository else None
        self.stop = threading.Event()

    def fetch(self, jar: Jar) -> None:
        """Put one jar in its place, or raise JarUnavailable."""
        import requests

        problem: Exception | None = None
        mismatches = 0
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                self.stop.wait(0.5 * 2**attempt)
            counted = 0

            def count(size_bytes: int) -> None:
                nonlocal counted
                if self.stop.is_set():
                    raise _Interrupted
                counted += size_bytes
                self.advance(size_bytes)

            try:
                staged = self._download(jar, count)
            except _Interrupted:
                return
            except (requests.RequestException, RuntimeError) as error:
                problem = error
                self.advance(-counted)
                continue
            if _is_as_locked(staged, jar):
                self.advance(jar.size_bytes - counted)
                staged.replace(self.folder / jar.file_name)
                return
            problem = ValueError(f"its SHA-256 is not {jar.sha256}")
            self.advance(-counted)
            mismatches += 1
            if mismatches == 2:
                break
        if mismatches:
            raise JarUnavailable(
                f"{jar.coordinate} was fetched {mismatches} times and {problem}: something between here and "
                "the Maven repository alters it. Nothing was started; try another network, or name another "
                "repository by broker.maven_repository"
            )
        raise JarUnavailable(
            f"{jar.coordinate} could not be fetched in {FETCH_ATTEMPTS} tries ({problem}); check network and "
            "proxy, or name a Maven repository that this machine reaches by broker.maven_repository"
        ) from problem

    def _download(self, jar: Jar, count: Callable[[int], None]) -> Path:
        from jgo.maven import MavenContext, PythonResolver

        @contextmanager
        def progress(_name: str, _total: int) -> Iterator[Callable[[int], None]]:
            yield count

        # A fresh folder for each try: jgo insists that its target does not exist yet.
        attempt_dir = Path(tempfile.mkdtemp(dir=self.staging))
        context = MavenContext(
            repo_cache=attempt_dir,
            remote_repos=self.remote_repos,
            resolver=PythonResolver(progress_callback=progress),
            timeout=15,
        )
        return context.create_dependency(jar.coordinate).artifact.resolve()


def _fetch_all(jars: Sequence[Jar], folder: Path, repository: str | None, console: Console | None) -> None:
    for stale in folder.glob(".staging-*"):  # left by a killed process; we hold the lock, so nobody uses it
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder))
    for jar in jars:
        (folder / jar.file_name).unlink(missing_ok=True)
    try:
        with _progress(jars, console) as advance:
            fetching = _Fetching(folder, staging, repository, advance)
            pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch-jar")
            try:
                futures = [pool.submit(fetching.fetch, jar) for jar in jars]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                fetching.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _progress(jars: Sequence[Jar], console: Console | None) -> Iterator[Callable[[int], None]]:
    total_bytes = sum(jar.size_bytes for jar in jars)
    title = f"Apache Kafka {KAFKA_VERSION}: {len(jars)} jars"
    if console is None:
        yield lambda _size_bytes: None
        return
    if not console.is_terminal:
        console.print(f"fetching {title}, {total_bytes / 1e6:.0f} MB")
        started = time.monotonic()
        yield lambda _size_bytes: None
        console.print(f"fetched in {time.monotonic() - started:.1f} s")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda size_bytes: bar.advance(task, size_bytes)
