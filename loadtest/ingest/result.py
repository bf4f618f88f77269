"""What a benchmark found: medians and ratios, as a table, a dated file and a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from infra import atomic_file
from infra.kafka.jars import KAFKA_VERSION
from loadtest.ingest.fill import Filled
from loadtest.ingest.measure import Measured
from loadtest.ingest.side import Side

OURS = "tidemill"
MEDIANS = ("rate_events_s", "cpu_us_per_event", "peak_memory_mib", "start_s")


@dataclass
class Result:
    """All rounds of all sides of one run."""

    command: Sequence[str]
    options: Mapping[str, Any]
    filled: Filled
    began: datetime
    sides: Sequence[Side]
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What a side's own check found."""
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def median(self, side: str, figure: str) -> float | None:
        """A side's median of one figure; None where it took no part."""
        found = [getattr(each, figure) for each in self.rounds.get(side, ())]
        return statistics.median(found) if found else None

    def ratio(self, side: str, figure: str = "rate_events_s") -> float | None:
        """Tidemill's median by that side's."""
        ours, theirs = self.median(OURS, figure), self.median(side, figure)
        return ours / theirs if ours and theirs else None

    def faults(self) -> list[str]:
        """Sides that came to other counts than the data give: their rates are worth nothing."""
        said = list(self.wrong)
        for side in self.sides:
            right = self.filled.kept if side.keeps_repeats() else self.filled.unique
            said += [
                f"{side.name} kept {each.kept:,} rows; {right:,} would be right"
                for each in self.rounds.get(side.name, ())
                if each.whole and each.kept not in (None, right)
            ]
        return said

    def as_json(self) -> dict[str, Any]:
        """The whole result as plain data."""
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": list(self.command),
            "options": dict(self.options),
            "machine": machine(self.load_before),
            "events": self.filled.events,
            "bytes_per_event": round(self.filled.bytes_per_event, 1),
            "sides": {side.name: self._side(side) for side in self.sides},
            "ratios": {
                side.name: {
                    "rate": self.ratio(side.name),
                    "cpu_per_event": self.ratio(side.name, "cpu_us_per_event"),
                }
                for side in self.sides
                if side.name != OURS and side.name in self.rounds
            },
            "faults": self.faults(),
        }

    def _side(self, side: Side) -> dict[str, Any]:
        does = {
            "title": side.title,
            "is_limit": side.is_limit,
            "durable": side.durable,
            "event_time": side.event_time,
            "dedupe": side.dedupe,
            "counts": side.counts,
        }
        if side.name in self.absent:
            return {**does, "absent": self.absent[side.name]}
        return {
            **does,
            "median": {figure: self.median(side.name, figure) for figure in MEDIANS},
            "rounds": [asdict(each) for each in self.rounds.get(side.name, ())],
        }

    def table(self) -> Table:
        """For a person."""
        table = Table("side", "events/s", "CPU µs/event", "peak MiB", "Tidemill is")
        for side in self.sides:
            if side.name in self.absent:
                table.add_row(side.title, f"absent: {self.absent[side.name].splitlines()[0]}")
                continue
            rate, ratio = self.median(side.name, "rate_events_s"), self.ratio(side.name)
            table.add_row(
                side.title,
                f"{rate:,.0f}",
                f"{self.median(side.name, 'cpu_us_per_event'):,.2f}",
                f"{self.median(side.name, 'peak_memory_mib'):,.0f}",
                "" if ratio is None or side.name == OURS else f"{ratio:,.2f} times",
            )
        return table

    def what_each_does(self) -> Table:
        """What a rate buys: what is durable, whose time counts, if a repeat counts twice, what is counted."""
        table = Table("side", "durable", "event time", "dedupe", "windows count")
        for side in self.sides:
            rest = (side.durable, side.event_time, side.dedupe, side.counts)
            table.add_row(side.title, *(("only reads", "", "", "") if side.is_limit else rest))
        return table

    def write(self, folder: Path) -> Path:
        """The dated file, and beside it the picture; gives the file."""
        folder.mkdir(parents=True, exist_ok=True)
        form = self.options.get("format", "json")
        file = folder / f"ingest-{form}-{self.began:%Y-%m-%dT%H%M%S}.json"
        atomic_file.write_text(file, json.dumps(self.as_json(), indent=2))
        draw(self, file.with_suffix(".png"))
        return file


def machine(load: tuple[float, float, float]) -> dict[str, Any]:
    """What the figures were taken on. A load above the number of cores says that others worked, too."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_before": [round(x, 2) for x in load],
        "system": platform.platform(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        **{name: metadata.version(name) for name in ("polars", "deltalake", "faust-streaming", "aiokafka")},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def draw(result: Result, file: Path) -> None:
    """Events a second by side, a dot a round, on a logarithmic axis: the sides differ by a hundred times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sides = [side for side in reversed(result.sides) if side.name in result.rounds]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(sides) + 1.4), layout="constrained")
    for at, side in enumerate(sides):
        median = result.median(side.name, "rate_events_s") or 0.0
        color = "tab:orange" if side.name == OURS else "0.8" if side.is_limit else "tab:blue"
        axes.barh(at, median, color=color, height=0.6)
        rates = [each.rate_events_s for each in result.rounds[side.name]]
        axes.plot(rates, [at] * len(rates), "k.", markersize=4)
        axes.text(median * 1.08, at, f"{median:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(sides)), [side.title for side in sides])
    axes.set_xscale("log")
    axes.set_xlabel("events/s (log scale), median and rounds; grey: limits that only read")
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def write_dated(found: Mapping[str, Any], folder: Path, name: str, began: datetime) -> Path:
    """A result as one JSON object in a file that bears its name and the instant; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{began:%Y-%m-%dT%H%M%S}.json"
    atomic_file.write_text(file, json.dumps(found, indent=2))
    return file


def command_line() -> list[str]:
    """How this run was started, without the machine's own paths."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def now() -> datetime:
    """The instant in UTC."""
    return datetime.now(UTC)
