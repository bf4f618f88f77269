"""The command line's root: the options and the console that all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra import settings as configuration
from infra.settings import Settings

app = typer.Typer(
    name="tidemill",
    help="From raw Kafka events to models that services adopt.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# What is asked for goes to standard output; what is said on the way to it, to stderr.
answers = Console()
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


def with_config() -> tuple[str, ...]:
    """Options that give another `tidemill` the settings file that this one was given."""
    return () if _config is None else ("--config", str(_config.absolute()))


def settings() -> Settings:
    """The settings as this command line, the environment and the file have them."""
    return configuration.load(_config)
