"""How a command begins and ends: signals, and the way an error reaches a person."""

from __future__ import annotations

import signal
import sys

import structlog

from infra.command import (
    backup,  # noqa: F401
    bench,  # noqa: F401  (importing registers the commands)
    bench_worker,  # noqa: F401
    commands,  # noqa: F401
    data,  # noqa: F401
    dataset,  # noqa: F401
    door,  # noqa: F401
    jobs,  # noqa: F401
    keys,  # noqa: F401
    lab,  # noqa: F401
    lineage,  # noqa: F401
    metrics,  # noqa: F401
    mirror,  # noqa: F401
    models,  # noqa: F401
    page,  # noqa: F401
    policies,  # noqa: F401
    redrive,  # noqa: F401
    rollback,  # noqa: F401
    sweep,  # noqa: F401
    upkeep,  # noqa: F401
    why,  # noqa: F401
)
from infra.command.app import app, console
from schemas.errors import TidemillError


class Stopped(KeyboardInterrupt):
    """Somebody asked us to end, by Ctrl-C or SIGTERM: what was started is stopped on the way out.

    An event loop hands this kind alone on, out of whichever task or callback the signal came in; any other
    would end that task and be forgotten.
    """


def main() -> None:
    """Run a command; a known error is one clear message and a non-zero exit, never a traceback."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop)
    # Until a part sets up a log of its own: what is said on the way is no answer.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        app()
    except TidemillError as error:
        console.print(f"[red bold]{_title(error)}[/]: {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Stopped:
        console.print("stopped; nothing that was accepted is lost")
        sys.exit(130)


def _stop(_signal: int, _frame: object) -> None:
    # Once: a second Ctrl-C must not break off the stopping of what still runs.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped


def _title(error: TidemillError) -> str:
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(error).__name__)
    return words.strip().capitalize()
