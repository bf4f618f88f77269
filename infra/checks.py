"""The one check command, `python3 infra/bootstrap.py check`: format, lint, types, import rules, tests.

Every check runs, also after one that fails. The tests come last: their closing line is the last line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class Check:
    """One tool of this environment with its arguments."""

    name: str
    command: tuple[str, ...]
    remedy: str = "see its lines above"


FIX = "python3 infra/bootstrap.py check --fix"
STATIC = (
    Check(name="format", command=("ruff", "format", "--check", "."), remedy=f"{FIX} mends it"),
    Check(name="lint", command=("ruff", "check", "."), remedy=f"{FIX} mends what can be mended"),
    Check(name="types", command=("pyright", "--pythonpath", sys.executable)),
    Check(name="imports", command=("lint-imports",)),
    Check(name="contracts", command=("python", "-m", "schemas.compatibility")),
)
# A file shares what it started, so its tests are run by one process. Each process has a broker of its own.
SIDE_BY_SIDE = (f"--numprocesses={min(os.cpu_count() or 1, 4)}", "--dist=loadfile")
FIXES = (
    Check(name="format", command=("ruff", "format", ".")),
    Check(name="lint", command=("ruff", "check", "--fix", ".")),
)


def run(check: Check) -> bool:
    """Run one tool with its output on ours; whether it was content."""
    tool, *arguments = check.command
    # The lock decides pyright's version: it need not ask the index for a newer one.
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run([TOOLS / tool, *arguments], cwd=ROOT, env=environment, check=False).returncode == 0


def run_all(checks: Sequence[Check]) -> bool:
    """Run every check, then one line for each; whether all were content."""
    lines: list[str] = []
    all_well = True
    for check in checks:
        print(f"── {check.name}: {' '.join(check.command)}", flush=True)
        began = time.monotonic()
        well = run(check)
        all_well &= well
        lines.append(
            f"{'ok  ' if well else 'FAIL'} {check.name:8} {time.monotonic() - began:6.1f} s"
            + ("" if well else f"  {check.remedy}")
        )
    print("──", *lines, sep="\n", flush=True)
    return all_well


def main() -> int:
    """Exit status 0 if every check is content, else 1."""
    parser = argparse.ArgumentParser(prog="infra/bootstrap.py check", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--fast", action="store_true", help="all but the tests")
    mode.add_argument("--fix", action="store_true", help="format, and mend what the lint can mend")
    parser.add_argument("tests", nargs="*", help="paths for pytest; options after --")
    asked = parser.parse_args()
    if asked.fix:
        return 0 if run_all(FIXES) else 1
    static = run_all(STATIC)
    if asked.fast:
        return 0 if static else 1
    tests = run(Check(name="tests", command=("pytest", *(asked.tests or SIDE_BY_SIDE))))
    return 0 if static and tests else 1


if __name__ == "__main__":
    sys.exit(main())
