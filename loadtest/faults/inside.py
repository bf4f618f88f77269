"""A worker that can be struck from the inside: `python -m loadtest.faults.inside` runs `faust worker`.

Environment, each part optional:
    FAULTS_STRIKE=where,number,signal   at its number-th coming to that place it sends itself the signal
    FAULTS_CLOCK=file                   the file holds seconds by which this process's clock is wrong
The product knows nothing of this: its functions are wrapped from here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLACES = (
    "the cluster answered",  # that was asked at its start, and it is not connected yet
    "before a commit",  # its dead letters are out, its rows are not in
    "linking",  # its data file is written, its log entry is not there
    "before the flush",  # rows and log entry are written, nothing is on disk for sure
    "after a commit",  # on disk, and nothing of it announced
    "announcing",  # some of what it announces, or of its dead letters, is out
)


class Strike:
    """Counts how often a place is come to, and strikes at the given one."""

    def __init__(self, number: int, name: str) -> None:
        self._left, self._signal = number, getattr(signal, name)

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            # To this thread: by `os.kill` another one may take it, and this one goes on for milliseconds.
            signal.pthread_kill(threading.get_ident(), self._signal)


def arm(where: str, strike: Callable[[], None]) -> None:
    """Have `strike` called whenever the process comes to that place."""
    from aiokafka import AIOKafkaProducer

    import streams.ledger.commit
    from streams.ledger.commit import Ledger

    if where == "the cluster answered":
        import streams.app

        answered = streams.app.await_cluster

        async def asked(*arguments: Any, **named: Any) -> str:
            found = await answered(*arguments, **named)
            strike()
            return found

        streams.app.await_cluster = asked
    elif where == "announcing":
        send = AIOKafkaProducer.send_batch

        async def sent(self: Any, *arguments: Any, **named: Any) -> Any:
            future = await send(self, *arguments, **named)
            strike()
            return future

        AIOKafkaProducer.send_batch = sent  # type: ignore[method-assign]
    elif where == "linking":
        put = streams.ledger.commit.put

        def linked(*arguments: Any, **named: Any) -> None:
            strike()
            put(*arguments, **named)

        streams.ledger.commit.put = linked
    elif where == "before the flush":
        flush = streams.ledger.commit.make_durable

        def flushed(uri: str, version: int) -> None:
            strike()
            flush(uri, version)

        streams.ledger.commit.make_durable = flushed
    elif where in ("before a commit", "after a commit"):
        commit = Ledger.commit

        def committed(self: Any, rows: Any, **named: Any) -> int:
            # One without rows says that partitions rest, or how the live model fares.
            if rows.height and where == "before a commit":
                strike()
            version = commit(self, rows, **named)
            if rows.height and where == "after a commit":
                strike()
            return version

        Ledger.commit = committed  # type: ignore[method-assign]
    else:
        raise ValueError(f"{where!r} is none of {PLACES}")


def set_clock_by(file: Path) -> None:
    """From now on `time.time()` is wrong by what the file says; the monotonic clock is not."""
    real, real_ns = time.time, time.time_ns

    def wrong_by_s() -> float:
        try:
            return float(file.read_text() or 0)
        except (OSError, ValueError):
            return 0.0

    time.time = lambda: real() + wrong_by_s()
    time.time_ns = lambda: real_ns() + int(wrong_by_s() * 1e9)


def main() -> None:
    """Arm what the environment says and run the worker."""
    if clock := os.environ.get("FAULTS_CLOCK"):
        set_clock_by(Path(clock))
    if said := os.environ.get("FAULTS_STRIKE"):
        where, number, name = said.split(",")
        arm(where, Strike(int(number), name))
    from faust.cli.faust import cli

    cli(["-A", "streams.app", "worker", *sys.argv[1:]])


if __name__ == "__main__":
    main()
