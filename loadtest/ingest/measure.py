"""One side, measured from outside: rate, CPU and memory of its whole process tree between two marks."""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from dataclasses import dataclass

import psutil

from infra.supervisor import ProcessFailed, Supervised
from loadtest.ingest.side import Absent, Mark, Side, Task

_LOOK_S = 0.05
# How often a side's children are looked for: among all processes of the machine, which takes milliseconds.
_COUNT_S = 1.0
_LEAST_SPAN_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one side did in one round.

    Rates and CPU are of the events between its first and its last mark, so no start-up is in them;
    `start_s` is the time from the process's start to that first mark. Memory is the resident set of the
    process tree at its highest.
    """

    events: int
    rate_events_s: float
    cpu_us_per_event: float
    peak_memory_mib: float
    start_s: float
    whole: bool
    """Whether it read everything; a slow side is stopped when its time is over."""
    kept: int | None


@dataclass(slots=True)
class _Sample:
    time_s: float
    cpu_s: float


def measure(side: Side, task: Task, *, most_s: float, patience_s: float) -> Measured:
    """Start the side's process, watch it until it is through or its time is over, and end it.

    Args:
        most_s: so long after its first mark it is stopped.
        patience_s: so long may the first mark take.

    Raises:
        Absent: it cannot be started, dies, or says nothing; the message ends with its log.
    """
    start = side.prepare(task)
    log_file = task.home / "side.log"
    process = Supervised(side.name, start.command, log_file, start.environment, most_restarts=0)
    began_s = time.time()
    process.start()
    samples: list[_Sample] = []
    peak_bytes = 0
    marks: list[Mark] = []
    try:
        tree = _Tree(psutil.Process(process.pid))
        looked_s = 0.0
        while True:
            cpu_s, resident_bytes = tree.usage()
            samples.append(_Sample(time.time(), max(cpu_s, samples[-1].cpu_s if samples else 0.0)))
            peak_bytes = max(peak_bytes, resident_bytes)
            if time.time() - looked_s > 4 * _LOOK_S:
                looked_s = time.time()
                marks = side.marks(task)
            if marks and marks[-1].events >= task.filled.events:
                break
            if marks and time.time() - marks[0].time_s > most_s:
                break
            if not marks and time.time() - began_s > patience_s:
                raise Absent(f"no event within {patience_s:g} s; its log ends:\n{process.log_tail()}")
            _still_there(process, side, task)
            time.sleep(_LOOK_S)
    finally:
        process.stop()
    return _measured(task, marks, samples, peak_bytes, began_s)


def _still_there(process: Supervised, side: Side, task: Task) -> None:
    """A program may end once it is through; any other end is a failure."""
    try:
        restarted = process.keep_alive()
    except ProcessFailed as failed:
        marks = side.marks(task)
        if not marks or marks[-1].events < task.filled.events:
            raise Absent(f"it ended early: {failed}") from failed
    else:
        assert not restarted


class _Tree:
    """A process and its children, such as come and go."""

    def __init__(self, root: psutil.Process) -> None:
        self._root, self._children = root, list[psutil.Process]()
        self._counted_s = 0.0

    def usage(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of all of them."""
        if time.monotonic() - self._counted_s > _COUNT_S:
            self._counted_s = time.monotonic()
            with contextlib.suppress(psutil.NoSuchProcess):
                self._children = self._root.children(recursive=True)
        cpu_s, resident_bytes = 0.0, 0
        for each in (self._root, *self._children):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                cpu_s += times.user + times.system
                resident_bytes += each.memory_info().rss
        return cpu_s, resident_bytes


def _measured(
    task: Task, marks: list[Mark], samples: list[_Sample], peak_bytes: int, began_s: float
) -> Measured:
    first, last = marks[0], marks[-1]
    events = last.events - first.events
    span_s = last.time_s - first.time_s
    if events <= 0 or span_s < _LEAST_SPAN_S:
        raise Absent(
            f"it was through {last.events:,} events too soon to be measured; give it more with --events"
        )
    cpu_s = _cpu_at(samples, last.time_s) - _cpu_at(samples, first.time_s)
    return Measured(
        events=events,
        rate_events_s=events / span_s,
        cpu_us_per_event=cpu_s / events * 1e6,
        peak_memory_mib=peak_bytes / 2**20,
        start_s=first.time_s - began_s,
        whole=last.events >= task.filled.events,
        kept=last.kept,
    )


def _cpu_at(samples: list[_Sample], time_s: float) -> float:
    """CPU seconds used up to an instant, between the samples around it."""
    at = bisect_left(samples, time_s, key=lambda sample: sample.time_s)
    if at == 0:
        return samples[0].cpu_s
    if at == len(samples):
        return samples[-1].cpu_s
    before, after = samples[at - 1], samples[at]
    share = (time_s - before.time_s) / (after.time_s - before.time_s)
    return before.cpu_s + share * (after.cpu_s - before.cpu_s)
