"""The page in a real Chromium over a live road: broker, worker, trainer, service and page, each a process.

One road for all of these tests, in their order: what they see is what the events have come to by then.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.command.main import app
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from infra.job_board import OVER
from infra.page.view import SECTIONS
from tests.browser import Browser, find_chromium
from tests.test_page_server import free_port
from tests.worker_fixtures import PIPELINE, Cluster, flights, heartbeats, wait_until

NAME = "paged"
HOUR_MS = 3_600_000
pytestmark = pytest.mark.timeout(240)


class Road:
    """All of `tidemill up` on a broker of the test's own, which it may kill."""

    def __init__(self, home: Path, cluster: Cluster) -> None:
        self.home, self.cluster = home, cluster
        self.port, self.store_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.environment = {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": cluster.connection.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(home),
            "TIDEMILL_PAGE__PORT": str(self.port),
            "TIDEMILL_STORE__PORT": str(self.store_port),
            "TIDEMILL_WORKER__IDLE_TIMEOUT_MS": "3600000",
            "TIDEMILL_TRAINER__PROGRESS_INTERVAL_MS": "1",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Road:
        file = self.home / f"{NAME}.py"
        file.write_text(PIPELINE.format(name=NAME))
        self._start("infra.command", "up", "--pipeline", str(file))
        trusted = self.home / "keys/trusted.txt"
        wait_until(trusted.exists, "the trainer's keys")
        self._start(
            "schemas.example_service",
            *("--bootstrap-servers", self.cluster.connection.bootstrap_servers),
            *("--store", f"http://127.0.0.1:{self.store_port}/", "--model", NAME, "--service", "gate"),
            *("--cache-dir", str(self.home / "service"), "--trusted-keys", str(trusted)),
        )
        return self

    def _start(self, module: str, *arguments: str) -> None:
        with (self.home / f"{module}.log").open("wb") as log:
            command = [sys.executable, "-m", module, *arguments]
            environment = os.environ | self.environment
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(60)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2_000:] for path in self.home.glob("**/*.log"))

    def says(self, section: str) -> dict[str, Any]:
        """A section as the page's server has it."""
        for process in self._processes:
            assert process.poll() is None, self.logs()
        try:
            with urllib.request.urlopen(f"{self.url}api/{section}", timeout=10) as got:
                return json.load(got)
        except OSError:
            return {}

    def play(self, days: range) -> None:
        """Push these days, close their windows, and wait until the page has them, their jobs too."""
        self.cluster.push(flights(days.stop, start=days.start))
        self.cluster.push(heartbeats(FIRST_DAY_MS + days.stop * DAY_MS + 6 * HOUR_MS))
        wait_until(lambda: self.closed() >= days.stop, "the windows to close", within_s=90)
        wait_until(self.is_settled, f"jobs and adoptions: {self.says('jobs')}", within_s=90)

    def closed(self) -> int:
        return sum(each["closed"] for each in self.says("windows").get("pipelines", ()))

    def is_settled(self) -> bool:
        """All that was decided is done, and the newest model answers."""
        (decided,) = self.says("decisions")["pipelines"]
        jobs, models = self.says("jobs"), self.says("models")["models"]
        is_over = jobs["states"].keys() <= OVER
        is_said = sum(decided["verdicts"].values()) == self.closed()
        return (
            is_said
            and jobs["requested"] == decided["verdicts"]["yes"]
            and is_over
            and bool(models)
            and all("gate" in model["adopted_by"] for model in models if model["live"])
        )


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    find_chromium()
    home = tmp_path_factory.mktemp("page")
    with Cluster(home / "cluster") as cluster, Road(home, cluster) as road:
        wait_until(lambda: road.says("road") != {}, "the page", within_s=60)
        first = next(sent for sent in flights(1) if sent.is_flight())
        cluster.push(
            [
                replace(first, value=b"{ no json", kind="bad"),
                replace(
                    first, value=(first.value or b"").replace(b'"distance":', b'"distance":-'), kind="bad"
                ),
            ]
        )
        road.play(range(4))
        yield road


