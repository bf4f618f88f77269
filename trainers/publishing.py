"""One at a time says what is current: the trainer that publishes, and the person who rolls back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.errors import Retryable

LOCK_FILE = "publishing.lock"
_PATIENCE_S = 60.0


class PublishingBusy(Retryable):
    """Somebody else holds the right to publish, and does not let go."""


@asynccontextmanager
async def publishing(folder: Path) -> AsyncIterator[None]:
    """Hold the right to give out the next version of a model; it ends with the process, whatever ends that.

    Two who gave out the same number would leave the history and the current topic in disagreement.

    Raises:
        PublishingBusy: it was not to be had in a minute.
    """
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    try:
        await asyncio.to_thread(lock.acquire, timeout=_PATIENCE_S)
    except Timeout as error:
        raise PublishingBusy(
            f"{lock.lock_file} has been held for {_PATIENCE_S:g} s: a trainer is publishing, and does not "
            "come to an end; see its log, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()
