"""The command line's root: options that all commands share, and how an error reaches a person."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra import settings as configuration
from infra.settings import Settings
from schemas.errors import TidemillError

app = typer.Typer(
    name="tidemill",
    help="From raw Kafka events to models that services adopt.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# What a command prints for a person goes to stderr: standard output is for `--json`.
console = Console(stderr=True)

_config: Path | None = None


@app.callback()
def root(
    config: Annotated[
        Path | None, typer.Option(help="Settings file; else TIDEMILL_CONFIG or ./tidemill.toml.")
    ] = None,
) -> None:
    """From raw Kafka events to models that services adopt."""
    global _config  # noqa: PLW0603  (typer's callback is where the option ends up)
    _config = config


def settings() -> Settings:
    """The settings as this command line, the environment and the file have them."""
    return configuration.load(_config)


class Stopped(BaseException):
    """Somebody asked us to end, by Ctrl-C or SIGTERM: what was started is stopped on the way out."""


def main() -> None:
    """Run a command; a known error is one clear message and a non-zero exit, never a traceback."""
    from infra.command import commands  # noqa: F401  (importing registers the commands)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop)
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
