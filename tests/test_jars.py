"""The broker's jars are the locked ones, byte for byte, whatever the cache holds or the network brings."""

from __future__ import annotations

import functools
import hashlib
import http.server
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.kafka.jars import JARS, Jar, JarUnavailable, faulty_jars, jar_folder, provide_jars
from schemas.errors import InvalidConfiguration

CONTENT = b"locked bytes " * 1000
JAR = Jar(
    coordinate="org.example:thing:1.0", sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT)
)


@dataclass
class Repository:
    """A Maven repository over real HTTP; `answers` are the bytes it gives, by request number."""

    address: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    answers: list[bytes] = field(default_factory=list)
    stall: threading.Event | None = None


@pytest.fixture
def repository() -> Iterator[Repository]:
    repo = Repository()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".jar"):
                self.send_error(404)
                return
            number = repo.requests[self.path]
            repo.requests[self.path] += 1
            body = repo.answers[min(number, len(repo.answers) - 1)]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            if repo.stall:
                repo.stall.wait(20)
            self.wfile.write(body[half:])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        repo.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield repo
        server.shutdown()
        thread.join()


def provide(cache_dir: Path, repository: Repository) -> list[Path]:
    return provide_jars(cache_dir, repository=repository.address, jars=[JAR])


def test_the_lock_names_each_jar_once_and_no_lz4_with_the_known_hole():
    names = [jar.coordinate.rsplit(":", 1)[0] for jar in JARS]
    assert len(set(names)) == len(names)
    assert "org.lz4:lz4-java" not in names  # CVE-2025-12183; at.yawk.lz4 is the mended line
    assert {"org.apache.kafka:kafka_2.13", "org.apache.logging.log4j:log4j-slf4j-impl"} <= set(names)
    assert all(len(jar.sha256) == 64 and jar.size_bytes > 0 for jar in JARS)


def test_a_cached_jar_is_not_fetched_again(tmp_path, repository):
    repository.answers = [CONTENT]
    paths = provide(tmp_path, repository)
    assert paths[0].read_bytes() == CONTENT
    assert provide(tmp_path, repository) == paths
    assert repository.requests.total() == 1


def test_a_cached_jar_whose_bytes_changed_is_fetched_again(tmp_path, repository):
    repository.answers = [CONTENT]
    (path,) = provide(tmp_path, repository)
    path.write_bytes(CONTENT[:-1] + b"!")  # the same size
    assert faulty_jars(tmp_path, [JAR]) == [JAR]
    assert provide(tmp_path, repository)[0].read_bytes() == CONTENT
    assert repository.requests.total() == 2


def test_a_wrong_download_is_fetched_once_more(tmp_path, repository):
    repository.answers = [b"tampered", CONTENT]
    assert provide(tmp_path, repository)[0].read_bytes() == CONTENT


def test_a_download_that_stays_wrong_is_refused_and_never_cached(tmp_path, repository):
    repository.answers = [b"tampered"]
    with pytest.raises(JarUnavailable, match=r"thing:1\.0 was fetched 2 times.*SHA-256.*Nothing was started"):
        provide(tmp_path, repository)
    assert repository.requests.total() == 2
    assert not [path for path in jar_folder(tmp_path).rglob("*") if path.suffix == ".jar"]


def test_an_unreachable_repository_is_named_with_the_way_out(tmp_path):
    with pytest.raises(JarUnavailable, match=r"could not be fetched.*broker\.maven_repository"):
        provide_jars(tmp_path, repository="http://127.0.0.1:9", jars=[JAR])


def test_two_that_start_at_once_share_one_download(tmp_path, repository):
    repository.answers = [CONTENT]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: provide(tmp_path, repository), range(2)))
    assert both[0] == both[1]
    assert repository.requests.total() == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_nothing_that_the_next_start_would_trust(tmp_path, repository, how):
    repository.answers = [CONTENT]
    repository.stall = threading.Event()
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from infra.kafka import jars
        from infra.kafka.jars import Jar, provide_jars

        class Fetching(jars._Fetching):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                stop = self.stop.set
                self.stop.set = lambda: (stop(), print("stops", flush=True))

        jars._Fetching = Fetching
        cache, repository, sha256, size = sys.argv[1:]
        jar = Jar(coordinate="org.example:thing:1.0", sha256=sha256, size_bytes=int(size))
        provide_jars(Path(cache), repository=repository, jars=[jar])
    """)
    arguments = [str(tmp_path), repository.address, JAR.sha256, str(JAR.size_bytes)]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=pipe, stderr=pipe) as fetching:
        while not list(jar_folder(tmp_path).rglob("thing-1.0.jar")):
            assert fetching.poll() is None
        fetching.send_signal(how)
        # Before it has heard of it, it may yet fetch the whole jar, and rightly keep it.
        assert fetching.stdout is not None
        assert fetching.stdout.readline() == (b"stops\n" if how == signal.SIGINT else b"")
        repository.stall.set()
        fetching.communicate(timeout=20)
    assert fetching.returncode != 0
    assert not (jar_folder(tmp_path) / JAR.file_name).exists()
    assert provide(tmp_path, repository)[0].read_bytes() == CONTENT
    assert not list(jar_folder(tmp_path).glob(".staging-*"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, repository):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfiguration, match=r"jar cache .*file.* cannot be written.*cache_dir"):
        provide(tmp_path / "file", repository)
