"""Frames that wait for a commit, bounded by rows and bytes: the backpressure on the fetch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from streams.decode.heights import heights
from streams.transport.frame import Frame

# One to commit, one to fill meanwhile.
_BATCHES = 2


@dataclass(slots=True)
class Arrived:
    """A frame, whom to tell once it is in the dataset, and the rows of each record."""

    frame: Frame
    done: Callable[[], object]
    heights: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        if len(self.heights) != len(self.frame):
            self.heights = heights(self.frame)
        self.rows = int(self.heights.sum())

    def parted(self, most_rows: int) -> tuple[Arrived, Arrived | None]:
        """The records that have room in so many rows, at least one; and the rest, which ends the frame."""
        count = max(1, int(np.searchsorted(np.cumsum(self.heights), most_rows, side="right")))
        if count >= len(self.frame):
            return self, None
        head, rest = self.frame.parted(count)
        return (
            Arrived(head, _nobody_waits, self.heights[:count]),
            Arrived(rest, self.done, self.heights[count:]),
        )


def _nobody_waits() -> None:
    """For a frame's first part: its last one tells."""


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
        return bool(self.frames) and self.fullness() >= _BATCHES

    def fullness(self) -> float:
        """What waits as a share of one batch, by rows or by bytes, whichever is more."""
        return max(self.rows / self.max_rows, self.size_bytes / self.max_bytes)

    async def put(self, arrived: Arrived) -> None:
        """Add a frame; waits while there is no room for it."""
        while self.is_full():
            self._room.clear()
            await self._room.wait()
        self.frames.append(arrived)
        self._count(arrived, 1)
        self.changed.set()

    def take(self) -> list[Arrived]:
        """One batch: the oldest records, at least one if there is any.

        It has at most `max_rows` rows, unless a single record has more; frames are parted for it.
        """
        taken: list[Arrived] = []
        rows = size_bytes = 0
        while self.frames and (not taken or (rows < self.max_rows and size_bytes < self.max_bytes)):
            if taken and rows + int(self.frames[0].heights[:1].sum()) > self.max_rows:
                break
            first = self.frames.popleft()
            self._count(first, -1)
            arrived, rest = first.parted(self.max_rows - rows)
            if rest is not None:
                self.frames.appendleft(rest)
                self._count(rest, 1)
            taken.append(arrived)
            rows += arrived.rows
            size_bytes += arrived.frame.size_bytes
        self._room.set()
        if not self.frames:
            self.changed.clear()
        return taken

    def drop(self) -> None:
        """Forget all of it; nobody waits for it any more."""
        while self.frames:
            self.frames.popleft().done()
        self.rows = self.size_bytes = 0
        self._room.set()
        self.changed.clear()

    def _count(self, arrived: Arrived, sign: int) -> None:
        self.rows += sign * arrived.rows
        self.size_bytes += sign * arrived.frame.size_bytes
