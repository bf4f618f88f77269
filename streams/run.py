"""Run a worker in this process by Faust's own command line."""

from __future__ import annotations

import os
from collections.abc import Sequence

from faust.cli.faust import cli

from infra import malloc
from infra.kafka.cluster import find_cluster
from infra.settings import Settings

# How long Polars keeps memory that is free for what comes next, and how many pools of it there are.
_KEPT_MS = 2_000
_MOST_POOLS = 4
# It leaves this in the environment once it is imported.
_BY_POLARS = ("dirty_decay_ms:500", "muzzy_decay_ms:1000")


def keep_memory() -> None:
    """Have Polars keep what is free for two seconds, in a pool for each core; to be called before its import.

    By itself it gives memory back after half a second, and takes it again page by page for the next batch: a
    twentieth of a worker's time. And it has four pools for each core, each of which keeps its own.

    What `_RJEM_MALLOC_CONF` says holds before this; but not what Polars itself put there, in a process that
    started this one.
    """
    pools = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, _MOST_POOLS)
    ours = (f"narenas:{pools}", f"dirty_decay_ms:{_KEPT_MS}", f"muzzy_decay_ms:{_KEPT_MS}")
    said = os.environ.get("_RJEM_MALLOC_CONF", "").split(",")
    # Of what is said twice the last holds.
    os.environ["_RJEM_MALLOC_CONF"] = ",".join(
        [*ours, *(each for each in said if each and each not in _BY_POLARS)]
    )


def run(settings: Settings, arguments: Sequence[str] = ()) -> int:
    """`faust -A streams.app worker`, on the cluster that the settings mean; gives the exit code.

    Any further arguments are Faust's own.
    """
    malloc.spare()
    if settings.worker.polars_threads is not None:  # read when Polars computes for the first time
        os.environ["POLARS_MAX_THREADS"] = str(settings.worker.polars_threads)
    keep_memory()
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
