"""The demo is played slowly, a browser looks at its page all the while, and both are weighed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from infra.supervisor import ProcessFailed, tidemill
from loadtest.page.browser import Browser, NotSeen, find
from loadtest.page.hold import Growth, Sample, growth, watch

LEAST_DAY_S = 2.0
"""A day with a training takes about so long by itself."""
YEAR_DAYS = 364
_READY_WITHIN_S = 600.0


@dataclass(slots=True)
class Held:
    """What was seen of one run."""

    minutes: float
    days: int
    samples: list[Sample] = field(default_factory=list)
    days_played: int = 0
    models: int = 0
    events: int = 0
    errors: list[str] = field(default_factory=list)
    """What the browser's console said of the page."""

    @property
    def growth(self) -> Growth | None:
        """None if the run was too short to say."""
        return growth(self.samples)

    def holds(self) -> bool:
        """Whether neither side grew, and the page made no error."""
        grown = self.growth
        return grown is not None and grown.holds() and not self.errors

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        grown = self.growth
        return {
            "minutes": self.minutes,
            "days_played": self.days_played,
            "events": self.events,
            "models": self.models,
            "growth": grown and grown.as_json(),
            "errors": self.errors,
            "holds": self.holds(),
            "samples": [asdict(sample) for sample in self.samples],
        }


def run(*, minutes: float, stay_s: float, home: Path | None, said: Callable[[str], None]) -> Held:
    """Play for so many minutes; on Ctrl-C what was seen until then.

    Args:
        stay_s: how long a view is looked at before the next.
        home: keeps data and logs; else a folder that is deleted.

    Raises:
        InvalidConfiguration: there is no browser.
        NotSeen: the page does not show what it should.
        ProcessFailed: the demo, or the page, has ended.
    """
    program = find()
    days = max(1, min(YEAR_DAYS, int(minutes * 60 / LEAST_DAY_S)))
    held = Held(minutes=minutes, days=days)
    with tempfile.TemporaryDirectory(prefix="tidemill-page-") as made:
        folder = home or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _demo(folder, days=days, day_s=minutes * 60 / days) as (process, port):
                asyncio.run(_look(held, program, folder, process, port, stay_s, said))
        except KeyboardInterrupt:
            said("interrupted: what was seen until now")
    return held


@contextmanager
def _demo(folder: Path, *, days: int, day_s: float) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = tidemill("demo", "--fresh", "--home", str(folder / "demo"))
    command += ["--days", str(days), "--day-seconds", f"{day_s:g}"]
    with (folder / "demo.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "TIDEMILL_PAGE__PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours: it is ended once the browser has gone
        )
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _look(
    held: Held,
    program: str,
    folder: Path,
    demo: subprocess.Popen[bytes],
    port: int,
    stay_s: float,
    said: Callable[[str], None],
) -> None:
    url = f"http://127.0.0.1:{port}/"
    log_file = folder / "demo.log"
    said("the demo starts")
    async with aiohttp.ClientSession() as client:
        await _until_it_plays(client, url, demo, log_file)
        page = _page_of(demo, log_file)

        def seen(sample: Sample) -> None:
            if demo.poll() is not None:
                raise _ended(demo, log_file)
            held.samples.append(sample)
            said(
                f"{sample.at_s / 60:.1f} of {held.minutes:g} min, {sample.view}: the page's process "
                f"{sample.page_mib:.0f} MiB, the browser's heap {sample.heap_mib:.1f} MiB"
            )

        async with Browser(program, folder / "browser") as browser:
            await browser.command("Page.navigate", url=url)
            await browser.wait("document.querySelector('#state')?.dataset.state === 'live'")
            try:
                await watch(browser, page, seconds=held.minutes * 60, stay_s=stay_s, seen=seen)
            except psutil.NoSuchProcess as error:
                tail = (folder / "demo/logs/page.log").read_text()[-2_000:]
                raise ProcessFailed("page", -1, folder / "demo/logs/page.log", tail) from error
            finally:
                held.errors = browser.errors
            windows, road, models = [
                await (await client.get(f"{url}api/{each}")).json() for each in ("windows", "road", "models")
            ]
            held.days_played = sum(each["closed"] for each in windows["pipelines"])
            held.events = sum(each["events"] for each in road["pipelines"])
            held.models = len(models["models"])


async def _until_it_plays(
    client: aiohttp.ClientSession, url: str, demo: subprocess.Popen[bytes], log_file: Path
) -> None:
    """Wait until the page knows of a closed window."""
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        if demo.poll() is not None:
            raise _ended(demo, log_file)
        if time.monotonic() > deadline:
            raise NotSeen(f"no window has closed within {_READY_WITHIN_S:g} s; the demo's log is {log_file}")
        try:
            async with client.get(f"{url}api/windows") as got:
                if any(each["closed"] for each in (await got.json())["pipelines"]):
                    return
        except aiohttp.ClientError:
            pass  # it is not there yet
        await asyncio.sleep(0.5)


def _page_of(demo: subprocess.Popen[bytes], log_file: Path) -> psutil.Process:
    for child in psutil.Process(demo.pid).children():
        if child.cmdline()[-1:] == ["page"]:
            return child
    raise _ended(demo, log_file)


def _ended(demo: subprocess.Popen[bytes], log_file: Path) -> ProcessFailed:
    return ProcessFailed("demo", demo.poll() or 0, log_file, log_file.read_text(errors="replace")[-2_000:])
