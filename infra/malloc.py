"""How glibc's malloc treats what is free: the default suits neither who fetches much nor who sends much."""

from __future__ import annotations

import contextlib
import ctypes
import os

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2
_FETCHED_BYTES, _SENT_BYTES = 4 * 2**20, 32 * 2**20  # glibc takes no more
_SPARED_BYTES, _KEPT_BYTES = 64 * 2**20, 128 * 2**20


def spare() -> None:
    """Keep little of what is free: for a process that fetches.

    All threads take memory from a few arenas: by itself each has one of its own, and a chunk is fetched by
    one thread and let go of by another. And what is as large as an answer to a fetch is always mapped, and
    given back at once: by itself malloc soon takes such from an arena, too, and leaves holes there.

    Does nothing where the environment (`MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_`) says otherwise, or
    malloc is not glibc's.
    """
    with contextlib.suppress(AttributeError, OSError):
        if "MALLOC_ARENA_MAX" not in os.environ:
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    _set(mapped_bytes=_FETCHED_BYTES, kept_bytes=_SPARED_BYTES)


def keep() -> None:
    """Keep what is free for the next request: for a process that sends without a pause.

    A request of some megabytes is copied several times before it is on its way. By itself malloc gives each
    copy back and takes it again page by page, which is up to a third of what a push costs.

    Does nothing where the environment (`MALLOC_MMAP_THRESHOLD_`) says otherwise, or malloc is not glibc's.
    """
    _set(mapped_bytes=_SENT_BYTES, kept_bytes=_KEPT_BYTES)


def _set(*, mapped_bytes: int, kept_bytes: int) -> None:
    """Map what is as large as that, and give back what is free beyond so much."""
    with contextlib.suppress(AttributeError, OSError):
        if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, mapped_bytes)
            # Which would else be no more than 128 KiB from now on.
            mallopt(_M_TRIM_THRESHOLD, kept_bytes)
