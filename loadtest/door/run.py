"""`tidemill bench door`: a door, a broker and a sender as processes of their own, under load and under kills.

Each form is sent for some seconds in every round: events that the door acknowledged a second, and the
processor's time an event of door, broker and sender, between two moments of steady load. Then door and
broker are killed in turns while events go in. At the end every acknowledged event is looked for on the topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from infra import atomic_file
from infra.door.run import OPEN
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.topics import ensure
from infra.supervisor import Supervised, tidemill
from loadtest.door.form import FORMS, SINGLE
from loadtest.door.held import Found, compare, ends, lying
from loadtest.ingest import readings
from loadtest.ingest.result import command_line, machine, now
from loadtest.ingest.scratch import scratch
from schemas import topics
from schemas.errors import InvalidConfiguration, Retryable

AT_LEAST = {"single": 10_000, "many": 100_000}
"""Events a second that are promised."""

_PATIENCE_S = 90.0
_CALM_S = 2.0
_DECLARES = """from loadtest.ingest.readings import pipeline

readings = pipeline("door")
"""


class DoorBenchFailed(Retryable):
    """The door did not open, or the sender failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is run. `events` are those of one request, of a form that takes several."""

    forms: tuple[str, ...] = ("binary", "batch")
    seconds: float = 10.0
    rounds: int = 3
    connections: int = 128
    batches_at_once: int = 8
    events: int = 500
    processes: int = 2
    kills: int = 6

    def connections_of(self, form: str) -> int:
        """So many requests are under way at once."""
        return self.connections if form in SINGLE else self.batches_at_once


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """One form in one round; `cpu_us_per_event` by process, of those that lived through it."""

    form: str
    rate_events_s: float
    cpu_us_per_event: dict[str, float]
    latency_ms: dict[str, float]
    refused: dict[str, int]
    broken: int
    unanswered: int


@dataclass(kw_only=True)
class Result:
    """What came of a run."""

    options: Options
    sent: list[Sent] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    under_kills: Sent | None = None
    found: Found | None = None
    began: datetime = field(default_factory=now)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def median(self, form: str) -> float:
        """Events a second."""
        return statistics.median(each.rate_events_s for each in self.sent if each.form == form)

    def targets(self) -> dict[str, dict[str, Any]]:
        """What is promised of each form, and whether it is met."""
        found = {}
        for form in self.options.forms:
            at_least = AT_LEAST["single" if form in SINGLE else "many"]
            found[form] = {"at_least": at_least, "rate": self.median(form)}
            found[form]["met"] = found[form]["rate"] >= at_least
        return found

    def holds(self) -> bool:
        """Nothing that was acknowledged is lost, or lies elsewhere than was said."""
        return self.found is not None and not self.found.lost and not self.found.misplaced

    def as_json(self) -> dict[str, Any]:
        """The whole result as plain data."""
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "options": asdict(self.options),
            "machine": machine(self.load_before),
            "targets": self.targets(),
            "rounds": [asdict(each) for each in self.sent],
            "kills": self.kills,
            "under_kills": self.under_kills and asdict(self.under_kills),
            "account": self.found and asdict(self.found),
        }

    def table(self) -> Table:
        """For a person."""
        table = Table("form", "events/s", "p50 ms", "p99 ms", "CPU µs/event: door", "broker", "sender")
        for each in [*self.sent, *([self.under_kills] if self.under_kills else [])]:
            table.add_row(
                each.form if each is not self.under_kills else f"{each.form}, under kills",
                f"{each.rate_events_s:,.0f}",
                f"{each.latency_ms['p50']:.1f}",
                f"{each.latency_ms['p99']:.1f}",
                *(_figure(each.cpu_us_per_event.get(name)) for name in ("door", "broker", "sender")),
            )
        return table

    def write(self, folder: Path) -> Path:
        """The dated file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"door-{self.began:%Y-%m-%dT%H%M%S}.json"
        atomic_file.write_text(file, json.dumps(self.as_json(), indent=2))
        return file


def measure(options: Options, *, cache_dir: Path, said: Callable[[str], object]) -> Result:
    """Run all of it.

    Raises:
        InvalidConfiguration: there is no such form.
        DoorBenchFailed: the door did not open, or the sender failed.
    """
    if unknown := [form for form in options.forms if form not in FORMS]:
        raise InvalidConfiguration(f"there is no form {unknown[0]!r}; there are {', '.join(FORMS)}")
    result = Result(options=options)
    with (
        scratch(cache_dir, None) as (broker, folder),
        _door(folder, broker.bootstrap_servers, options.processes) as door,
    ):
        connection = Connection(bootstrap_servers=broker.bootstrap_servers)
        stage = _Stage(folder, broker, door, options)
        before = asyncio.run(ends(connection))
        for number in range(1, options.rounds + 1):
            for form in options.forms:
                said(f"round {number} of {options.rounds}: {form}")
                result.sent.append(stage.send(form, lambda: time.sleep(options.seconds)))
        if options.kills:
            form = options.forms[0]
            result.under_kills = stage.send(
                form, lambda: result.kills.extend(stage.kill(options.kills, said=said))
            )
        said("looking for every acknowledged event")
        lies = asyncio.run(lying(connection, before))
        result.found = compare(stage.acknowledged(), lies, before)
    return result


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


