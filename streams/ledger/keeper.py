"""Upkeep of a dataset in the background: the worker that speaks for the pipeline compacts and vacuums.

Nothing else waits for it: what fails is said and tried again later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from deltalake.exceptions import DeltaError

from infra.kafka.connection import Connection
from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.settings_model import Upkeep
from schemas.errors import TidemillError
from streams.ledger.compaction import compact
from streams.ledger.retention import references, vacuum

log = structlog.get_logger(__name__)


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
        while options.compact and self._is_mine():
            done = await asyncio.to_thread(
                compact, self.uri, files=options.compact_files, file_bytes=options.file_bytes
            )
            if done is None:
                break
            self._instruments.count(metrics.COMPACTIONS, 1, self._pipeline)
            log.info("compacted", dataset=self.uri, version=done.version, files=done.files, rows=done.rows)
        since_ms = (time.monotonic() - self._vacuumed_at) * 1000
        if options.vacuum and self._is_mine() and since_ms >= options.vacuum_interval_ms:
            self._vacuumed_at = time.monotonic()
            kept = (await references(self.connection, self.uri)).versions()
            deleted = await asyncio.to_thread(vacuum, self.uri, keep=kept, keep_hours=options.keep_hours)
            log.info("vacuumed", dataset=self.uri, files=len(deleted), kept_versions=sorted(kept))
