"""How much memory a job's processes hold for themselves."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def own_bytes(pid: int) -> int:
    """Memory of a process that no file backs; 0 if it is gone.

    Pages that a fork still shares with its parent are counted: whoever wants what a fork took itself takes
    off what its parent has.
    """
    try:
        if not (_PROC / "self/statm").exists():
            return psutil.Process(pid).memory_info().rss
        _, resident, shared, *_ = (_PROC / str(pid) / "statm").read_text(encoding="ascii").split()
    except (OSError, ValueError, psutil.Error):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def tree_bytes(pid: int, *, inherited_bytes: int = 0) -> int:
    """What a process and all that it started hold, less what the forked ones were born with."""
    return max(0, _sum_bytes(pid) - inherited_bytes)


def _sum_bytes(pid: int) -> int:
    return own_bytes(pid) + sum(_sum_bytes(child) for child in _children(pid))


def _children(pid: int) -> list[int]:
    # Not psutil's `children`, which reads every process of the machine.
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
        lists = [(task / "children").read_text(encoding="ascii") for task in tasks]
    except OSError:
        return []
    return [int(child) for line in lists for child in line.split()]


def private_bytes(pid: int) -> int | None:
    """What a process and all that it started share with nobody; None where the system does not tell.

    Dearer to ask than `tree_bytes`, and not fooled by a process that is just starting another: between fork
    and exec the second one seems to hold all that the first has.
    """
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    own_kib = sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
    return own_kib * 1024 + sum(private_bytes(child) or 0 for child in _children(pid))
