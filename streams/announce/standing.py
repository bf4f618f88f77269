"""How far the pipeline is, said about once a second: a fold over the same commits as the announcements.

Not in the outbox: a standing that a crash swallowed is passed over by the next one.
"""

from __future__ import annotations

from collections.abc import Iterable

from infra.dataset import transaction_name, transactions_at
from schemas.standing import OpenWindow, PartitionStands, PipelineStands
from streams.announce.fold import Commit, Progress
from streams.ledger.commit import Partition

_MOST_WINDOWS = 50


class Standings:
    """Positions and watermarks by partition as of the commits taken in."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._stands: dict[str, PartitionStands] = {}
        self._committed_ms = 0

    def take_up(self, uri: str, version: int, partitions: Iterable[Partition]) -> None:
        """Begin behind a version: what the ledger said of these partitions then."""
        self._stands.clear()
        if version < 0:
            return
        said = transactions_at(uri, version)
        for topic, number in partitions:
            position = said(transaction_name("offset", topic, number))
            if position is not None:
                self._stands[f"{topic}/{number}"] = PartitionStands(
                    topic=topic,
                    partition=number,
                    next=position,
                    watermark_ms=said(transaction_name("watermark", topic, number)),
                    idle=said(transaction_name("idle", topic, number)) == position,
                )

    def take(self, commit: Commit) -> None:
        """Take a commit in; a compaction moves nothing."""
        said = commit.metadata
        for name, (_, end) in said.get("offsets", {}).items():
            topic, _, number = name.rpartition("/")
            known = self._stands.get(name)
            self._stands[name] = PartitionStands(
                topic=topic,
                partition=int(number),
                next=end,
                # An accepted gap moves a position and says nothing of time.
                watermark_ms=said.get("watermarks", {}).get(name, known.watermark_ms if known else None),
                idle=name in said.get("idle", ()),
            )
        self._committed_ms = commit.time_ms or self._committed_ms

    def event(self, progress: Progress) -> PipelineStands:
        """What there is to say at the fold's version."""
        filling = progress.windows.filling(progress.watermark_ms)
        return PipelineStands(
            pipeline=self._pipeline,
            dataset_version=progress.version,
            committed_ms=self._committed_ms,
            watermark_ms=progress.watermark_ms,
            partitions=[self._stands[name] for name in sorted(self._stands)],
            filling=[
                OpenWindow(window=each.window, rows=each.rows, closes_at_ms=each.closes_at_ms)
                for each in filling[-_MOST_WINDOWS:]
            ],
            open_windows=len(filling),
        )
