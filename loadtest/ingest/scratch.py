"""A broker and a folder that a benchmark has for itself, and that are gone after it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from infra.kafka import EmbeddedBroker

_HEAP_MIB = 512


@contextmanager
def scratch(
    cache_dir: Path, console: Console | None, *, broker_settings: Mapping[str, str] | None = None
) -> Iterator[tuple[EmbeddedBroker, Path]]:
    """A running broker, and a folder for scratch data.

    Raises:
        TidemillError: the broker did not start; see `EmbeddedBroker.start`.
    """
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with EmbeddedBroker(
            folder / "kafka",
            heap_mib=_HEAP_MIB,
            broker_settings=broker_settings,
            cache_dir=cache_dir,
            console=console,
        ) as broker:
            yield broker, folder
