"""Watermarks: how far a partition's, and so a pipeline's, event time is complete.

A partition's watermark follows its newest event, held back by the source's disorder, and a producer's
heartbeats. The pipeline's is the smallest of its partitions'. Neither ever goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

Partition = TypeVar("Partition", bound=Hashable)


def advance(
    watermark_ms: int | None, *, newest_event_ms: int | None, heartbeat_ms: int | None, disorder_ms: int
) -> int | None:
    """A partition's watermark after a chunk: no event earlier than it is expected."""
    held_back = None if newest_event_ms is None else newest_event_ms - disorder_ms
    known = [w for w in (watermark_ms, held_back, heartbeat_ms) if w is not None]
    return max(known, default=None)


def of_pipeline(
    previous_ms: int | None,
    partitions: Mapping[Partition, int | None],
    *,
    idle: Collection[Partition] = (),
) -> int | None:
    """Smallest watermark over the partitions that are not idle; None while one has none yet.

    When all are idle it stays where it was.
    """
    live = [w for p, w in partitions.items() if p not in idle]
    if not live or any(w is None for w in live):
        return previous_ms
    smallest = min(w for w in live if w is not None)
    return smallest if previous_ms is None else max(previous_ms, smallest)
