"""Rate, lag and watermark by partition: from what pipelines say of where they stand, and the topics' ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.page.recent import Recent
from schemas.alert import AlertRaised
from schemas.standing import PipelineStands

_PIPELINES = 50
_SAMPLES = 300
_ALERTS = 50
_SHOWN_MS = 600_000
# A pipeline says how far it is about once a second; one that has said nothing for so long takes nothing in.
_SILENT_MS = 4_000
Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Events a second by topic, between two standings."""

    at_ms: int
    rates: dict[str, float]
    watermark_ms: int | None


@dataclass(slots=True)
class _Pipeline:
    stands: PipelineStands
    rates: dict[Partition, float] = field(default_factory=dict)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    def move(self, to: PipelineStands) -> None:
        """The pipeline says that it is further on."""
        before, span_ms = self.stands, to.committed_ms - self.stands.committed_ms
        if to.dataset_version <= before.dataset_version:
            return
        if span_ms > 0:
            stood = {(p.topic, p.partition): p.next for p in before.partitions}
            # A partition that was not there before may have been read from anywhere.
            self.rates = {
                at: (each.next - stood[at]) * 1000 / span_ms
                for each in to.partitions
                if (at := (each.topic, each.partition)) in stood
            }
            by_topic: dict[str, float] = {}
            for (topic, _), rate in self.rates.items():
                by_topic[topic] = by_topic.get(topic, 0.0) + rate
            if span_ms > _SILENT_MS and self.samples:
                still = dict.fromkeys(by_topic, 0.0)
                self.samples.append(Sample(before.committed_ms + 1, still, before.watermark_ms))
                self.samples.append(Sample(to.committed_ms - 1, still, before.watermark_ms))
            self.samples.append(Sample(to.committed_ms, by_topic, to.watermark_ms))
        self.stands = to


class Road:
    """Where each pipeline stands, and has stood for the last minutes."""

    def __init__(self) -> None:
        self._pipelines: Recent[str, _Pipeline] = Recent(_PIPELINES)
        self._alerts: Recent[str, AlertRaised] = Recent(_ALERTS)
        self.ends: dict[Partition, int] = {}

    def note(self, event: PipelineStands | AlertRaised) -> None:
        """Take in one event."""
        if isinstance(event, AlertRaised):
            self._alerts[event.event_id()] = event
        elif (known := self._pipelines.get(event.pipeline)) is None:
            self._pipelines[event.pipeline] = _Pipeline(event)
        else:
            known.move(event)

    def sources(self) -> set[Partition]:
        """Partitions whose ends tell how much waits."""
        return {(p.topic, p.partition) for each in self._pipelines.values() for p in each.stands.partitions}

    def as_json(self, now_ms: int) -> dict[str, Any]:
        """For the page and for programs; the lag of a partition whose end nobody knows is None."""
        return {
            "pipelines": [
                _pipeline(self._pipelines[name], self.ends, now_ms) for name in sorted(self._pipelines)
            ],
            "alerts": [
                {
                    "pipeline": alert.pipeline,
                    "kind": alert.kind,
                    "detail": alert.detail,
                    "choices": alert.choices,
                }
                for alert in reversed(self._alerts.values())
            ],
        }


def _pipeline(known: _Pipeline, ends: Mapping[Partition, int], now_ms: int) -> dict[str, Any]:
    stands = known.stands
    is_silent = now_ms - stands.committed_ms > _SILENT_MS
    # The newest minutes: what lies before a long silence would leave no room for what is now.
    samples = [sample for sample in known.samples if stands.committed_ms - sample.at_ms <= _SHOWN_MS]
    topics = sorted({topic for sample in samples for topic in sample.rates})
    partitions = []
    for each in stands.partitions:
        at = (each.topic, each.partition)
        end = ends.get(at)
        partitions.append(
            {
                "topic": each.topic,
                "partition": each.partition,
                "next": each.next,
                "lag": None if end is None else max(0, end - each.next),
                "rate": 0.0 if is_silent else round(known.rates.get(at, 0.0), 1),
                "watermark_ms": each.watermark_ms,
                "idle": each.idle,
            }
        )
    return {
        "name": stands.pipeline,
        "dataset_version": stands.dataset_version,
        "committed_ms": stands.committed_ms,
        "watermark_ms": stands.watermark_ms,
        "events": sum(each.next for each in stands.partitions),
        "partitions": partitions,
        "at_ms": [sample.at_ms for sample in samples],
        "rates": {t: [round(s.rates.get(t, 0.0), 1) for s in samples] for t in topics},
    }
