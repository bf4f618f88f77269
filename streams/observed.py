"""What a worker's metrics are read of and counted by; the worker itself only says when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from infra.observe import metrics
from infra.observe.instruments import Instruments, Values
from infra.observe.metrics import Metric
from streams.announce.fold import Commit
from streams.ingest import Prepared
from streams.ledger.commit import Partition
from streams.pipeline import Pipeline
from streams.queue import FrameQueue

if TYPE_CHECKING:
    from streams.announce.herald import Herald


class WorkerMetrics:
    """One worker's. Read and written on its event loop.

    Attributes:
        positions: next offset to be committed of each partition that the worker reads.
        ends: where those partitions ended when they were last looked at.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        queue: FrameQueue,
        instruments: Instruments,
        *,
        contact_age_s: Callable[[], float],
    ) -> None:
        self.instruments = instruments
        self.positions: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}
        self.herald: Herald | None = None
        self._name = name = pipeline.name
        self._version = -1
        self._watermark_ms: int | None = None
        read = instruments.read
        read(metrics.CONTACT_AGE, lambda: {(): contact_age_s()})
        read(metrics.QUEUE_ROWS, lambda: {(name,): queue.rows})
        read(metrics.QUEUE_BYTES, lambda: {(name,): queue.size_bytes})
        read(metrics.POSITION, self._positions)
        read(metrics.LAG, self._lag)
        read(metrics.DATASET_VERSION, lambda: {(name,): self._version})
        read(metrics.WATERMARK, self._watermark)
        read(metrics.LEADS, lambda: {(name,): float(self._leads())})
        read(metrics.ANNOUNCED_VERSION, lambda: {(name,): self._announced()})
        topics = pipeline.sources()
        for counter in (metrics.EVENTS, metrics.ROWS):
            instruments.begin(counter, ((name, topic) for topic in topics))
        for counter in (
            metrics.COMMIT_FAILURES,
            metrics.REWINDS,
            metrics.FENCED,
            metrics.COMPACTIONS,
            metrics.UPKEEP_FAILURES,
        ):
            instruments.begin(counter, [(name,)])

    def count(self, metric: Metric) -> None:
        """One more of the pipeline's."""
        self.instruments.count(metric, 1, self._name)

    def took(self, metric: Metric, seconds: float) -> None:
        """Something of the pipeline's took so long."""
        self.instruments.took(metric, seconds, self._name)

    def committed(self, commit: Commit, prepared: Prepared) -> None:
        """A batch is in the dataset."""
        count = self.instruments.count
        for topic, counts in prepared.counts.items():
            count(metrics.EVENTS, counts.events, self._name, topic)
            count(metrics.ROWS, counts.rows, self._name, topic)
            for rule, number in counts.rejected.items():
                count(metrics.REJECTED, number, self._name, topic, rule)
            for rule, number in counts.dropped.items():
                count(metrics.DROPPED, number, self._name, topic, rule)
        for partition, advance in prepared.advances.items():
            self.positions[partition] = advance.next
        self._version = commit.version
        mark_ms = commit.metadata.get("watermark_ms")
        self._watermark_ms = self._watermark_ms if mark_ms is None else mark_ms

    def _positions(self) -> Values:
        return {(self._name, topic, str(n)): float(at) for (topic, n), at in self.positions.items()}

    def _lag(self) -> Values:
        # The end may have been looked at before the newest commit.
        return {
            (self._name, topic, str(n)): float(max(0, self.ends[topic, n] - at))
            for (topic, n), at in self.positions.items()
            if (topic, n) in self.ends
        }

    def _watermark(self) -> Values:
        return {} if self._watermark_ms is None else {(self._name,): self._watermark_ms / 1000}

    def _leads(self) -> bool:
        return self.herald is not None and self.herald.leads

    def _announced(self) -> float:
        return self.herald.version if self.herald is not None and self._leads() else -1
