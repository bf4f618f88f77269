"""Dashboard and alert rules name what is declared, with labels that it has, and are PromQL."""

from __future__ import annotations

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from infra.observe import dashboard
from infra.observe.metrics import METRICS, Metric, series_of

ALERTS = yaml.safe_load(Path(dashboard.__file__).with_name("alerts.yaml").read_text())["groups"]
RULES = [rule for group in ALERTS for rule in group["rules"]]
OF_SERIES: dict[str, Metric] = {name: metric for metric in METRICS for name in series_of(metric)}
SCRAPED = {"instance", "job", "le"}
"""Labels that a scrape, or a histogram, adds."""


def plain(expression: str) -> str:
    """The expression with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", "5m").replace("$pipeline", ".*")


def assert_of_declared_metrics(expression: str) -> set[str]:
    """PromQL whose series are declared and whose labels they have; gives the series."""
    promql_parser.parse(expression)
    names = set(re.findall(r"\b(?:tidemill|process)_[a-z_]+", expression))
    assert names, expression
    assert names <= OF_SERIES.keys(), expression
    labels = {label for name in names for label in OF_SERIES[name].labels} | SCRAPED
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {each.strip() for each in grouped.split(",")} <= labels, expression
    for selected in re.findall(r"\{(.*?)\}", expression):
        assert set(re.findall(r"([a-z_]+)\s*[=!]~?", selected)) <= labels, expression
    return names


def test_the_dashboard_in_the_repository_is_the_one_that_is_generated() -> None:
    assert json.loads(dashboard.FILE.read_text()) == dashboard.dashboard(), (
        "python -m infra.observe.dashboard"
    )


def test_every_panel_asks_for_declared_metrics_and_every_metric_of_ours_is_shown() -> None:
    shown: set[str] = set()
    for panel in dashboard.dashboard()["panels"]:
        for target in panel.get("targets", ()):
            shown |= {OF_SERIES[name].name for name in assert_of_declared_metrics(plain(target["expr"]))}
            assert (
                set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                <= {label for name in shown for label in next(m for m in METRICS if m.name == name).labels}
                | SCRAPED
            )
    assert {metric.name for metric in METRICS if not metric.library} <= shown


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_of_declared_metrics_and_says_what_to_do(rule: dict) -> None:
    names = assert_of_declared_metrics(rule["expr"])
    assert re.fullmatch(r"(\d+[smh])?", rule.get("for", ""))
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    description = rule["annotations"]["description"]
    labels = {label for name in names for label in OF_SERIES[name].labels} | SCRAPED
    assert set(re.findall(r"\$labels\.(\w+)", description)) <= labels
