"""Looks at an artifact folder as a service does that fetches at the worst moment: every file, ever again."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from trainers.artifact import digest_in

_LOOK_S = 0.005


class ArtifactWatch:
    """Reads each file that has an artifact's name, whenever it is another than the last time.

    Attributes:
        whole: digests that were found to be what their names say.
        broken: names whose bytes were not, at any moment.
    """

    def __init__(self, folder: Path) -> None:
        self.whole: set[str] = set()
        self.broken: set[str] = set()
        self.looks = 0
        self._folder = folder
        self._known: dict[str, tuple[int, int, int]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Once, at all of them."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        self.looks += 1
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if (digest := digest_in(path.name)) is None:
                continue
            status = path.stat()
            state = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._known.get(path.name) == state:
                continue
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                self._known[path.name] = state
                self.whole.add(digest)
            else:
                self.broken.add(path.name)
