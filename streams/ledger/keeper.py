"""Upkeep of a dataset in the background: the worker that speaks for the pipeline compacts and vacuums.

Nothing else waits for it: what fails is said and tried again later. A compaction has a process of its own
(`streams.ledger.compactor`), started only where there is something to compact.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable

import msgspec
import structlog
from deltalake.exceptions import DeltaError

from infra.kafka.connection import Connection
from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.settings_model import Upkeep
from schemas.errors import Retryable, TidemillError
from streams.ledger.compaction import Compacted, is_due
from streams.ledger.retention import references, vacuum

log = structlog.get_logger(__name__)

# One thread, and memory is given back at once: nobody waits for it.
_LEAN = {"POLARS_MAX_THREADS": "1", "_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}
# How long it may take to remove what it was writing.
_END_S = 3.0


class CompactionFailed(Retryable):
    """The process that compacts ended without having done it. Nothing changed."""


class Keeper:
    """Keeps one pipeline's dataset, while `is_mine` says so."""

    def __init__(
        self,
        uri: str,
        connection: Connection,
        options: Upkeep,
        *,
        is_mine: Callable[[], bool],
        pipeline: str = "",
        instruments: Instruments | None = None,
    ) -> None:
        self.uri, self.connection, self.options = uri, connection, options
        self._is_mine = is_mine
        self._pipeline = pipeline
        self._instruments = instruments or Instruments("worker")
        self._vacuumed_at = time.monotonic()

    async def run(self) -> None:
        """Look after it for ever."""
        while True:
            await asyncio.sleep(self.options.interval_ms / 1000)
            try:
                await self.once()
            except (TidemillError, DeltaError, OSError) as error:
                self._instruments.count(metrics.UPKEEP_FAILURES, 1, self._pipeline)
                log.warning("upkeep failed, will try again", dataset=self.uri, error=str(error))
            except Exception as error:  # such as a cluster that is away
                self._instruments.count(metrics.UPKEEP_FAILURES, 1, self._pipeline)
                log.warning("upkeep failed, will try again", dataset=self.uri, error=repr(error))

    async def once(self) -> None:
        """Compact while there is something to, then vacuum if that is due."""
        options = self.options
        if options.compact and self._is_mine():
            due = await asyncio.to_thread(
                is_due, self.uri, files=options.compact_files, file_bytes=options.file_bytes
            )
            if due:
                await self._compact()
        since_ms = (time.monotonic() - self._vacuumed_at) * 1000
        if options.vacuum and self._is_mine() and since_ms >= options.vacuum_interval_ms:
            self._vacuumed_at = time.monotonic()
            kept = (await references(self.connection, self.uri)).versions()
            deleted = await asyncio.to_thread(vacuum, self.uri, keep=kept, keep_hours=options.keep_hours)
            log.info("vacuumed", dataset=self.uri, files=len(deleted), kept_versions=sorted(kept))

    async def _compact(self) -> None:
        """Until there is nothing more to compact, or the dataset is another's to keep.

        Raises:
            CompactionFailed: the process ended before that.
        """
        options = self.options
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "streams.ledger.compactor",
            *(str(os.getpid()), self.uri, str(options.compact_files), str(options.file_bytes)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **_LEAN},
            start_new_session=True,  # Ctrl-C is the worker's to handle
        )
        assert process.stdout is not None
        assert process.stderr is not None
        complaint = asyncio.create_task(process.stderr.read())
        try:
            async for line in process.stdout:
                done = msgspec.json.decode(line, type=Compacted)
                self._instruments.count(metrics.COMPACTIONS, 1, self._pipeline)
                log.info(
                    "compacted", dataset=self.uri, version=done.version, files=done.files, rows=done.rows
                )
                if not self._is_mine():
                    return
            if code := await process.wait():
                said = (await complaint).decode(errors="replace").strip().splitlines()
                raise CompactionFailed(
                    f"the process that compacts {self.uri} ended with {code}"
                    + (f": {said[-1]}" if said else "; the dataset is as it was")
                )
        finally:
            await _end(process)
            complaint.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
