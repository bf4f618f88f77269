"""What a process says of itself: declared names alone, and probes that tell the truth, over real HTTP."""

from __future__ import annotations

import asyncio
import re
import socket
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.observe.metrics import METRICS, Metric, of_part, series_of
from infra.observe.server import ObserveServer, Readiness
from infra.settings_model import Metrics
from schemas.errors import InvalidConfiguration

PATIENCE_MS = 300


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_asks_and_says_what_it_means(metric: Metric) -> None:
    assert re.fullmatch(r"(tidemill|process)_[a-z_]+[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.unit.startswith("seconds"):
        assert re.search(r"_seconds(_total)?$", metric.name)
    if metric.unit == "bytes":
        assert metric.name.endswith("_bytes")
    assert metric.meaning.endswith(".")
    assert metric.parts
    assert bool(metric.buckets) == (metric.kind == "histogram")


def test_names_are_declared_once_and_the_order_is_the_lists() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    declared = {value.name for value in vars(metrics).values() if isinstance(value, Metric)}
    assert declared <= set(names)


@pytest.mark.parametrize("part", ["worker", "trainer", "door", "page"])
def test_every_declared_metric_is_exposed_and_nothing_else(part: str) -> None:
    instruments = Instruments(part)
    for metric in of_part(part):
        labels = tuple("x" for _ in metric.labels)
        if metric.library:
            continue
        if metric.kind == "counter":
            instruments.count(metric, 2, *labels)
        elif metric.kind == "histogram":
            instruments.took(metric, 0.3, *labels)
        else:
            instruments.read(metric, lambda labels=labels: {labels: 7.0})
    assert instruments.missing() == set()
    families = text_string_to_metric_families(instruments.exposition().decode())
    samples = {sample.name for family in families for sample in family.samples}
    assert samples == {name for metric in of_part(part) for name in series_of(metric)}


def test_what_another_part_declares_cannot_be_counted_here() -> None:
    with pytest.raises(KeyError):
        Instruments("worker").count(metrics.MODELS, 1, "kiosk", "published")
    with pytest.raises(KeyError):
        Instruments("trainer").read(metrics.LAG, dict)


async def served(readiness: Readiness = Readiness(True)) -> tuple[ObserveServer, str]:  # noqa: B008
    instruments = Instruments("worker")
    options = Metrics(patience_ms=PATIENCE_MS)
    server = ObserveServer(
        instruments, lambda: readiness, options=options, port=0, setting="worker.metrics_port"
    )
    return server, await server.start()


async def test_metrics_and_probes_are_answered_and_a_wrong_path_says_which_there_are() -> None:
    server, address = await served(Readiness(False, "no positions are taken yet"))
    async with httpx.AsyncClient(base_url=address) as client:
        metrics_, live, ready, other = [
            await client.get(path) for path in ("metrics", "live", "ready", "secrets")
        ]
    await server.stop()
    assert metrics_.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "tidemill_ready 0.0" in metrics_.text
    assert (live.status_code, live.text) == (200, "live\n")
    assert (ready.status_code, ready.text) == (503, "no positions are taken yet\n")
    assert other.status_code == 404
    assert "/live" in other.text


async def test_a_loop_that_does_not_turn_is_not_live_and_lives_again_afterwards() -> None:
    server, address = await served()

    def ask_while_stuck() -> tuple[int, str]:
        answer = httpx.get(f"{address}live", timeout=10)
        return answer.status_code, answer.text

    asking = asyncio.create_task(asyncio.to_thread(ask_while_stuck))
    await asyncio.sleep(0.01)
    # The very fault: something blocks the loop, for longer than anybody is to wait.
    time.sleep(4 * PATIENCE_MS / 1000)  # noqa: ASYNC251
    status, said = await asking
    alive = await asyncio.to_thread(ask_while_stuck)
    await server.stop()
    assert status == 503
    assert f"has not turned for {PATIENCE_MS} ms" in said
    assert alive == (200, "live\n")


async def test_a_port_that_is_taken_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ObserveServer(
            Instruments("worker"),
            lambda: Readiness(True),
            options=Metrics(),
            port=taken.getsockname()[1],
            setting="worker.metrics_port",
        )
        with pytest.raises(InvalidConfiguration, match=r"worker\.metrics_port"):
            await server.start()