class _Stage:
    """Broker, door and sender."""

    def __init__(self, home: Path, broker: EmbeddedBroker, door: Supervised, options: Options) -> None:
        self._home, self._broker, self._door, self._options = home, broker, door, options
        self._accounts: list[Path] = []
        self._next = 0

    def send(self, form: str, meanwhile: Callable[[], object]) -> Sent:
        """Send from the first steady answers until `meanwhile` is over."""
        account = self._home / f"acknowledged-{len(self._accounts)}.npy"
        self._accounts.append(account)
        asked = {
            "port": int(_port_of(self._door)),
            "form": form,
            "connections": self._options.connections_of(form),
            "events": self._options.events,
            "first": self._next,
            "to": str(account),
        }
        with subprocess.Popen(
            [sys.executable, "-m", "loadtest.door.sender", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as sender:
            assert sender.stdin is not None
            assert sender.stdout is not None
            try:
                if sender.stdout.readline() != "warm\n":
                    raise DoorBenchFailed(f"the sender of {form} failed; its error is above")
                before = self._used_s(sender.pid)
                meanwhile()
                after = self._used_s(sender.pid)
                sender.stdin.close()
                seen = json.loads(sender.stdout.readline() or "null")
            finally:
                if sys.exc_info()[0] is not None:
                    sender.kill()
        if seen is None:
            raise DoorBenchFailed(f"the sender of {form} failed; its error is above")
        self._next = seen["next"]
        return Sent(
            form=form,
            rate_events_s=seen["between"] / seen["between_s"],
            cpu_us_per_event={
                name: (sum(after[name].values()) - sum(used.values())) / max(1, seen["between"]) * 1e6
                for name, used in before.items()
                if used.keys() == after[name].keys()  # one that was killed took its figure along
            },
            latency_ms=seen["latency_ms"],
            refused=seen["refused"],
            broken=seen["broken"],
            unanswered=seen["unanswered"],
        )

    def kill(self, times: int, *, said: Callable[[str], object]) -> Iterator[str]:
        """kill -9 of door and broker in turns, each started again while events come."""
        for number in range(times):
            time.sleep(_CALM_S)
            whom = "door" if number % 2 == 0 else "broker"
            said(f"kill {number + 1} of {times}: the {whom}")
            if whom == "door":
                opened = self._door.log_file.read_text().count(OPEN)
                door = psutil.Process(self._door.pid)
                for each in (door, *door.children(recursive=True)):
                    each.kill()
                self._door.stop()
                self._door.start()
                _await_open(self._door, opened + 1)
            else:
                self._broker.kill()
                self._broker.start()
            yield whom
        time.sleep(_CALM_S)

    def acknowledged(self) -> np.ndarray:
        """Everything that any sender was told is there: rows of number, partition, offset."""
        return np.concatenate([np.load(account) for account in self._accounts])

    def _used_s(self, sender: int) -> dict[str, dict[int, float]]:
        """Seconds of the processor that each process has used by now."""
        door = psutil.Process(self._door.pid)
        of = {
            "door": [door, *door.children(recursive=True)],
            "broker": [psutil.Process(self._broker.pid)],
            "sender": [psutil.Process(sender)],
        }
        return {
            name: {each.pid: sum(each.cpu_times()[:2]) for each in processes}
            for name, processes in of.items()
        }


@contextlib.contextmanager
def _door(home: Path, servers: str, processes: int) -> Iterator[Supervised]:
    asyncio.run(ensure([*topics.TOPICS, readings.declare()], Connection(bootstrap_servers=servers)))
    declares = home / "declares.py"
    declares.write_text(_DECLARES)
    door = Supervised(
        "the door",
        tidemill("door", "--pipeline", str(declares)),
        home / "door.log",
        {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": servers,
            "TIDEMILL_PATHS__HOME": str(home),
            "TIDEMILL_DOOR__PORT": str(free_port()),
            "TIDEMILL_DOOR__PROCESSES": str(processes),
        },
    )
    door.start()
    try:
        _await_open(door)
        yield door
    finally:
        door.stop()


def _port_of(door: Supervised) -> str:
    return door.environment["TIDEMILL_DOOR__PORT"]


def _await_open(door: Supervised, times: int = 1) -> None:
    """Until its log has said so often that it is open."""
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        if door.log_file.read_text().count(OPEN) >= times:
            return
        if psutil.Process(door.pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    raise DoorBenchFailed(f"the door did not open; its log ends:\n{door.log_tail()}")
