"""A worker that was stopped for an hour: does it read what came meanwhile as fast as it reads anything?

    tidemill bench catch-up --minutes 60

A round: the worker reads an hour of events from an empty dataset (the top rate, on this machine, in this
run) and is stopped. Another hour of events comes. It is started again, on its dataset, log and announcements
as it left them, and reads on until nothing is behind.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.kafka.connection import Connection
from loadtest.ingest import readings, tidemill
from loadtest.ingest.fill import Filled, fill
from loadtest.ingest.measure import Measured, measure
from loadtest.ingest.result import command_line, machine, now
from loadtest.ingest.scratch import scratch
from loadtest.ingest.side import Mark, Side, Task
from loadtest.ingest.target import Target

LEAST_OF_TOP = 0.95
"""No slower, but for what two runs of the same differ by."""
_PER_MINUTE = 60 * readings.PER_SECOND


@dataclass
class CaughtUp:
    """All rounds: `top` from an empty dataset, `after` the stop."""

    minutes: float
    events: int
    """So many came before the stop, and as many meanwhile."""
    began: datetime
    top: list[Measured] = field(default_factory=list)
    after: list[Measured] = field(default_factory=list)
    filled: list[Filled] = field(default_factory=list)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def ratio(self, figure: str = "rate_events_s") -> float:
        """After the stop, by from an empty dataset: the median of the rounds' own ratios."""
        pairs = zip(self.after, self.top, strict=True)
        return statistics.median(getattr(after, figure) / getattr(top, figure) for after, top in pairs)

    def targets(self) -> list[Target]:
        """What is asked."""
        found = self.ratio()
        return [
            Target(what="after the stop by the top rate", found=found, at_least=LEAST_OF_TOP, unit=" times")
        ]

    def faults(self) -> list[str]:
        """Rounds whose rows are not those that the data give."""
        return [
            f"round {number} kept {after.kept:,} rows; {filled.unique:,} would be right"
            for number, (after, filled) in enumerate(zip(self.after, self.filled, strict=True), 1)
            if after.kept != filled.unique
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "machine": machine(self.load_before),
            "minutes": self.minutes,
            "events": self.events,
            "rounds": [
                {"top": asdict(top), "after": asdict(after)}
                for top, after in zip(self.top, self.after, strict=True)
            ],
            "ratios": {"rate": self.ratio(), "cpu_per_event": self.ratio("cpu_us_per_event")},
            "targets": [target.as_json() for target in self.targets()],
            "faults": self.faults(),
        }

    def table(self) -> Table:
        """For a person."""
        table = Table("", "events/s", "CPU µs/event", "peak MiB", "first commit after, s")
        for name, measured in (("from an empty dataset", self.top), ("after the stop", self.after)):
            figures = ("rate_events_s", "cpu_us_per_event", "peak_memory_mib", "start_s")
            rate, cpu, peak, start = (
                statistics.median(getattr(each, figure) for each in measured) for figure in figures
            )
            table.add_row(name, f"{rate:,.0f}", f"{cpu:.2f}", f"{peak:,.0f}", f"{start:.1f}")
        return table


def run(*, minutes: float, rounds: int, cache_dir: Path, console: Console) -> CaughtUp:
    """All rounds on a broker of their own, each on a topic of its own.

    Args:
        minutes: of the events' own time, at the common work's 1,000 events/s.

    Raises:
        Absent: the worker did not start, or died.
    """
    with scratch(cache_dir, console) as (broker, folder):
        return run_on(
            broker.bootstrap_servers,
            folder,
            minutes=minutes,
            rounds=rounds,
            cache_dir=cache_dir,
            console=console,
        )


def run_on(
    bootstrap_servers: str, folder: Path, *, minutes: float, rounds: int, cache_dir: Path, console: Console
) -> CaughtUp:
    """The same on a broker that runs already and has no such topics yet; scratch data go into `folder`."""
    events = round(minutes * _PER_MINUTE)
    result = CaughtUp(minutes=minutes, events=events, began=now())
    connection = Connection(bootstrap_servers=bootstrap_servers)
    for number in range(1, rounds + 1):
        topic, home = f"bench.catch-up-{number}", folder / f"catch-up-{number}"
        home.mkdir()
        before = asyncio.run(fill(connection, events, topic=topic, console=console))
        task = Task(
            bootstrap_servers=bootstrap_servers,
            topic=topic,
            form="json",
            filled=before,
            round=number,
            home=home,
            cache_dir=cache_dir,
        )
        result.top.append(_measure(task, before=0))
        meanwhile = asyncio.run(fill(connection, events, topic=topic, first=events, console=console))
        both = Filled(
            events=before.events + meanwhile.events,
            records=tuple(a + b for a, b in zip(before.records, meanwhile.records, strict=True)),
            kept=before.kept + meanwhile.kept,
            unique=before.unique + meanwhile.unique,
            bytes_per_event=before.bytes_per_event,
        )
        result.after.append(_measure(replace(task, filled=both), before=before.events))
        result.filled.append(both)
        console.print(
            f"round {number}: {result.top[-1].rate_events_s:,.0f} events/s from an empty dataset, "
            f"{result.after[-1].rate_events_s:,.0f} after the stop",
            highlight=False,
        )
    return result


def _measure(task: Task, *, before: int) -> Measured:
    """The worker until nothing is behind, of the events after the first so many."""

    def marks(task: Task) -> list[Mark]:
        return [mark for mark in tidemill.marks(task) if mark.events > before]

    side = Side(name="tidemill", title="Tidemill", prepare=tidemill.prepare, marks=marks)
    return measure(side, task, most_s=1_800.0, patience_s=120.0)
