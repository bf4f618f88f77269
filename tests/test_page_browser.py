"""The page in a real Chromium over a live road: broker, worker, trainer, service and page, each a process.

One road for all of these tests, in their order: what they see is what the events have come to by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from msgspec.structs import replace as replace_struct
from typer.testing import CliRunner

from infra.command.main import app
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from infra.job_board import OVER
from infra.page.view import SECTIONS
from infra.settings import load
from infra.submit import submit
from loadtest.page.browser import Browser
from loadtest.page.hold import Sample, watch
from schemas import topics
from schemas.envelope import unwrap_as
from schemas.job import JobRequested
from tests.browser import find_chromium
from tests.test_page_server import free_port
from tests.worker_fixtures import PIPELINE, Cluster, flights, heartbeats, wait_until

NAME = "paged"
HOUR_MS = 3_600_000
FIRST_HOURS = 200
"""Records of the fifth day that come before any window knows that the fourth is over for good."""
# Every challenger of these few days is published, and judged by airport and by tag.
JUDGED = PIPELINE.replace(
    "from streams.training import Training, last",
    "from streams.training import Training, better_than_champion, last",
).replace(
    "    train_when=",
    '    publish_when=better_than_champion(tolerance=0.5, slices="origin"),\n    train_when=',
)
pytestmark = pytest.mark.timeout(480)


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
        self.asked_by_hand = 0

    def __enter__(self) -> Road:
        file = self.home / f"{NAME}.py"
        file.write_text(JUDGED.format(name=NAME))
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

    def _start(self, module: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{module}-{len(self._processes)}.log").open("wb") as log:
            command = [sys.executable, "-m", module, *arguments]
            environment = os.environ | self.environment | settings
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return self._processes[-1]

    @contextmanager
    def page_for_others(self) -> Iterator[tuple[str, str]]:
        """A second page, on every address of this machine: its address there, and its token."""
        port = free_port()
        page = self._start(
            "infra.command", "page", TIDEMILL_PAGE__HOST="0.0.0.0", TIDEMILL_PAGE__PORT=str(port)
        )
        try:
            token = self.home / "page.token"
            wait_until(lambda: token.exists() and answers(port), "the second page")
            yield f"http://{address_of_this_machine()}:{port}/", token.read_text()
        finally:
            page.send_signal(signal.SIGTERM)
            assert page.wait(30) == 0, self.logs()
            self._processes.remove(page)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(60)

    def logs(self) -> str:
        return "\n".join(
            path.read_text()[-2_000:]
            for folder in (self.home, self.home / "logs")
            for path in folder.glob("*.log")
        )

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

    def is_read(self) -> bool:
        (stands,) = self.says("road")["pipelines"]
        return stands["events"] == sum(self.cluster.ends().values())

    def closed(self) -> int:
        return sum(each["closed"] for each in self.says("windows").get("pipelines", ()))

    def is_its_page(self, process: psutil.Process) -> bool:
        """Whether it is the page that this road's `tidemill up` started."""
        with contextlib.suppress(psutil.Error):
            return process.ppid() == self._processes[0].pid and process.cmdline()[-1:] == ["page"]
        return False

    def is_settled(self) -> bool:
        """All that was decided is done, and the newest model answers."""
        # The page reads windows and decisions from two topics: it may have all of one, and none of the other.
        decided = next(iter(self.says("decisions").get("pipelines", ())), None)
        jobs, models = self.says("jobs"), self.says("models").get("models")
        if not (decided and jobs and models):
            return False
        is_over = jobs["states"].keys() <= OVER
        is_said = sum(decided["verdicts"].values()) == self.closed()
        return (
            is_said
            and jobs["requested"] == decided["verdicts"]["yes"] + self.asked_by_hand
            and is_over
            and all("gate" in model["adopted_by"] for model in models if model["live"])
        )

    def train_by_hand(self, job_id: str, *, tolerance: float, **params: float) -> None:
        """A challenger on the newest rows, with its gate as asked; back once all jobs are over."""
        newest = next(
            unwrap_as(envelope, JobRequested).experiment
            for _, envelope in reversed(self.cluster.read(topics.JOBS.name))
            if envelope.type.endswith("job.requested.v1")
        )
        gate = replace_struct(newest.gate, tolerance=tolerance)
        asked = replace_struct(newest, params={**newest.params, **params}, warm_start=False, gate=gate)
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.environment.items():
                patched.setenv(name, value)
            asyncio.run(submit(load(), asked, why="to be looked at", job_id=job_id))
        self.asked_by_hand += 1
        wait_until(self.is_settled, f"job {job_id}", within_s=90)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def address_of_this_machine() -> str:
    """One that is not loopback, where there is one."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family is socket.AF_INET and not address.address.startswith("127.")
    ]
    return found[0] if found else "127.0.0.1"


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
        cluster.push([first, first])  # dropped: known already
        road.play(range(4))
        # A flight of the first day comes late, the fifth day begins, one challenger is good and one is not.
        late = (first.value or b"").replace(b'"flight_id":"', b'"flight_id":"late-')
        assert late != first.value
        cluster.push([replace(first, value=late), *flights(5, start=4)[:FIRST_HOURS]])
        road.train_by_hand("second", tolerance=0.5, first_epochs=4)
        road.train_by_hand("idle", tolerance=0.0, first_epochs=1, first_learning_rate=0.0)
        wait_until(lambda: road.says("models")["refused"], "the refusal")
        wait_until(lambda: road.says("windows")["pipelines"][0]["amended"], "the late row")
        wait_until(road.is_read, "all that was pushed")
        yield road


def command(road: Road, *arguments: str) -> Any:
    """What a command prints with --json."""
    done = CliRunner(env=road.environment).invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def browsing(road: Road, tmp_path: Path, look: Any) -> None:
    """Look at the page, and at its end at what its console said."""

    async def do() -> None:
        async with Browser(find_chromium(), tmp_path / "profile") as browser:
            await browser.command("Page.navigate", url=road.url)
            await browser.wait("document.querySelector('#state')?.dataset.state === 'live'")
            await look(browser)
            assert browser.errors == []

    asyncio.run(do())


async def open_view(browser: Browser, view: str) -> None:
    # The page turns to another view only after this returns: what it shows until then is not the view
    # asked for.
    shown = "document.getElementById('main').dataset"
    await browser.js(f"if (location.hash !== '#{view}') {{ {shown}.view = ''; location.hash = '{view}'; }}")
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


async def slices(browser: Browser, title: str) -> list[list[str]]:
    """Of the table under that heading: each slice with both scores, and its bounds as a reader says them."""
    return await browser.js(
        "[...document.querySelectorAll('section')]"
        f".filter(s => s.querySelector('h3')?.textContent === {json.dumps(title)})"
        ".flatMap(s => [...s.querySelector('tbody').rows].map(r => [r.cells[0].textContent, "
        "r.cells[2].textContent, r.cells[3].textContent, r.cells[4].textContent, "
        "r.querySelector('svg')?.getAttribute('aria-label') ?? '']))"
    )


def as_shown(judged: list[dict[str, Any]]) -> list[list[str]]:
    shown = []
    for each in judged:
        between = each["difference"]
        bounds = f"from {score(between['low'])} to {score(between['high'])}" if between else ""
        rows = f"{between['rows']:,}" if between else ""
        shown.append([each["slice"], score(each["challenger"]), score(each["champion"]), rows, bounds])
    return shown


def score(value: float | None) -> str:
    """Four digits, as JavaScript writes a number that was cut to them."""
    return "" if value is None else np.format_float_positional(float(f"{value:.4g}"), trim="-")


def percent(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


def minute(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"


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
        (windows,) = said["windows"]["pipelines"]
        assert (await facts(browser))["late rows"] == "1"
        assert [r[5] for r in await rows(browser, "Closed")] == ["", "", "", "once by 1 late row"]
        scheduled = sum(each.is_flight() for each in flights(5, start=4)[:FIRST_HOURS])
        filling = [(r[1], r[2]) for r in await rows(browser, "Filling")]
        assert filling == [(f"{w['rows']:,}", minute(w["closes_at_ms"])) for w in windows["filling"]]
        assert sum(w["rows"] for w in windows["filling"]) == scheduled > 20

        await open_view(browser, "rules")
        (rules,) = said["rules"]["pipelines"]
        assert [r[:3] for r in await rows(browser, "Tags")] == [
            [tag, f"{each['rows']:,}", percent(each["share"])] for tag, each in rules["tags"].items()
        ]
        assert 0.1 < rules["tags"]["long_haul"]["share"] < 0.9
        whole = rules["rows"] + sum(rules["dropped"].values()) + sum(rules["rejected"].values())
        lost = {(name, "dropped"): n for name, n in rules["dropped"].items()}
        lost |= {(name, "dead letter"): n for name, n in rules["rejected"].items()}
        assert {(r[0], r[1]): (r[2], r[3]) for r in await rows(browser, "Rows by rule")} == {
            at: (str(n), percent(n / whole)) for at, n in lost.items()
        }
        assert sorted(rules["dropped"].values()) == [2]

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
        newest = f"{NAME}/{models[0]['version']}"
        judged = said["models"]["slices"][newest]
        assert {"overall", "origin=EWR", "origin=JFK", "origin=LGA"} <= {each["slice"] for each in judged}
        assert all(None not in (each["champion"], each["difference"]) for each in judged)
        assert await slices(browser, f"{NAME} version {models[0]['version']}") == as_shown(judged)
        (refused,) = said["models"]["refused"]
        heading = f"{NAME}, job idle"
        assert await slices(browser, heading) == as_shown(refused["slices"])
        assert refused["reason"] in await browser.js(
            "[...document.querySelectorAll('summary')].map(s => s.textContent).join()"
        )
        assert refused["slices"][0]["difference"]["high"] < 0

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


def test_away_from_loopback_a_browser_is_asked_for_the_token_and_keeps_it_out_of_the_address(
    road: Road, tmp_path: Path
) -> None:
    async def look(url: str, token: str) -> None:
        async with Browser(find_chromium(), tmp_path / "profile") as browser:
            await browser.command("Page.navigate", url=url)
            await browser.wait("document.body?.innerText.includes('asks for its token')")
            assert await browser.js("document.querySelector('#main')") is None
            await browser.command("Page.navigate", url=f"{url}?token={token}")
            await browser.wait("document.querySelector('#state')?.dataset.state === 'live'")
            assert await browser.js("location.href.split('#')[0]") == url
            await open_view(browser, "windows")
            assert (await facts(browser))["closed"] == "4"

    with road.page_for_others() as (url, token):
        asyncio.run(look(url, token))
        assert token not in road.logs()


def test_who_looks_again_and_again_leaves_nothing_behind_in_the_browser(road: Road, tmp_path: Path) -> None:
    """The short form of `tidemill bench page`: by what is counted exactly, not by bytes."""
    seen: list[Sample] = []

    async def look(browser: Browser) -> None:
        page = next(p for p in psutil.process_iter() if road.is_its_page(p))
        await watch(browser, page, seconds=60, stay_s=0.05, seen=seen.append, rounds=4)

    browsing(road, tmp_path, look)
    last = {each.view: (each.nodes, each.listeners) for each in seen if each.round == 3}
    before = {each.view: (each.nodes, each.listeners) for each in seen if each.round == 2}
    assert last == before
    assert list(last) == list(SECTIONS)
    assert all(each.page_mib > 20 and each.heap_mib > 0.5 for each in seen)


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
