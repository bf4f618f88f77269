"""What a run of faults comes to: one object for machines, a few lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.faults.checker import Verdict
from loadtest.faults.schedule import KILLS, KINDS, Fault


@dataclass(kw_only=True)
class Report:
    """One run.

    `died` are workers that ended by themselves, with the end of their log; `left_out` the kinds of fault that
    this machine cannot have, with the reason; `stalled` is what was waited for in vain.
    """

    events: int
    seconds: float
    seed: int
    brokers: int
    took_s: float
    faults: Sequence[Fault]
    verdict: Verdict
    unacknowledged: int = 0
    died: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    stalled: str = ""

    def holds(self) -> bool:
        """Whether nothing was lost or doubled, everything was announced, and no worker died by itself."""
        return self.verdict.holds() and not self.stalled and not self.died

    def by_kind(self) -> dict[str, int]:
        """How many faults of each kind there were."""
        counted = Counter(fault.kind for fault in self.faults)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        kinds = self.by_kind()
        return {
            "events": self.events,
            "seconds": self.seconds,
            "seed": self.seed,
            "brokers": self.brokers,
            "took_s": round(self.took_s, 1),
            "kills": {kind: kinds[kind] for kind in KILLS if kind in kinds},
            "faults": kinds,
            "unacknowledged": self.unacknowledged,
            **self.verdict.as_json(),
            "died": self.died,
            "left_out": self.left_out,
            "stalled": self.stalled,
            "holds": self.holds(),
        }

    def show(self, console: Console) -> None:
        """For a person."""
        table = Table("fault", "times", "what it is")
        for kind, times in self.by_kind().items():
            table.add_row(kind, str(times), KINDS[kind])
        console.print(table)
        for kind, why in self.left_out.items():
            console.print(f"left out: {kind} ({why})")
        verdict = self.verdict
        console.print(
            f"{self.events:,} events, {verdict.rows:,} rows, {verdict.letters:,} dead letters, "
            f"{verdict.windows:,} windows, in {self.took_s:.0f} s"
        )
        for name in Verdict.WRONG:
            count = getattr(verdict, name)
            console.print(f"[{'red' if count else 'green'}]{name.replace('_', ' ')}: {count:,}[/]")
        console.print(f"came again under the same id, as promised: {verdict.repeated}")
        for line in [
            *self.died,
            *([f"not in time: {self.stalled}"] if self.stalled else []),
            *verdict.examples,
        ]:
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        if not self.holds():
            console.print(
                f"the same faults again: tidemill bench faults --seed {self.seed} "
                f"--seconds {self.seconds:g} --brokers {self.brokers} --events {self.events}"
            )
