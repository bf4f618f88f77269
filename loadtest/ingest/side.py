"""A side of the benchmark: what it is, what it does not do, and how its process is started.

Every side runs as a process of its own and says how far it is in lines of `peers/marks.py`; only Tidemill
is read from the outside, by its commits: an event counts once it is durable and visible.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.ingest.fill import Filled, Format
from loadtest.ingest.readings import AVRO
from schemas.errors import Retryable

PEERS = Path(__file__).with_name("peers")


class Absent(Retryable):
    """A side cannot take part; the message says why and what would help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a side is to read: all events of one topic, from its beginning."""

    bootstrap_servers: str
    topic: str
    form: Format
    filled: Filled
    round: int
    home: Path
    """A folder of its own, empty."""
    cache_dir: Path
    """Where environments and builds are kept between runs."""

    @property
    def marks(self) -> Path:
        """Where the side says how far it is."""
        return self.home / "marks.jsonl"

    @property
    def partitions(self) -> int:
        """How many partitions the topic has."""
        return len(self.filled.records)

    def environment(self, side: str) -> dict[str, str]:
        """What a side's program is told."""
        return {
            "BENCH_BOOTSTRAP": self.bootstrap_servers,
            "BENCH_TOPIC": self.topic,
            "BENCH_FORMAT": self.form,
            "BENCH_AVRO": json.dumps(AVRO),
            "BENCH_PARTITIONS": str(self.partitions),
            "BENCH_EVENTS": str(self.filled.events),
            # Arrow records hold many events; whoever only counts records is told how many.
            "BENCH_ROWS_PER_RECORD": str(max(1, round(self.filled.events / sum(self.filled.records)))),
            "BENCH_GROUP": f"bench-{side}-{self.round}",
            "BENCH_MARKS": str(self.marks),
            "BENCH_HOME": str(self.home),
        }


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a side was at an instant: `kept` are the rows that its cleaning left, if it counts them."""

    events: int
    time_s: float
    kept: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A side's process, ready to be started."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def said_marks(task: Task) -> list[Mark]:
    """The lines that a side's program wrote so far."""
    if not task.marks.exists():
        return []
    lines = task.marks.read_text().splitlines(keepends=True)
    said = [json.loads(line) for line in lines if line.endswith("\n")]
    return [Mark(line["events"], line["time"], line.get("kept")) for line in said]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One system that does the work, or a limit that none can pass.

    Args:
        name: as `--sides` has it.
        title: as the table has it.
        forms: the record formats that it reads.
        durable, event_time, dedupe: what it does of each, in a few words; "no" is an answer.
        counts: what its windows count, and whether the rows themselves are kept.
        prepare: makes its environment or build once, and gives how it starts; raises Absent.
        marks: how far it is.
        check: what is wrong with its counts once it has read everything, as it left them behind.
        is_limit: it only reads: no cleaning, no windows.
    """

    name: str
    title: str
    prepare: Callable[[Task], Start]
    forms: tuple[Format, ...] = ("json",)
    durable: str = "no"
    event_time: str = "no"
    dedupe: str = "no"
    counts: str = "by source and tag; rows are not kept"
    marks: Callable[[Task], list[Mark]] = said_marks
    check: Callable[[Task], list[str]] | None = None
    is_limit: bool = False

    def keeps_repeats(self) -> bool:
        """Whether a row that came twice counts twice."""
        return self.dedupe == "no"


def own_python(program: str, *arguments: str) -> Callable[[Task], Start]:
    """A program in Tidemill's own environment: what it needs is among the product's dependencies."""

    def prepare(task: Task) -> Start:
        side = Path(program).stem
        return Start(
            command=[sys.executable, str(PEERS / program), *arguments], environment=task.environment(side)
        )

    return prepare
