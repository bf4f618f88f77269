"""The broker's class cache: made once, mapped by every start, and never in the way of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from infra.kafka import EmbeddedBroker, class_cache
from infra.kafka.jars import default_cache_dir, jar_folder
from infra.kafka.java import JavaRuntime
from schemas.errors import InvalidConfiguration
from tests.worker_fixtures import wait_until

Train = Callable[[Path, str], None]


@pytest.fixture
def java(tmp_path: Path) -> JavaRuntime:
    for file in ("bin/java", "lib/modules"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    return JavaRuntime(executable=tmp_path / "bin" / "java", major=25, source="a test")


@pytest.fixture
def jars(tmp_path: Path) -> list[Path]:
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "kafka.jar").write_bytes(b"jar")
    return [tmp_path / "jars" / "kafka.jar"]


def trains(content: bytes, times: list[Path]) -> Train:
    def train(place: Path, option: str) -> None:
        times.append(place)
        Path(option.removeprefix("-XX:AOTCacheOutput=")).write_bytes(content)

    return train


def never(*_: object) -> None:
    pytest.fail("it is there already")


def test_it_is_made_once_and_anew_where_a_byte_of_it_or_a_jar_has_changed(
    java: JavaRuntime, jars: list[Path]
) -> None:
    made: list[Path] = []
    options = class_cache.options(java, jars, trains(b"classes", made))
    file = Path(options[0].removeprefix("-XX:AOTCache="))
    assert file.read_bytes() == b"classes"
    assert class_cache.options(java, jars, never) == options
    file.write_bytes(b"classed")
    assert class_cache.options(java, jars, trains(b"classes", made)) == options
    for number in range(3):
        jars[0].write_bytes(b"other" * number)
        assert class_cache.options(java, jars, trains(b"others", made)) != options
    assert not file.exists(), "few of those that fit other jars are kept"
    assert len(list(file.parent.glob("*.aot"))) == 3
    assert len(list(file.parent.glob("*.sha256"))) == 3
    assert len(made) == 5
    assert not any(place.parent.exists() for place in made), "nothing is left of the training"


def test_where_it_cannot_be_made_the_broker_starts_without_and_it_is_not_tried_again(
    java: JavaRuntime, jars: list[Path]
) -> None:
    def fails(*_: object) -> None:
        raise InvalidConfiguration("the disk is full; free some space")

    assert class_cache.options(java, jars, fails) == []
    assert class_cache.options(java, jars, never) == []
    note = next(jars[0].parent.glob("classes-*.txt"))
    assert "the disk is full" in note.read_text()
    note.unlink()
    assert class_cache.options(java, jars, trains(b"classes", [])) != []


def test_nobody_waits_for_another_process_that_makes_it_and_an_older_java_has_none(
    java: JavaRuntime, jars: list[Path]
) -> None:
    with FileLock(jars[0].parent / ".making-classes"):
        assert class_cache.options(java, jars, never) == []
    old = JavaRuntime(executable=java.executable, major=21, source="a test")
    assert class_cache.options(old, jars, never) == []
    (java.executable.parent.parent / "lib" / "modules").unlink()
    assert class_cache.options(java, jars, never) == [], "a Java that keeps its classes elsewhere"


def test_a_real_broker_maps_it(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    """The session's own broker made it, or another process is just at it."""
    assert psutil.pid_exists(kafka.pid)
    folder = jar_folder(default_cache_dir())
    wait_until(lambda: list(folder.glob("classes-*.sha256")), "the class cache is made", within_s=90)
    with EmbeddedBroker(tmp_path) as broker:
        command = psutil.Process(broker.pid).cmdline()
        assert any(option.startswith("-XX:AOTCache=") for option in command), command
        mapped = {Path(each.path).name for each in psutil.Process(broker.pid).memory_maps()}
    assert any(name.startswith("classes-") for name in mapped), "the JVM took it"
