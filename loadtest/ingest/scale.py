"""How the cost of an event grows: with workers, partitions and keys, and what dedupe is of it.

    tidemill bench scale --of workers,partitions,keys,dedupe

Cases differ in one thing each and run in turns, round after round, on one broker, so that a machine that
grows slower meanwhile slows all of them. Each starts from an empty dataset on topics that are filled before.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.kafka.connection import Connection
from loadtest.ingest import tidemill
from loadtest.ingest.fill import Filled, fill
from loadtest.ingest.measure import Measured, measure
from loadtest.ingest.result import MEDIANS, command_line, machine, now
from loadtest.ingest.scratch import scratch
from loadtest.ingest.side import Side, Task
from loadtest.ingest.target import Target
from schemas.errors import InvalidConfiguration

BROKER_SETTINGS = {"group.initial.rebalance.delay.ms": "3000"}
"""Workers that start together share the partitions from the first record on."""
LEAST_SPEED_UP = 1.8
MOST_OF_DEDUPE = 1 / 3
_CORES_FOR_TWO = 4
"""Two workers, the broker, and whoever measures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One worker, or several, on a topic of so many partitions and keys."""

    partitions: int = 4
    keys: int = 64
    workers: int = 1
    within: str | None = "1m"
    """The horizon of dedupe; None: without."""

    @property
    def name(self) -> str:
        """As the table and the result have it."""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        without = "" if self.within else ", no dedupe"
        return f"{workers}, {self.partitions} partitions, {self.keys} keys{without}"

    @property
    def topic(self) -> str:
        """Cases of the same data share one."""
        return f"bench.{self.partitions}-partitions-{self.keys}-keys"


BASE = Case()
OF: dict[str, tuple[Case, ...]] = {
    "workers": (BASE, Case(workers=2)),
    "partitions": tuple(Case(partitions=partitions) for partitions in (1, 4, 16, 64)),
    "keys": tuple(Case(partitions=1, keys=keys) for keys in (1, 64, 10_000)),
    "dedupe": (BASE, Case(within=None)),
}
"""By what grows."""


@dataclass
class Scaled:
    """All rounds of all cases of one run."""

    of: Sequence[str]
    events: int
    began: datetime
    cores: int
    rounds: dict[Case, list[Measured]] = field(default_factory=dict)
    filled: dict[str, Filled] = field(default_factory=dict)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def median(self, case: Case, figure: str) -> float:
        """Over the rounds."""
        return statistics.median(getattr(each, figure) for each in self.rounds[case])

    def targets(self) -> list[Target]:
        """What is asked of two workers, and of dedupe."""
        found = []
        if "workers" in self.of:
            one, two = OF["workers"]
            if self.cores >= _CORES_FOR_TWO:
                speed_up = self.median(two, "rate_events_s") / self.median(one, "rate_events_s")
                what = "two workers by one, events/s"
            else:
                # They share what one had for itself: the clock cannot show more than one does.
                speed_up = 2 * self.median(one, "cpu_us_per_event") / self.median(two, "cpu_us_per_event")
                what = f"two workers by one, CPU an event ({self.cores} cores are too few for the clock)"
            found.append(Target(what=what, found=speed_up, at_least=LEAST_SPEED_UP, unit=" times"))
        if "dedupe" in self.of:
            with_it, without = (self.median(case, "cpu_us_per_event") for case in OF["dedupe"])
            share = 100 * (1 - without / with_it)
            found.append(
                Target(what="dedupe, of CPU an event", found=share, at_most=100 * MOST_OF_DEDUPE, unit=" %")
            )
        return found

    def faults(self) -> list[str]:
        """Cases that came to other counts than the data give."""
        said = []
        for case, measured in self.rounds.items():
            filled = self.filled[case.topic]
            right = filled.unique if case.within else filled.kept
            said += [
                f"{case.name} kept {each.kept:,} rows; {right:,} would be right"
                for each in measured
                if each.whole and each.kept != right
            ]
        return said

    def as_json(self) -> dict[str, Any]:
        """The whole result as plain data."""
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "machine": machine(self.load_before),
            "events": self.events,
            "of": {
                what: [
                    {
                        **asdict(case),
                        "median": {figure: self.median(case, figure) for figure in MEDIANS},
                        "rounds": [asdict(each) for each in self.rounds[case]],
                    }
                    for case in OF[what]
                ]
                for what in self.of
            },
            "targets": [target.as_json() for target in self.targets()],
            "faults": self.faults(),
        }

    def table(self) -> Table:
        """For a person."""
        table = Table("", "case", "events/s", "CPU µs/event", "of the first", "peak MiB")
        for what in self.of:
            first = self.median(OF[what][0], "cpu_us_per_event")
            for case in OF[what]:
                cpu = self.median(case, "cpu_us_per_event")
                table.add_row(
                    what if case is OF[what][0] else "",
                    case.name,
                    f"{self.median(case, 'rate_events_s'):,.0f}",
                    f"{cpu:.2f}",
                    f"{cpu / first:.2f}",
                    f"{self.median(case, 'peak_memory_mib'):,.0f}",
                )
        return table


def run(of: Sequence[str], *, events: int, rounds: int, cache_dir: Path, console: Console) -> Scaled:
    """All cases of what is asked for, in turns.

    Raises:
        InvalidConfiguration: nothing grows under one of the names.
        Absent: a worker did not start, or died.
    """
    refuse_unknown(of)
    with scratch(cache_dir, console, broker_settings=BROKER_SETTINGS) as (broker, folder):
        return run_on(
            broker.bootstrap_servers,
            folder,
            of,
            events=events,
            rounds=rounds,
            cache_dir=cache_dir,
            console=console,
        )


def refuse_unknown(of: Sequence[str]) -> None:
    """Raises InvalidConfiguration for a name that is none of `OF`."""
    if unknown := [what for what in of if what not in OF]:
        raise InvalidConfiguration(f"nothing grows under the name {unknown[0]!r}; there are {', '.join(OF)}")


def run_on(
    bootstrap_servers: str,
    folder: Path,
    of: Sequence[str],
    *,
    events: int,
    rounds: int,
    cache_dir: Path,
    console: Console,
) -> Scaled:
    """The same on a broker that runs already; scratch data go into `folder`."""
    cases = list(dict.fromkeys(case for what in of for case in OF[what]))
    connection = Connection(bootstrap_servers=bootstrap_servers)
    result = Scaled(of=of, events=events, began=now(), cores=os.cpu_count() or 1)
    for case in cases:
        if case.topic not in result.filled:
            filling = fill(
                connection,
                events,
                topic=case.topic,
                partitions=case.partitions,
                keys=case.keys,
                console=console,
            )
            result.filled[case.topic] = asyncio.run(filling)
    for number in range(1, rounds + 1):
        for at, case in enumerate(cases):
            home = folder / f"case-{at}-{number}"
            home.mkdir()
            task = Task(
                bootstrap_servers=bootstrap_servers,
                topic=case.topic,
                form="json",
                filled=result.filled[case.topic],
                round=number,
                home=home,
                cache_dir=cache_dir,
            )
            side = Side(
                name="tidemill",
                title=case.name,
                prepare=partial(tidemill.prepare, workers=case.workers, within=case.within),
                marks=tidemill.marks,
            )
            measured = measure(side, task, most_s=600.0, patience_s=120.0)
            result.rounds.setdefault(case, []).append(measured)
            console.print(
                f"round {number}, {case.name}: {measured.rate_events_s:,.0f} events/s, "
                f"{measured.cpu_us_per_event:.2f} CPU µs an event",
                highlight=False,
            )
    return result
