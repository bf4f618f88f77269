"""Loops over bytes and numbers, compiled by numba: at the processor's own speed, beside Python's lock.

They are loaded when a worker first gets many records at once, in a thread, while those are read in another
way: it takes half a second of the processor, and some seconds more the first time on a machine. numba keeps
what it compiled beside the modules, or in the user's cache folder. Who gets few records, as most tests and
small topics do, loads nothing.
"""

from __future__ import annotations

import importlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import structlog

log = structlog.get_logger(__name__)


_MODULES = ("json_walk", "record_walk", "cut_walk", "key_walk", "account_walk")


@dataclass(frozen=True, slots=True)
class Walks:
    """The compiled modules."""

    json: ModuleType
    records: ModuleType
    cut: ModuleType
    keys: ModuleType
    accounts: ModuleType


def walks(*, ask: bool) -> Walks | None:
    """The compiled loops; None while they are not there, or cannot be had.

    Args:
        ask: whether they are worth loading.
    """
    if not (ask or loading.cache_info().currsize):
        return None
    load = loading()
    return load.result() if load.done() and load.exception() is None else None


@cache
def loading() -> Future[Walks]:
    """The compiled loops, as soon as they are there; asked for once in a process."""
    thread = ThreadPoolExecutor(1, "compiled")
    load = thread.submit(_load)
    thread.shutdown(wait=False)
    load.add_done_callback(_say)
    return load


def _load() -> Walks:
    return Walks(*(importlib.import_module(f"{__name__}.{name}") for name in _MODULES))


def _say(load: Future[Walks]) -> None:
    if (error := load.exception()) is not None:
        log.warning(
            "compiled loops cannot be had: records are read one by one, at about half the rate",
            error=f"{type(error).__name__}: {error}",
            remedy="if they cannot be kept, set NUMBA_CACHE_DIR to a folder that this process may write to",
        )
