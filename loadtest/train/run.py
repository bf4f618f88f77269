"""`tidemill bench train`: every side trains on the same rows, in turns, several rounds.

A DataLoader's worker processes are left out: they spread its work over cores, and make it no less. What a row
costs of the processor, loader and loop together, is the figure to compare; on a busy machine the only one.
Beside it stands what the batches alone cost, nothing trained: what the loader is answerable for.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.table import Table

from infra import atomic_file
from loadtest.ingest.result import command_line, machine, now
from loadtest.train.options import Compared, compare_options
from loadtest.train.sides import MEMORY, OURS, OURS_FROM_TABLE, ROWS, SIDES, Side, Task, task_of
from loadtest.train.table import examples
from streams.pipelines.flights import flights

PROMISED = {ROWS: 20.0, MEMORY: 0.9}
"""Times the rows of that side, at least."""
_OWN = (OURS, OURS_FROM_TABLE)
_WARM_UP_ROWS = 4_096
_EPOCHS = 6
"""Of a turn in which an option is weighed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is run. `threads` are torch's; small batches on more of them only wait for each other.

    `precision` is that of Tidemill's sides, as `trainers.loop` has it; the others' is float32.
    """

    days: int = 60
    rounds: int = 5
    batch_rows: int = 2048
    threads: int = 1
    seed: int = 0
    precision: str = "float32"
    also: tuple[str, ...] = ()
    """Options of the loop that are weighed against none, by the names of `loadtest.train.options`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One side's turn. `supply_cpu_us_per_row` is of the batches alone, nothing trained."""

    rows: int
    rate_rows_s: float
    cpu_us_per_row: float
    loss: float
    supply_cpu_us_per_row: float


@dataclass
class Result:
    """All rounds of all sides, and how they compare."""

    options: Options
    rows: int
    columns: int
    began: datetime = field(default_factory=now)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    rounds: dict[str, list[Round]] = field(default_factory=lambda: {side.name: [] for side in SIDES})
    weighed: Compared = field(default_factory=Compared)

    def median(self, side: str, figure: str) -> float:
        """A side's median of one figure."""
        return statistics.median(getattr(each, figure) for each in self.rounds[side])

    def ratios(self, side: Side) -> dict[str, float]:
        """Tidemill, from where that side begins, by that side: medians of turns in the same round.

        `rate` of rows a second, `cpu` of rows by processor time; above 1 Tidemill is ahead.
        """
        ours = self.rounds[OURS_FROM_TABLE if side.from_table else OURS]
        turns = list(zip(ours, self.rounds[side.name], strict=True))
        return {
            "rate": statistics.median(own.rate_rows_s / other.rate_rows_s for own, other in turns),
            "cpu": statistics.median(other.cpu_us_per_row / own.cpu_us_per_row for own, other in turns),
        }

    def targets(self) -> list[dict[str, Any]]:
        """What is promised, and whether it came out so, by processor time: others may be at work here."""
        return [
            {
                "against": side.name,
                "title": side.title,
                "at_least": PROMISED[side.name],
                **(found := self.ratios(side)),
                "met": found["cpu"] >= PROMISED[side.name],
            }
            for side in SIDES
            if side.name in PROMISED
        ]

    def as_json(self) -> dict[str, Any]:
        """The whole result as plain data."""
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "options": asdict(self.options),
            "machine": {**machine(self.load_before), "torch": metadata.version("torch")},
            "table": {"rows": self.rows, "feature_columns": self.columns},
            "sides": {
                side.name: {
                    "title": side.title,
                    "from_table": side.from_table,
                    "is_limit": side.is_limit,
                    "median": {
                        figure: self.median(side.name, figure)
                        for figure in ("rate_rows_s", "cpu_us_per_row", "supply_cpu_us_per_row", "loss")
                    },
                    "rounds": [asdict(each) for each in self.rounds[side.name]],
                }
                for side in SIDES
            },
            "ratios": {side.name: self.ratios(side) for side in SIDES if side.name not in _OWN},
            "targets": self.targets(),
            "options_weighed": self.weighed.as_json(),
        }

    def table(self) -> Table:
        """For a person."""
        table = Table("side", "rows/s", "CPU µs/row", "batches", "Tidemill is", "by CPU")
        for side in SIDES:
            ratios = {} if side.name in _OWN else self.ratios(side)
            table.add_row(
                side.title,
                f"{self.median(side.name, 'rate_rows_s'):,.0f}",
                f"{self.median(side.name, 'cpu_us_per_row'):,.2f}",
                f"{self.median(side.name, 'supply_cpu_us_per_row'):,.2f}",
                *(f"{ratios[name]:,.2f} times" if ratios else "" for name in ("rate", "cpu")),
            )
        return table

    def write(self, folder: Path) -> Path:
        """The dated file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"train-{self.began:%Y-%m-%dT%H%M%S}.json"
        atomic_file.write_text(file, json.dumps(self.as_json(), indent=2))
        return file


def measure(options: Options, *, said: Callable[[str], object] = lambda _: None) -> Result:
    """Make the demo's table, then let every side train on it.

    Raises:
        InvalidConfiguration: the demo's data are not installed.
    """
    rows = examples(flights, days=options.days, progress=said)
    spec = flights.spec()
    assert spec.label is not None
    return compare(rows, features=spec.names(), label=spec.label.column, options=options, said=said)


def compare(
    rows: pl.DataFrame,
    *,
    features: list[str],
    label: str,
    options: Options,
    said: Callable[[str], object] = lambda _: None,
) -> Result:
    """Let every side train on a labelled table, in turns."""
    params = {"batch_rows": options.batch_rows, "precision": options.precision}
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        little = task_of(
            rows.head(_WARM_UP_ROWS), features=features, label=label, seed=options.seed, params=params
        )
        for side in SIDES:
            # Whoever comes first would pay for what torch loads at its first step.
            said(f"warming up: {side.title}")
            side.train(little.head(1), 1)
        task = task_of(rows, features=features, label=label, seed=options.seed, params=params)
        result = Result(options, task.rows, len(features))
        for number in range(options.rounds):
            for side in SIDES:
                said(f"round {number + 1} of {options.rounds}: {side.title}")
                result.rounds[side.name].append(_turn(side, task))
        if options.also:
            result.weighed = compare_options(
                task, list(options.also), rounds=options.rounds, epochs=_EPOCHS, said=said
            )
        return result
    finally:
        torch.set_num_threads(before)


def _turn(side: Side, task: Task) -> Round:
    if side.most_batches is not None:
        task = task.head(side.most_batches)
    gc.collect()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    loss = side.train(task, side.epochs)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    rows = task.rows * side.epochs
    return Round(
        rows=rows,
        rate_rows_s=rows / wall_s,
        cpu_us_per_row=cpu_s / rows * 1e6,
        loss=loss,
        supply_cpu_us_per_row=_supply(side.batches, task),
    )


def _supply(batches: Callable[[Task], Any], task: Task) -> float:
    began_s = time.process_time()
    count = sum(len(truth) for *_, truth in batches(task))
    assert count == task.rows, "a side gave other rows than the table has"
    return (time.process_time() - began_s) / count * 1e6
