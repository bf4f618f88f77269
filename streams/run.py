"""Run a worker in this process by Faust's own command line."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence

from faust.cli.faust import cli

from infra.kafka.cluster import find_cluster
from infra.settings import Settings

# How long memory that is free is kept for what comes next.
_KEPT_MS = 10_000
_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2


def share_arenas() -> None:
    """Let all threads take memory from a few arenas of glibc's: what one lets go of, another can take.

    By itself each thread has one of its own, and a chunk is fetched by one thread and let go of by another.
    Does nothing where MALLOC_ARENA_MAX says otherwise, or malloc is not glibc's.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def run(settings: Settings, arguments: Sequence[str] = ()) -> int:
    """`faust -A streams.app worker`, on the cluster that the settings mean; gives the exit code.

    Any further arguments are Faust's own.
    """
    share_arenas()
    if settings.worker.polars_threads is not None:  # read when Polars computes for the first time
        os.environ["POLARS_MAX_THREADS"] = str(settings.worker.polars_threads)
    # By itself Polars gives memory back after half a second, and takes it again page by page for the next
    # batch: a tenth of a worker's time. Read when Polars is imported.
    os.environ.setdefault("_RJEM_MALLOC_CONF", f"dirty_decay_ms:{_KEPT_MS},muzzy_decay_ms:{_KEPT_MS}")
    connection = find_cluster(settings)
    if connection is not None:
        os.environ["TIDEMILL_KAFKA__BOOTSTRAP_SERVERS"] = connection.bootstrap_servers
    # Stock Faust binds its web server to all interfaces even when it is disabled.
    web = [] if settings.worker.web_port is not None else ["--without-web"]
    command = ["-A", "streams.app", "worker", "-l", settings.log.level.replace("warning", "warn"), *web]
    try:
        cli([*command, *arguments], standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