def command(road: Road, *arguments: str) -> Any:
    """What a command prints with --json."""
    done = CliRunner(env=road.environment).invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def browsing(road: Road, tmp_path: Path, look: Any) -> None:
    """Look at the page, and at its end at what its console said."""

    async def do() -> None:
        async with Browser(tmp_path / "profile") as browser:
            await browser.command("Page.navigate", url=road.url)
            await browser.wait("document.querySelector('#state')?.dataset.state === 'live'")
            await look(browser)
            assert browser.errors == []

    asyncio.run(do())


async def open_view(browser: Browser, view: str) -> None:
    await browser.js(f"location.hash = '{view}'")
    shown = "document.getElementById('main').dataset"
    await browser.wait(f"{shown}.view === '{view}' && Number({shown}.updates) > 0")


async def facts(browser: Browser) -> dict[str, str]:
    return await browser.js(
        "Object.fromEntries([...document.querySelectorAll('[data-fact]')]"
        ".map(e => [e.dataset.fact, e.innerText]))"
    )


async def rows(browser: Browser, caption: str) -> list[list[str]]:
    """Cells of the table with that caption."""
    return await browser.js(
        "[...document.querySelectorAll('table')]"
        f".filter(t => t.caption?.innerText.startsWith({json.dumps(caption)}))"
        ".flatMap(t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText)))"
    )


def test_each_view_shows_the_numbers_that_json_gives(road: Road, tmp_path: Path) -> None:
    said = command(road, "page")
    models, jobs = command(road, "models")["models"], command(road, "jobs", "--all")["jobs"]
    assert said["models"]["models"] == models
    lineage = command(road, "lineage", NAME)

    async def look(browser: Browser) -> None:
        await open_view(browser, "road")
        (stands,) = said["road"]["pipelines"]
        pushed = road.cluster.ends()
        assert (await facts(browser))["events committed"] == f"{sum(pushed.values()):,}"
        shown = {(r[0], int(r[1])): int(r[4].replace(",", "")) for r in await rows(browser, "Partitions")}
        assert {at: shown[at] for at in pushed} == pushed
        assert [r[3] for r in await rows(browser, "Partitions")] == ["0"] * len(stands["partitions"])

        await open_view(browser, "windows")
        assert (await facts(browser))["closed"] == "4"
        counted = [w["rows"] for w in said["windows"]["pipelines"][0]["windows"]]
        assert [int(r[1].replace(",", "")) for r in await rows(browser, "Closed")] == counted
        assert sum(counted) > 2_000

        await open_view(browser, "rules")
        (rules,) = said["rules"]["pipelines"]
        assert (await rows(browser, "Tags"))[0][:2] == [
            "long_haul",
            f"{rules['tags']['long_haul']['rows']:,}",
        ]

        await open_view(browser, "letters")
        assert (await facts(browser))["letters"] == "2"
        assert "{ no json" in await browser.js("document.querySelector('main').innerText")

        await open_view(browser, "decisions")
        verdicts = said["decisions"]["pipelines"][0]["verdicts"]
        told = await facts(browser)
        assert {name: told[name.replace("_", " ")] for name in verdicts} == {
            name: str(count) for name, count in verdicts.items()
        }
        await browser.js("document.querySelector('[data-pipeline] button').click()")
        await browser.wait("document.querySelector('#detail table') !== null")
        assert any("every(windows=2)" in row[0] for row in await rows(browser, "Conditions on"))

        await open_view(browser, "jobs")
        shown_jobs = await rows(browser, "Jobs")
        assert {(r[0], r[1], r[2]) for r in shown_jobs} == {
            (j["job_id"], j["state"], j["device"]) for j in jobs
        }
        assert await browser.js("document.querySelectorAll('main .uplot canvas').length") >= 1

        await open_view(browser, "models")
        shown_models = [(r[0], int(r[1]), r[2], r[8]) for r in await rows(browser, "Versions")]
        assert shown_models == [
            (m["name"], m["version"], "live" if m["live"] else "", ", ".join(m["adopted_by"])) for m in models
        ]
        assert all(m["trusted"] for m in models)

        await open_view(browser, "lineage")
        text = await browser.wait("document.querySelector('ol.road')?.innerText")
        for part in (
            lineage["artifact"]["sha256"],
            lineage["lineage"]["job_id"],
            lineage["lineage"]["input_sha256"],
        ):
            assert part in text
        for each in lineage["lineage"]["offsets"]:
            assert (
                f"{each['topic']} partition {each['partition']}: {each['start']:,} to {each['end']:,}" in text
            )

        await open_view(browser, "adoption")
        live = next(m["version"] for m in models if m["live"])
        assert [r[:4] for r in await rows(browser, "Who")] == [["gate", NAME, str(live), "the live one"]]
        hosts = "new Set(performance.getEntriesByType('resource').map(e => new URL(e.name).host))"
        assert await browser.js(f"[...{hosts}]") == [f"127.0.0.1:{road.port}"]

    browsing(road, tmp_path, look)


