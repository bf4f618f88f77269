"""Every so many versions one file says what all entries before it come to, for those who open the dataset.

Nobody waits for it: to make one takes as long as several commits, and without it a reader has a few more
entries to go through.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infra.atomic_file import flush

EVERY = 100
"""Versions from one to the next."""


def checkpoint(uri: str, version: int) -> None:
    """Make the one of that version, on disk when this returns; the next one makes up for it if that fails."""
    log = Path(uri) / "_delta_log"
    with contextlib.suppress(DeltaError, OSError):
        DeltaTable(uri, version=version).create_checkpoint()
        for file in (*log.glob(f"{version:020d}.checkpoint*"), log / "_last_checkpoint", log):
            flush(file)


class Checkpoints:
    """Makes them beside the commits of one process, one at a time; a process that ends finishes its last."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def committed(self, version: int) -> None:
        """That version is on disk."""
        if version % EVERY == 0:
            self._last = self._thread.submit(checkpoint, self.uri, version)

    def wait(self) -> None:
        """Until all that were due are made."""
        if self._last is not None:
            self._last.result()
