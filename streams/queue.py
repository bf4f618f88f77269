"""Frames that wait for a commit, bounded by rows and bytes: the backpressure on the fetch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from streams.transport.frame import Frame


@dataclass(slots=True)
class Arrived:
    """A frame, and whom to tell once it is in the dataset."""

    frame: Frame
    done: Callable[[], object]


@dataclass(slots=True)
class FrameQueue:
    """Holds up to two batches: one to commit, one to fill meanwhile."""

    max_rows: int
    max_bytes: int
    frames: deque[Arrived] = field(default_factory=deque)
    rows: int = 0
    size_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    def is_full(self) -> bool:
        """Whether somebody who brings a frame must wait."""
        return bool(self.frames) and (self.rows >= 2 * self.max_rows or self.size_bytes >= 2 * self.max_bytes)

    async def put(self, arrived: Arrived) -> None:
        """Add a frame; waits while there is no room for it."""
        while self.is_full():
            self._room.clear()
            await self._room.wait()
        self.frames.append(arrived)
        self.rows += len(arrived.frame)
        self.size_bytes += arrived.frame.size_bytes
        self.changed.set()

    def take(self) -> list[Arrived]:
        """One batch: the oldest frames, at least one if there is any."""
        taken: list[Arrived] = []
        rows = size_bytes = 0
        while self.frames and (not taken or (rows < self.max_rows and size_bytes < self.max_bytes)):
            arrived = self.frames.popleft()
            taken.append(arrived)
            rows += len(arrived.frame)
            size_bytes += arrived.frame.size_bytes
        self.rows -= rows
        self.size_bytes -= size_bytes
        self._room.set()
        if not self.frames:
            self.changed.clear()
        return taken

    def drop(self) -> None:
        """Forget all of it; nobody waits for it any more."""
        while self.frames:
            for each in self.take():
                each.done()
