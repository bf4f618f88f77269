"""Environments of peers: made by uv or Maven on demand, kept in the cache folder, never the product's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from loadtest.ingest.side import PEERS, Absent, Start, Task

_INSTALL_S = 1_800


def python_of(requirements: Path, cache_dir: Path) -> Path:
    """The interpreter of an environment with exactly these pinned requirements.

    Raises:
        Absent: uv is missing, or the installation fails.
    """
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_dir / "bench" / f"{requirements.stem}-{digest}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        ready = folder / ".ready"
        if ready.exists() and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run(_uv(), "venv", "--quiet", "--python", sys.executable, str(folder))
        _run(_uv(), "pip", "install", "--quiet", "--python", str(python), "--requirement", str(requirements))
        ready.touch()
    return python


def classes_of(project: Path, cache_dir: Path) -> Path:
    """A folder with `target/classes` and `target/dependency`, built of exactly this Maven project.

    Raises:
        Absent: Maven or a JDK is missing, or the build fails.
    """
    sources = sorted(file for file in project.iterdir() if file.suffix in {".xml", ".java"})
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    folder = cache_dir / "bench" / f"{project.name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        ready = folder / ".ready"
        if ready.exists():
            return folder
        for program in ("mvn", "javac"):
            if shutil.which(program) is None:
                raise Absent(f"it is built by Maven and a JDK of 17 or later, but there is no {program} here")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in sources:
            shutil.copy(file, folder)
        _run(
            *("mvn", "--quiet", "--batch-mode", "-Dstyle.color=never", "--file", str(folder / "pom.xml")),
            *("compile", "dependency:copy-dependencies"),
        )
        ready.touch()
    return folder


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise Absent("its environment is made by uv, which is not installed: pip install uv")
    return found


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.CalledProcessError as error:
        raise Absent(f"{Path(command[0]).name} failed: {_reason(error.stdout, error.stderr)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{command[0]} could not be run: {error}") from error


def _reason(stdout: str, stderr: str) -> str:
    """Maven's errors come first and on its standard output; uv's come last."""
    # Maven may put a colour's end before the first of them, whatever it is told of colours.
    said = stdout.replace("\x1b[0m", "").splitlines()
    if errors := [line for line in said if line.startswith("[ERROR] ")]:
        return "\n".join(errors[:3])
    return "\n".join((stderr.strip() or stdout.strip()).splitlines()[-3:])


def apart(program: str, requirements: str, runner: tuple[str, ...] = ()) -> Callable[[Task], Start]:
    """A program in an environment of its own, by Python or by that environment's `python -m runner`."""

    def prepare(task: Task) -> Start:
        python = python_of(PEERS / requirements, task.cache_dir)
        side = Path(program).stem
        return Start(command=[str(python), *runner, str(PEERS / program)], environment=task.environment(side))

    return prepare


def java(project: str, main: str) -> Callable[[Task], Start]:
    """A Maven project of one program."""

    def prepare(task: Task) -> Start:
        target = classes_of(PEERS / project, task.cache_dir) / "target"
        classpath = os.pathsep.join([str(target / "classes"), str(target / "dependency" / "*")])
        return Start(
            command=["java", "-Xmx1g", "-cp", classpath, main], environment=task.environment(project)
        )

    return prepare


def with_jars(program: str, requirements: str, project: str) -> Callable[[Task], Start]:
    """A program in an environment of its own that takes jars by Maven besides, as `BENCH_JARS` names them."""

    def prepare(task: Task) -> Start:
        jars = sorted((classes_of(PEERS / project, task.cache_dir) / "target" / "dependency").glob("*.jar"))
        start = apart(program, requirements)(task)
        return replace(
            start, environment={**start.environment, "BENCH_JARS": ";".join(jar.as_uri() for jar in jars)}
        )

    return prepare