def test_it_can_be_read_in_the_dark_on_a_phone_and_without_a_mouse_or_eyes(
    road: Road, tmp_path: Path
) -> None:
    async def look(browser: Browser) -> None:
        background = "getComputedStyle(document.body).backgroundColor"
        await browser.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}]
        )
        light = await browser.js(background)
        await browser.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
        )
        assert await browser.js(background) != light
        await browser.js("document.getElementById('theme').click()")
        assert await browser.js(background) == light

        await browser.press("Tab")
        assert await browser.js("document.activeElement.className") == "skip"
        for _ in range(2):
            await browser.press("Tab")
        assert await browser.js("document.activeElement.getAttribute('href')") == "#windows"
        await browser.press("Enter")
        await browser.wait("document.activeElement.id === 'main' && location.hash === '#windows'")

        await browser.command(
            "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True
        )
        for view in SECTIONS:
            await open_view(browser, view)
            assert await browser.js("document.documentElement.scrollWidth") <= 360, view
            nodes = (await browser.command("Accessibility.getFullAXTree"))["nodes"]
            roles = {"button", "link", "checkbox", "combobox", "figure", "region", "table", "progressbar"}
            silent = [
                node["role"]["value"]
                for node in nodes
                if not node.get("ignored")
                and node.get("role", {}).get("value") in roles
                and not node.get("name", {}).get("value")
            ]
            assert silent == [], f"{view}: a screen reader has nothing to say"

    browsing(road, tmp_path, look)


def test_it_goes_on_by_itself_also_over_a_broker_that_dies_and_a_letter_is_pushed_again(
    road: Road, tmp_path: Path
) -> None:
    async def look(browser: Browser) -> None:
        await browser.js("window.marked = true")
        await open_view(browser, "windows")
        road.cluster.broker.kill()
        await browser.wait("document.querySelector('#state').dataset.state === 'lost'")
        road.cluster.broker.start()
        await browser.wait("document.querySelector('#state').dataset.state === 'live'")
        await asyncio.to_thread(road.play, range(4, 5))
        await browser.wait("document.querySelector('[data-fact=closed]').innerText === '5'")

        await open_view(browser, "letters")
        before = road.says("letters")["total"]
        await browser.js("document.querySelector('input[data-letter]').click()")
        await browser.js("document.getElementById('redrive').click()")
        await browser.wait("document.getElementById('answer').innerText === '1 pushed again'")
        await browser.wait("document.querySelector('main').innerText.includes('to offset')")
        # Nobody mended the rule: the same bytes are refused again, as a letter of their own.
        await browser.wait(f"document.querySelector('[data-fact=letters]').innerText === '{before + 1}'")
        newest, *others = road.says("letters")["letters"]
        again = next(each for each in others if each["redriven"])
        assert newest["offset"] == again["redriven"]["offset"]
        assert (newest["bytes"], newest["topic"]) == (again["bytes"], again["topic"])
        assert await browser.js("window.marked") is True, "the page was loaded once"
        # What the browser itself says of the stream that broke is no fault of the page.
        browser.errors = [each for each in browser.errors if "net::ERR" not in each]

    browsing(road, tmp_path, look)
