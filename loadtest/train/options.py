"""What an option of `trainers.loop` is worth: the same training with it and without, in turns.

A compiled loss costs seconds at its first call, in each job anew. So that is one figure, and what a row costs
from then on is another; together they say from how many rows on the option pays.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loadtest.train.sides import Task, fitted
from trainers.loop import REPORT_STEPS

PLAIN = "plain"
_LEAST_REPORTS = 4
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "bfloat16": {"precision": "bfloat16"},
    "compiled": {"compile": True},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One training. `first_cpu_s`: to its first report, `REPORT_STEPS` steps on; the rest is behind that."""

    first_cpu_s: float
    cpu_us_per_row: float
    rate_rows_s: float
    loss: float


@dataclass
class Compared:
    """All turns of all variants."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)

    def ratio(self, variant: str) -> float:
        """Processor time of a row, plain by the variant, turn by turn; above 1 the variant is ahead."""
        pairs = zip(self.turns[PLAIN], self.turns[variant], strict=True)
        return statistics.median(plain.cpu_us_per_row / other.cpu_us_per_row for plain, other in pairs)

    def rows_to_pay(self, variant: str) -> float | None:
        """Rows of one training from which on the variant has cost less; None: it never does."""
        plain, other = self.turns[PLAIN], self.turns[variant]

        def median(turns: list[Turn], figure: str) -> float:
            return statistics.median(getattr(turn, figure) for turn in turns)

        saved_us = median(plain, "cpu_us_per_row") - median(other, "cpu_us_per_row")
        more_s = median(other, "first_cpu_s") - median(plain, "first_cpu_s")
        return None if saved_us <= 0 else max(0.0, more_s) * 1e6 / saved_us

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            name: {
                "by_cpu": self.ratio(name),
                "rows_to_pay": self.rows_to_pay(name),
                "turns": [asdict(turn) for turn in turns],
            }
            for name, turns in self.turns.items()
        }


def compare_options(
    task: Task,
    names: list[str],
    *,
    rounds: int,
    epochs: int,
    said: Callable[[str], object] = lambda _: None,
) -> Compared:
    """Let each variant train, in turns with the plain one.

    Args:
        epochs: of a turn; more of a small table, whose steps would not tell the first from the rest.
    """
    steps = math.ceil(task.rows / task.batch_rows)
    epochs = max(epochs, math.ceil(_LEAST_REPORTS * REPORT_STEPS / steps))
    found = Compared({name: [] for name in (PLAIN, *names)})
    for number in range(rounds):
        for name in found.turns:
            said(f"round {number + 1} of {rounds}: {name}")
            found.turns[name].append(_turn(task, VARIANTS[name], epochs))
    return found


def _turn(task: Task, params: Mapping[str, Any], epochs: int) -> Turn:
    context = replace(task.context, params={**task.context.params, **params})
    reports: list[tuple[int, float, float, float]] = []

    def report(step: int, loss: float) -> None:
        reports.append((step, time.process_time(), time.perf_counter(), loss))

    began_cpu_s = time.process_time()
    fitted(replace(task, context=context), epochs, encoded=True, report=report)
    (first, first_cpu_s, first_s, _), (last, last_cpu_s, last_s, loss) = reports[0], reports[-1]
    rows = (last - first) * task.batch_rows
    return Turn(
        first_cpu_s=first_cpu_s - began_cpu_s,
        cpu_us_per_row=(last_cpu_s - first_cpu_s) / rows * 1e6,
        rate_rows_s=rows / (last_s - first_s),
        loss=loss,
    )
