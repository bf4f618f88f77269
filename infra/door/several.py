"""A door of several processes that share its port: the system gives each new connection to one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from infra.door.run import CLOSES_WITHIN_S, OPEN
from infra.settings import Settings
from infra.supervisor import ProcessFailed, Supervised, tidemill
from schemas.errors import InvalidConfiguration

_LOOK_S = 0.1
_OPENS_WITHIN_S = 120.0


def run_several(settings: Settings, arguments: Sequence[str], console: Console) -> None:
    """Run `door.processes` doors on one port until Ctrl-C or SIGTERM; one that is killed is started again.

    Args:
        arguments: of `tidemill`, for each of them.

    Raises:
        InvalidConfiguration: the port is taken, or this system cannot share one.
        ProcessFailed: one of them fails for good; its log says why.
    """
    door = settings.door
    with _asked_to_stop() as asked, _reserved(door.host, door.port) as port:
        doors = [
            Supervised(
                f"door {number + 1}",
                tidemill(*arguments),
                settings.paths.logs / f"door-{number + 1}.log",
                {
                    "TIDEMILL_DOOR__PORT": str(port),
                    "TIDEMILL_DOOR__PROCESSES": "1",
                    **_metrics_port(door.metrics_port, number),
                },
            )
            for number in range(door.processes)
        ]
        try:
            for each in doors:
                each.log_file.unlink(missing_ok=True)
                each.start()
            _await_open(doors, asked)
            for each in doors if not asked else ():
                console.print(f"{each.name} is open, log {each.log_file}", highlight=False, soft_wrap=True)
            if not asked:
                host = f"[{door.host}]" if ":" in door.host else door.host
                said = f"{OPEN} http://{host}:{port}/v1/events/STREAM"
                console.print(said, highlight=False, soft_wrap=True)
            while not asked:
                time.sleep(_LOOK_S)
                for each in doors:
                    if each.keep_alive():
                        console.log(f"{each.name} was killed and is started again")
        finally:
            for each in doors:
                with contextlib.suppress(ProcessLookupError):
                    if each.pid:
                        os.kill(each.pid, signal.SIGTERM)
            for each in doors:
                each.stop(door.answer_within_s + CLOSES_WITHIN_S)
    console.print("closed; every event that was acknowledged is on the cluster")


def _metrics_port(first: int | None, number: int) -> dict[str, str]:
    if not first:  # nowhere, or a free one for each
        return {}
    return {"TIDEMILL_DOOR__METRICS_PORT": str(first + number)}


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGINT or SIGTERM has come."""
    asked: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: asked.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """The port, which nobody else listens on and which stays ours while the block runs."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidConfiguration("this system shares no port among processes: set door.processes to 1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as kept:
        try:
            with socket.socket(family) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((host, port))
                alone.listen(1)  # fails where somebody listens, also one that would share
                port = alone.getsockname()[1]
            held = kept.enter_context(socket.socket(family))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, port))
        except OSError as error:
            raise InvalidConfiguration(
                f"the door cannot listen on {host}:{port}: {error}; set door.host and door.port to an "
                "address that is free"
            ) from error
        yield port


def _await_open(doors: Sequence[Supervised], asked: Sequence[int]) -> None:
    until_s = time.monotonic() + _OPENS_WITHIN_S
    waiting = list(doors)
    while waiting and not asked:
        for each in doors:
            each.keep_alive()
        waiting = [each for each in waiting if OPEN not in each.log_tail()]
        if waiting and time.monotonic() > until_s:
            slow = waiting[0]
            raise ProcessFailed(slow.name, 0, slow.log_file, slow.log_tail())
        time.sleep(_LOOK_S)
