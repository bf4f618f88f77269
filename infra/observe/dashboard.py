"""The Grafana dashboard, made from the declared metrics: `python -m infra.observe.dashboard` writes it.

A panel names metrics by their declarations, so it cannot name one that is not served; its unit is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.observe import metrics
from infra.observe.metrics import Metric, named

FILE = Path(__file__).with_name("dashboard.json")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT = 8, 8


@dataclass(frozen=True, slots=True)
class Curve:
    """One query: `form` is PromQL with `{}` where the metric's name with its selector goes."""

    metric: Metric
    form: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot, or with `single` one number."""

    title: str
    unit: str
    curves: Sequence[Curve]
    single: bool = False


def _each(metric: Metric, *by: str) -> Curve:
    return Curve(metric, f"sum by ({', '.join(by)}) ({{}})", _legend(by))


def _rate(metric: Metric, *by: str) -> Curve:
    return Curve(metric, f"sum by ({', '.join(by)}) (rate({{}}[$__rate_interval]))", _legend(by))


def _p99(metric: Metric, *by: str) -> Curve:
    within = f"sum by (le, {', '.join(by)}) (rate({{}}[$__rate_interval]))"
    return Curve(metric, f"histogram_quantile(0.99, {within})", f"p99 {_legend(by)}")


def _legend(by: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is it well?",
        (
            Panel("Ready", "bool_on_off", [_each(metrics.READY, "instance")], single=True),
            Panel("Since a broker answered", "s", [_each(metrics.CONTACT_AGE, "instance")]),
            Panel("Speaks for its pipeline", "short", [_each(metrics.LEADS, "pipeline")], single=True),
        ),
    ),
    (
        "Events in",
        (
            Panel("Events", "ops", [_rate(metrics.EVENTS, "topic")]),
            Panel("Rows", "ops", [_rate(metrics.ROWS, "topic")]),
            Panel("Lag", "short", [_each(metrics.LAG, "topic", "partition")]),
            Panel("Refused, by rule", "ops", [_rate(metrics.REJECTED, "topic", "rule")]),
            Panel("Dropped, by rule", "ops", [_rate(metrics.DROPPED, "topic", "rule")]),
            Panel(
                "Waits for a commit",
                "short",
                [_each(metrics.QUEUE_ROWS, "instance")],
            ),
            Panel("In the queue", "bytes", [_each(metrics.QUEUE_BYTES, "instance")]),
            Panel("Position", "short", [_each(metrics.POSITION, "topic", "partition")]),
            Panel(
                "Watermark behind the clock",
                "s",
                [Curve(metrics.WATERMARK, "time() - max by (pipeline) ({})", "{{pipeline}}")],
            ),
        ),
    ),
    (
        "Commits",
        (
            Panel("Commit", "s", [_p99(metrics.COMMIT_SECONDS, "pipeline")]),
            Panel("Prepare", "s", [_p99(metrics.PREPARE_SECONDS, "pipeline")]),
            Panel(
                "Out of the ordinary",
                "ops",
                [
                    _rate(metrics.COMMIT_FAILURES, "instance"),
                    _rate(metrics.REWINDS, "instance"),
                    _rate(metrics.FENCED, "instance"),
                    _rate(metrics.UPKEEP_FAILURES, "instance"),
                ],
            ),
            Panel("Compactions", "ops", [_rate(metrics.COMPACTIONS, "pipeline")]),
            Panel(
                "Version",
                "short",
                [
                    Curve(metrics.DATASET_VERSION, "max by (pipeline) ({})", "{{pipeline}} committed"),
                    Curve(metrics.ANNOUNCED_VERSION, "max by (pipeline) ({})", "{{pipeline}} announced"),
                ],
            ),
        ),
    ),
    (
        "Announcements",
        (
            Panel("Announced", "ops", [_rate(metrics.ANNOUNCEMENTS, "topic")]),
            Panel("Windows", "ops", [_rate(metrics.WINDOWS, "pipeline", "kind")]),
            Panel("Decisions", "ops", [_rate(metrics.DECISIONS, "pipeline", "verdict")]),
            Panel("Announcing a version", "s", [_p99(metrics.ANNOUNCE_SECONDS, "pipeline")]),
        ),
    ),
    (
        "Training",
        (
            Panel("Jobs", "short", [_each(metrics.JOBS, "state")]),
            Panel("Longest wait", "s", [_each(metrics.OLDEST_WAIT, "instance")]),
            Panel("What was said of jobs", "ops", [_rate(metrics.JOB_EVENTS, "event")]),
            Panel("Training", "s", [_p99(metrics.TRAINING_SECONDS, "instance")]),
            Panel("Challengers", "ops", [_rate(metrics.MODELS, "model", "verdict")]),
            Panel("Live version", "short", [_each(metrics.MODEL_VERSION, "model")], single=True),
            Panel(
                "Age of the live model",
                "s",
                [Curve(metrics.MODEL_PUBLISHED, "time() - max by (model) ({})", "{{model}}")],
            ),
            Panel("Warm", "bool_on_off", [_each(metrics.WARM, "instance")], single=True),
            Panel("GPU memory", "bytes", [_each(metrics.GPU_MEMORY, "gpu", "state")]),
            Panel("GPU faults", "short", [_each(metrics.GPU_FAULTS, "instance")], single=True),
        ),
    ),
    (
        "Door and page",
        (
            Panel("Events at the door", "ops", [_rate(metrics.DOOR_EVENTS, "topic", "answer")]),
            Panel("Requests at the door", "ops", [_rate(metrics.DOOR_REQUESTS, "status")]),
            Panel("The cluster confirms", "s", [_p99(metrics.DOOR_CONFIRM_SECONDS, "instance")]),
            Panel("On their way", "short", [_each(metrics.DOOR_RECORDS, "instance")]),
            Panel("Bodies on their way", "bytes", [_each(metrics.DOOR_BYTES, "instance")]),
            Panel("Producers replaced", "ops", [_rate(metrics.DOOR_PRODUCERS, "instance")]),
            Panel("Requests of the page", "ops", [_rate(metrics.PAGE_REQUESTS, "status")]),
            Panel("Browsers", "short", [_each(metrics.PAGE_VIEWERS, "instance")]),
            Panel("Announcements read", "ops", [_rate(metrics.PAGE_RECORDS, "topic")]),
            Panel("Caught up", "bool_on_off", [_each(metrics.PAGE_CAUGHT_UP, "instance")], single=True),
            Panel("Dead letters pushed again", "ops", [_rate(metrics.PAGE_REDRIVEN, "instance")]),
        ),
    ),
    (
        "Processes",
        (
            Panel("CPU", "percentunit", [_rate(named("process_cpu_seconds_total"), "instance")]),
            Panel("Memory", "bytes", [_each(named("process_resident_memory_bytes"), "instance")]),
            Panel("Open files", "short", [_each(named("process_open_fds"), "instance")]),
            Panel("Versions", "short", [_each(metrics.INFO, "part", "version")], single=True),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "type": "row",
                "id": len(panels) + 1,
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
            }
        )
        y += 1
        for number, panel in enumerate(row):
            place = {
                "h": _HEIGHT,
                "w": _WIDTH,
                "x": number % 3 * _WIDTH,
                "y": y + number // 3 * _HEIGHT,
            }
            panels.append(_panel(panel, len(panels) + 1, place))
        y += -(-len(row) // 3) * _HEIGHT
    return {
        "title": "Tidemill",
        "uid": "tidemill",
        "tags": ["tidemill"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "pipeline",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": f"label_values({metrics.EVENTS.name}, pipeline)",
                    "refresh": 2,
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def expression(curve: Curve) -> str:
    """A query as Prometheus gets it, Grafana's variables apart."""
    metric = curve.metric
    name = f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name
    selector = '{pipeline=~"$pipeline"}' if "pipeline" in metric.labels else ""
    return curve.form.format(name + selector)


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "stat" if panel.single else "timeseries",
        "id": number,
        "title": panel.title,
        "description": " ".join(dict.fromkeys(curve.metric.meaning for curve in panel.curves)),
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": expression(curve),
                "legendFormat": curve.legend
                if len(panel.curves) == 1
                else f"{curve.metric.name.removesuffix('_total')} {curve.legend}",
            }
            for index, curve in enumerate(panel.curves)
        ],
    }


def main() -> None:
    """Write it."""
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
