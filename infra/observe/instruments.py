"""One process's metrics: what it counts as it happens, and what is read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family

from infra.observe import metrics
from infra.observe.metrics import Metric

Values = Mapping[tuple[str, ...], float]
"""Values of a gauge or counter by those of its labels; `()` where it has none."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# When each series was created is told by no declaration, and by nobody missed.
disable_created_metrics()


class Instruments:
    """The metrics that a part of Tidemill serves, all of them declared in `infra.observe.metrics`.

    Counting is a dictionary look-up and an addition under a lock: for commits and jobs, not for events.
    """

    def __init__(self, part: str) -> None:
        self.part = part
        self._declared = {metric.name: metric for metric in metrics.of_part(part)}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._read: dict[str, Callable[[], Values]] = {}
        for metric in self._declared.values():
            if metric.kind == "counter" and not metric.library:
                self._counters[metric.name] = Counter(
                    metric.name, metric.meaning, metric.labels, registry=self._registry
                )
            elif metric.kind == "histogram":
                self._histograms[metric.name] = Histogram(
                    metric.name,
                    metric.meaning,
                    metric.labels,
                    registry=self._registry,
                    buckets=metric.buckets,
                )
        self._registry.register(self)  # type: ignore[arg-type]  # a collector by its method
        self.read(metrics.INFO, lambda: {(part, version("tidemill-system")): 1.0})

    def count(self, metric: Metric, by: float = 1, *labels: str) -> None:
        """Add to a counter. Raises KeyError where this part declares no such counter."""
        counter = self._counters[metric.name]
        (counter.labels(*labels) if labels else counter).inc(by)

    def took(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Add one observation to a histogram. Raises KeyError where this part declares no such one."""
        histogram = self._histograms[metric.name]
        (histogram.labels(*labels) if labels else histogram).observe(seconds)

    def read(self, metric: Metric, values: Callable[[], Values]) -> None:
        """Have it read by that function whenever somebody asks. Raises KeyError if it is undeclared.

        A counter that is read is counted elsewhere: for what happens ten thousand times a second.
        """
        self._read[self._declared[metric.name].name] = values
        if (own := self._counters.pop(metric.name, None)) is not None:
            self._registry.unregister(own)

    def missing(self) -> set[str]:
        """Declared gauges that nothing reads: none, once the process is built."""
        gauges = {m.name for m in self._declared.values() if m.kind == "gauge" and not m.library}
        return gauges - self._read.keys()

    def begin(self, metric: Metric, each: Iterable[tuple[str, ...]]) -> None:
        """Have a counter say 0 for these labels, so that the first increase is seen as one."""
        for labels in each:
            self._counters[metric.name].labels(*labels)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)

    # What CollectorRegistry asks of a collector.

    def describe(self) -> Iterator[Family]:
        """No names: the gauges' are known once they are read."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        """What is read, as it is now."""
        for name, values in self._read.items():
            metric = self._declared[name]
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, metric.meaning, labels=metric.labels)
            for labels, value in values().items():
                family.add_metric(labels, value)
            yield family
