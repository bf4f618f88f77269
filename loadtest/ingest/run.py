"""The benchmark as a whole: a broker of its own, the data on it, the sides in turn, round after round."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from infra.kafka.connection import Connection
from loadtest.ingest import readings
from loadtest.ingest.fill import Filled, Format, fill
from loadtest.ingest.measure import Measured, measure
from loadtest.ingest.result import Result, command_line, now
from loadtest.ingest.scratch import scratch
from loadtest.ingest.side import Absent, Side, Task
from loadtest.ingest.sides import NAMES, SIDES
from schemas.errors import InvalidConfiguration


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured, and how often."""

    sides: tuple[str, ...] = ("tidemill", "faust", "getmany", "librdkafka")
    events: int = 1_000_000
    rounds: int = 3
    format: Format = "json"
    partitions: int = 4
    keys: int = 32
    most_s: float = 20.0
    """A side that is slower than that is stopped, and judged by what it had read."""
    patience_s: float = 120.0


def chosen(names: Sequence[str]) -> list[Side]:
    """The sides of these names, in the order of the table.

    Raises:
        InvalidConfiguration: there is no such side.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise InvalidConfiguration(f"there is no side {unknown[0]!r}; there are {', '.join(NAMES)}")
    return [side for side in SIDES if side.name in names]


def run(options: Options, *, cache_dir: Path, console: Console) -> Result:
    """All rounds; each side begins each round from nothing, on the same events."""
    with scratch(cache_dir, console) as (broker, folder):
        return run_on(broker.bootstrap_servers, folder, options, cache_dir=cache_dir, console=console)


def run_on(
    bootstrap_servers: str, folder: Path, options: Options, *, cache_dir: Path, console: Console
) -> Result:
    """All rounds on a broker that runs already and has no such topic yet; scratch data go into `folder`."""
    sides = chosen(options.sides)
    began = now()
    connection = Connection(bootstrap_servers=bootstrap_servers)
    filled = asyncio.run(
        fill(
            connection,
            options.events,
            form=options.format,
            partitions=options.partitions,
            keys=options.keys,
            console=console,
        )
    )
    result = Result(command_line(), asdict(options), filled, began, sides)
    for number in range(1, options.rounds + 1):
        for side in sides:
            if side.name in result.absent:
                continue
            task = _task(options, filled, folder, cache_dir, bootstrap_servers, side, number)
            try:
                measured = _one(side, task, options)
            except Absent as why:
                result.absent[side.name] = str(why)
                result.rounds.pop(side.name, None)
                console.print(f"{side.title} is absent: {why}", highlight=False, markup=False)
            else:
                result.rounds.setdefault(side.name, []).append(measured)
                if side.check is not None and measured.whole:
                    result.wrong += [f"{side.name}, round {number}: {each}" for each in side.check(task)]
                console.print(
                    f"round {number}, {side.title}: {measured.rate_events_s:,.0f} events/s, "
                    f"{measured.cpu_us_per_event:.2f} CPU µs an event, {measured.peak_memory_mib:.0f} MiB"
                )

    return result


def _one(side: Side, task: Task, options: Options) -> Measured:
    if options.format not in side.forms:
        raise Absent(f"it reads {' and '.join(side.forms)} here, not {options.format}")
    return measure(side, task, most_s=options.most_s, patience_s=options.patience_s)


def _task(
    options: Options,
    filled: Filled,
    folder: Path,
    cache_dir: Path,
    bootstrap_servers: str,
    side: Side,
    number: int,
) -> Task:
    home = folder / f"{side.name}-{number}"
    home.mkdir()
    return Task(
        bootstrap_servers=bootstrap_servers,
        topic=readings.TOPIC,
        form=options.format,
        filled=filled,
        round=number,
        home=home,
        cache_dir=cache_dir,
    )
