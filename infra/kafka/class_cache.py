"""The broker's classes, loaded and linked once and mapped by every later start: half the time and processor.

The wheel's Java comes without any such archive. HotSpot makes one at the end of a training run and checks at
each start that it fits Java and jars (JEP 483 and JEP 514); what does not fit is left alone.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from infra import atomic_file
from schemas.errors import TidemillError

from .java import JavaRuntime

OLDEST_JAVA = 25
"""The first that makes one in one step."""
_STAGING = ".classes-"
_KEPT = 3


def options(
    java: JavaRuntime,
    jars: Sequence[Path],
    train: Callable[[Path, str], None],
    *,
    console: Console | None = None,
) -> list[str]:
    """The JVM's options by which it maps the cache beside the jars; made first where there is none.

    Empty where Java is too old, where another process is just making it, or where it cannot be made: the
    broker starts as well without. That it cannot is noted in a file beside it and not tried again.

    train: runs a broker once in the given empty folder, with the given option, and ends it cleanly.
    """
    if java.major < OLDEST_JAVA:
        return []
    try:
        made = jars[0].parent / f"classes-{_key(java, jars)}.aot"
    except OSError:  # a Java that keeps its classes elsewhere
        return []
    refusal = made.with_suffix(".txt")
    if not _is_whole(made):
        if refusal.exists():
            return []
        try:
            with FileLock(made.parent / ".making-classes", timeout=0):
                if not _is_whole(made):
                    _make(made, train, console)
        except Timeout:
            return []
        except (TidemillError, OSError) as error:
            refusal.write_text(
                f"not made: {error}\nThe broker starts without; delete this file to try again.\n"
            )
            return []
    return [f"-XX:AOTCache={made}"]


def _key(java: JavaRuntime, jars: Sequence[Path]) -> str:
    """What the JVM holds a cache against: its own image and the jars, by size and time."""
    image = java.executable.resolve().parent.parent / "lib" / "modules"
    said = [f"{file.name} {(stat := file.stat()).st_size} {stat.st_mtime_ns}" for file in (image, *jars)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def _make(made: Path, train: Callable[[Path, str], None], console: Console | None) -> None:
    if console:
        console.print("making the broker's class cache, once: later starts take half the time")
    for stale in made.parent.glob(f"{_STAGING}*"):  # left by a killed process; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=_STAGING, dir=made.parent))
    try:
        staged = place / "classes.aot"
        train(place / "kafka", f"-XX:AOTCacheOutput={staged}")
        mark = _digest(staged)
        # Another environment's Java may have one, too; of those that nobody uses any more few are kept.
        former = sorted(made.parent.glob("classes-*.aot"), key=lambda file: file.stat().st_mtime_ns)
        for file in former[: 1 - _KEPT]:
            file.unlink(missing_ok=True)
            file.with_suffix(".sha256").unlink(missing_ok=True)
        staged.replace(made)
        atomic_file.write_text(made.with_suffix(".sha256"), mark)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_whole(made: Path) -> bool:
    """The JVM sees another size or Java, and not every broken byte."""
    try:
        return _digest(made) == made.with_suffix(".sha256").read_text(encoding="utf-8")
    except OSError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
