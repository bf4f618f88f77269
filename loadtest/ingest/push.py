"""How fast `tidemill push` sends a file: one process, each format, on a broker of its own.

The file holds the readings of the ingest benchmark. Beside the rate stands the processor's time an event:
that of the whole process, less what a push of a single event took in the same round.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from rich.console import Console
from rich.table import Table

from infra import atomic_file
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.supervisor import tidemill
from loadtest.ingest import readings
from loadtest.ingest.result import command_line, machine, now
from loadtest.ingest.scratch import scratch
from schemas import topics
from schemas.errors import InvalidConfiguration, Retryable

WRITE: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "ndjson": lambda table, file: table.write_ndjson(file),
    "csv": lambda table, file: table.write_csv(file),
    "parquet": lambda table, file: table.write_parquet(file),
    "arrow": lambda table, file: table.write_ipc(file),
}
FORMATS = (*WRITE, "parquet-as-arrow")
"""Files, each an event a record; the last one as Arrow frames of some thousand rows."""

_ONE = "one"
_DECLARES = """from loadtest.ingest.readings import pipeline

readings = pipeline("pushed")
"""


class NotPushed(Retryable):
    """A push failed, or other records lie on the topic than were sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """One push of one file: by its own clock from the first chunk to the last acknowledgement."""

    format: str
    events: int
    rate_events_s: float
    cpu_us_per_event: float


def run(
    formats: Sequence[str], *, events: int, rounds: int, cache_dir: Path, console: Console
) -> dict[str, Any]:
    """Push every file in every round; plain data with each format's rounds and medians.

    Raises:
        InvalidConfiguration: there is no such format.
        NotPushed: a push failed, or not every record is on the topic.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InvalidConfiguration(f"there is no format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    began, load = now(), os.getloadavg()
    found: list[Pushed] = []
    with scratch(cache_dir, console) as (broker, folder):
        connection = Connection(bootstrap_servers=broker.bootstrap_servers)
        asyncio.run(ensure([*topics.TOPICS, readings.declare()], connection))
        home = folder / "home"
        home.mkdir()
        (home / "pushed.py").write_text(_DECLARES)
        files = _files(formats, events, home)
        for number in range(1, rounds + 1):
            start_s = _push(_ONE, files[_ONE], 1, connection, home)[1]
            for name in formats:
                rate, used_s = _push(name, files[name.split("-")[0]], events, connection, home)
                each = Pushed(
                    format=name,
                    events=events,
                    rate_events_s=rate,
                    cpu_us_per_event=(used_s - start_s) / events * 1e6,
                )
                found.append(each)
                console.print(
                    f"round {number}, {name}: {each.rate_events_s:,.0f} events/s, "
                    f"{each.cpu_us_per_event:.2f} CPU µs an event",
                    highlight=False,
                )
    return {
        "began": began.isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": machine(load),
        "events": events,
        "formats": {
            name: {
                "median": {
                    figure: statistics.median(getattr(p, figure) for p in found if p.format == name)
                    for figure in ("rate_events_s", "cpu_us_per_event")
                },
                "rounds": [asdict(p) for p in found if p.format == name],
            }
            for name in formats
        },
    }


def _files(formats: Sequence[str], events: int, home: Path) -> dict[str, Path]:
    table = pl.concat([part for parts in readings.chunks(events) for part in parts]).sort("time")
    files = {_ONE: home / "one.parquet"}
    table[:1].write_parquet(files[_ONE])
    for name in dict.fromkeys(each.split("-")[0] for each in formats):
        files[name] = home / f"readings.{name}"
        WRITE[name](table, files[name])
    return files


def _push(name: str, file: Path, events: int, connection: Connection, home: Path) -> tuple[float, float]:
    """Events a second from the first chunk to the last acknowledgement; the process' CPU time in s."""
    before = asyncio.run(_records(connection))
    form = "arrow" if name.endswith("as-arrow") else "json"
    used_s = _cpu_of_children_s()
    done = subprocess.run(
        [
            *(*tidemill("push"), readings.TOPIC, str(file), "--pipeline", str(home / "pushed.py")),
            *("--as", form, "--from-beginning", "--json"),
        ],
        env={
            **os.environ,
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(home),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NotPushed(f"the push of {file.name} ended by {done.returncode}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    there = asyncio.run(_records(connection)) - before
    if said["sent"] != events or (form == "json" and there != events):
        raise NotPushed(f"{events:,} events of {file.name} were to be sent: {said}, {there:,} are there")
    return events / said["seconds"], _cpu_of_children_s() - used_s


def _cpu_of_children_s() -> float:
    """Of those that have ended."""
    times = os.times()
    return times.children_user + times.children_system


async def _records(connection: Connection) -> int:
    """How many lie on the topic by now."""
    consumer = AIOKafkaConsumer(**connection.client_arguments(), enable_auto_commit=False)
    await consumer.start()
    try:
        tps = [TopicPartition(readings.TOPIC, number) for number in range(readings.declare().partitions)]
        return sum((await consumer.end_offsets(tps)).values())
    finally:
        await consumer.stop()


def table(result: dict[str, Any]) -> Table:
    """For a person."""
    shown = Table("file", "events/s", "CPU µs/event")
    for name, each in result["formats"].items():
        median = each["median"]
        shown.add_row(name, f"{median['rate_events_s']:,.0f}", f"{median['cpu_us_per_event']:,.2f}")
    return shown


def write(result: dict[str, Any], folder: Path) -> Path:
    """The dated file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"push-{now():%Y-%m-%dT%H%M%S}.json"
    atomic_file.write_text(file, json.dumps(result, indent=2))
    return file
