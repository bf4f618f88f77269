"""Environments of peers: made by uv on demand, kept in the cache folder, never among the product's own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
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
        last = "\n".join(error.stderr.strip().splitlines()[-3:])
        raise Absent(f"{' '.join(command[1:3])} failed: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{command[0]} could not be run: {error}") from error


def apart(program: str, requirements: str) -> Callable[[Task], Start]:
    """A program in an environment of its own."""

    def prepare(task: Task) -> Start:
        python = python_of(PEERS / requirements, task.cache_dir)
        side = Path(program).stem
        return Start(command=[str(python), str(PEERS / program)], environment=task.environment(side))

    return prepare
