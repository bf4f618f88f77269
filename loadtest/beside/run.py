"""A worker reads the same events alone and beside a training, in turns.

The training has a core of its own, the last; broker, worker and this process have the others, in both turns.
So what is compared is what remains shared: caches, memory, and the kernel. On two cores that leaves ingest
one; where processes may take any core, two of them on two cores only show that there are two. Judged by the
processor's time of an event: others may be at work here.

A third turn has a neighbour that only counts, in a core's own registers: what ingest loses beside that one it
loses to any neighbour, by the machine's clock or its host, and not to a training's use of caches and memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from infra import atomic_file
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.supervisor import Supervised
from loadtest.ingest import readings
from loadtest.ingest.fill import fill
from loadtest.ingest.measure import Measured, measure
from loadtest.ingest.result import command_line, machine, now
from loadtest.ingest.run import chosen
from loadtest.ingest.side import Task
from schemas.errors import InvalidConfiguration, Retryable

PROMISED = 0.95
NICENESS = 5
"""A job's, as `trainers.child` has it, which imports torch."""
_WARM_S = 180.0
_PATIENCE_S, _MOST_S = 120.0, 120.0


class TrainingStuck(Retryable):
    """The training beside does not come to its first step, or ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A worker's turn, and rows a second that were trained on meanwhile; None: nothing was."""

    ingest: Measured
    trained_rows_s: float | None


@dataclass
class Result:
    """All turns; `alone` and `beside` of one place were taken one after the other."""

    events: int
    ingest_cores: list[int]
    training_core: int
    began: str = field(default_factory=lambda: now().isoformat(timespec="seconds"))
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    alone: list[Turn] = field(default_factory=list)
    beside: list[Turn] = field(default_factory=list)
    counting: list[Turn] = field(default_factory=list)
    """Beside what only counts."""

    def ratios(self) -> dict[str, float]:
        """Beside by alone, medians over the rounds: by processor time of an event, and by the clock."""
        return {
            **_ratios(self.alone, self.beside),
            **{f"{name}_counting": ratio for name, ratio in _ratios(self.alone, self.counting).items()},
        }

    @property
    def holds(self) -> bool:
        """Whether ingest keeps what is promised."""
        return self.ratios()["cpu"] >= PROMISED

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **asdict(self),
            "command": command_line(),
            "machine": machine(self.load_before),
            "ratios": self.ratios(),
            "promised": PROMISED,
            "met": self.holds,
        }

    def write(self, folder: Path) -> Path:
        """The dated file."""
        file = folder / f"beside-{self.began.replace(':', '')}.json"
        atomic_file.write_text(file, json.dumps(self.as_json(), indent=2))
        return file


def _ratios(alone: list[Turn], other: list[Turn]) -> dict[str, float]:
    turns = [(a.ingest, b.ingest) for a, b in zip(alone, other, strict=True)]
    return {
        "cpu": statistics.median(a.cpu_us_per_event / b.cpu_us_per_event for a, b in turns),
        "rate": statistics.median(b.rate_events_s / a.rate_events_s for a, b in turns),
    }


def run(*, events: int, rounds: int, cache_dir: Path, said: Callable[[str], object]) -> Result:
    """All rounds; who begins a round changes with each.

    Raises:
        InvalidConfiguration: this process may use one core only.
        TrainingStuck: there is no training to be beside.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise InvalidConfiguration("one core is all there is here; a training beside ingest needs its own")
    result = Result(events, cores[:-1], cores[-1])
    with (
        _kept_to(result.ingest_cores),
        tempfile.TemporaryDirectory(prefix="tidemill-beside-", ignore_cleanup_errors=True) as made,
        EmbeddedBroker(Path(made) / "kafka", heap_mib=512, cache_dir=cache_dir) as broker,
    ):
        folder, connection = Path(made), Connection(bootstrap_servers=broker.bootstrap_servers)
        said(f"making {events:,} events")
        filled = asyncio.run(fill(connection, events))
        (side,) = chosen(["tidemill"])
        for number in range(rounds):
            turns = {"alone": result.alone, "beside a training": result.beside, "counting": result.counting}
            begin = number % len(turns)
            for place, (what, done) in enumerate([*turns.items()][begin:] + [*turns.items()][:begin]):
                home = folder / f"{number}-{place}"
                home.mkdir()
                task = Task(
                    bootstrap_servers=broker.bootstrap_servers,
                    topic=readings.TOPIC,
                    form="json",
                    filled=filled,
                    round=len(turns) * number + place,
                    home=home,
                    cache_dir=cache_dir,
                )
                said(f"round {number + 1} of {rounds}: {what}")
                trained_rows_s = None
                with contextlib.ExitStack() as neighbour:
                    marks = None
                    if done is result.beside:
                        marks = neighbour.enter_context(_training(result.training_core, folder))
                    elif done is result.counting:
                        neighbour.enter_context(_counting(result.training_core, folder))
                    before = marks and _trained(marks)
                    ingest = measure(side, task, most_s=_MOST_S, patience_s=_PATIENCE_S)
                    if marks is not None and before is not None:
                        after = _trained(marks)
                        trained_rows_s = (after[0] - before[0]) / max(1e-9, after[1] - before[1])
                done.append(Turn(ingest=ingest, trained_rows_s=trained_rows_s))
    return result


@contextlib.contextmanager
def _kept_to(cores: list[int]) -> Iterator[None]:
    """This process, and what it starts, on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _counting(core: int, folder: Path) -> Iterator[None]:
    """A loop without memory to speak of, on that core, at a job's priority."""
    command = [sys.executable, "-c", f"import os; os.nice({NICENESS})\nwhile True: pass"]
    process = Supervised("counting", command, folder / "counting.log", {}, most_restarts=0)
    process.start()
    try:
        psutil.Process(process.pid).cpu_affinity([core])
        yield
        process.keep_alive()
    finally:
        process.stop()


@contextlib.contextmanager
def _training(core: int, folder: Path) -> Iterator[Path]:
    """A training at work on that core; gives where it says how far it is."""
    marks = folder / "training.jsonl"
    marks.unlink(missing_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "loadtest.beside.training", str(marks)]
    process = Supervised("training", command, folder / "training.log", environment, most_restarts=0)
    process.start()
    try:
        psutil.Process(process.pid).cpu_affinity([core])
        deadline_s = time.monotonic() + _WARM_S
        while _trained(marks)[0] == 0:
            process.keep_alive()
            if time.monotonic() > deadline_s:
                raise TrainingStuck(f"no step of the training in {_WARM_S:g} s; {process.log_tail()}")
            time.sleep(0.2)
        yield marks
        process.keep_alive()  # it was there to the end
    finally:
        process.stop()


def _trained(marks: Path) -> tuple[int, float]:
    """Rows so far, and when that was said."""
    lines = marks.read_text().splitlines(keepends=True) if marks.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:
        return 0, 0.0
    last = json.loads(whole[-1])
    return last["rows"], last["time"]
