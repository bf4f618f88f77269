"""Edited rules over past events, beside the live ones: both run, nothing is published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.decision import Decision
from schemas.envelope import unwrap
from schemas.topics import DECISIONS
from streams.decode.avro import Writers
from streams.lab.compare import Decisions, Report, Unsaid, WindowDifference, differences
from streams.lab.cost import Cost, costs
from streams.lab.recorded import Batch, Recorded
from streams.lab.rehearse import Rehearsal
from streams.live.judge import FOLLOWED
from streams.pipeline import Pipeline
from streams.transport.frame import Frame

_COST_EVENTS = 20_000
# Live, answers are counted once a second; a trigger that looks at them must not meet them all at once.
_JUDGED_BATCHES = 400
_LEAST_ROWS = 50
_ROUNDS = 3


@dataclass(slots=True)
class _Side:
    rehearsal: Rehearsal
    decisions: dict[str, Decision] = field(default_factory=dict)
    answers: int = 0
    labelled: int = 0

    def take(self, batch: Batch) -> None:
        own = self.rehearsal.pipeline.sources()
        self.rehearsal.hear([frame for frame in batch.frames if frame.topic in FOLLOWED])
        turn = self.rehearsal.take(
            [frame for frame in batch.frames if frame.topic in own],
            idle={p: at for p, at in batch.idle.items() if p[0] in own},
        )
        for each in turn.announced if turn is not None else ():
            if each.topic == DECISIONS.name:
                decision = unwrap(each.envelope)
                assert isinstance(decision, Decision)
                self.decisions[str(decision.window)] = decision
        # Behind its windows, as live: what is decided next knows of it.
        said = self.rehearsal.assess()
        for pane in said.panes if said is not None else ():
            self.answers += pane.whole.answers
            self.labelled += pane.whole.labelled


async def attempt(
    live: Pipeline,
    edited: Pipeline,
    recorded: Recorded,
    home: Path,
    *,
    names: tuple[str, str],
    read: str,
    writers: Writers | None = None,
    batch_rows: int = 50_000,
    idle_after_ms: int = 30_000,
    progress: Callable[[int], object] = lambda _: None,
) -> Report:
    """Run both over the records; the report of their differences.

    What services answered is counted as live, where it is among the records and a trigger looks at it.

    Args:
        home: a folder for what both make; whoever gives it deletes it.
        names, read: of live and edited rules and of the records, as the report says them.
        progress: told how many records have been read.

    Raises:
        FailsOnAll: an expression fails on every row that comes.
    """
    began = time.perf_counter()
    sides = [
        _Side(
            Rehearsal(
                pipeline,
                home / which,
                {p for p in recorded.partitions if p[0] in pipeline.sources()},
                writers=writers,
                announce=True,
            )
        )
        for pipeline, which in ((live, "live"), (edited, "edited"))
    ]
    if recorded.records is not None and any(side.rehearsal.judges for side in sides):
        batch_rows = min(batch_rows, max(_LEAST_ROWS, recorded.records // _JUDGED_BATCHES))
    sample: list[Frame] = []
    sampled = events = passed = 0
    async for batch in recorded.batches(rows=batch_rows, idle_after_ms=idle_after_ms):
        for side in sides:
            await asyncio.to_thread(side.take, batch)
        raw = [frame for frame in batch.frames if frame.topic not in FOLLOWED]
        events += sum(map(len, raw))
        passed += batch.rows
        if sampled < _COST_EVENTS:
            sample += raw
            sampled += sum(map(len, raw))
        progress(passed)
    found = await asyncio.to_thread(differences, ((live, home / "live"), (edited, home / "edited")))
    cost = await asyncio.to_thread(_costs, {"live": live, "edited": edited}, sample, writers)
    return Report(
        pipeline=edited.name,
        live=names[0],
        edited=names[1],
        read=read,
        events=events,
        sources=found,
        decisions=_decided(*sides),
        costs=cost,
        seconds=time.perf_counter() - began,
    )


def _costs(
    pipelines: Mapping[str, Pipeline], sample: Sequence[Frame], writers: Writers | None
) -> dict[str, list[Cost]]:
    """In turns, and of each step the best: the machine has other work, too."""
    best: dict[str, list[Cost]] = {}
    for _ in range(_ROUNDS):
        for side, pipeline in pipelines.items():
            found = costs(pipeline, _of(pipeline, sample), writers=writers)
            known = best.setdefault(side, found)
            pairs = zip(known, found, strict=True)
            best[side] = [min(pair, key=lambda cost: cost.us_per_event) for pair in pairs]
    return best


def _of(pipeline: Pipeline, frames: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame.topic in pipeline.sources()]


def _decided(one: _Side, two: _Side) -> Decisions:
    live, edited = one.decisions, two.decisions
    differing = []
    for name in sorted(live.keys() | edited.keys()):
        first, other = live.get(name), edited.get(name)
        if first is None or other is None or first.verdict != other.verdict:
            said = {side: each for side, each in (("live", first), ("edited", other)) if each is not None}
            differing.append(
                WindowDifference(
                    window=next(iter(said.values())).window,
                    name=name,
                    live="" if first is None else first.verdict,
                    edited="" if other is None else other.verdict,
                    reason="; ".join(f"{side}: {each.reason}" for side, each in said.items()),
                )
            )
    return Decisions(
        windows=(len(live), len(edited)),
        yes=tuple(sum(d.verdict == "yes" for d in side.values()) for side in (live, edited)),  # type: ignore[arg-type]
        differing=differing,
        unsaid=_unsaid(live, edited),
        answers=(one.answers, two.answers),
        labelled=(one.labelled, two.labelled),
    )


def _unsaid(*sides: dict[str, Decision]) -> list[Unsaid]:
    """Conditions that could not say, with the reason of the newest window where each could not."""
    found: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    for i, side in enumerate(sides):
        for decision in sorted(side.values(), key=lambda each: each.window):
            for part in decision.evaluations:
                if not part.evaluated:
                    found.setdefault(part.condition, [0, 0])[i] += 1
                    reasons[part.condition] = part.reason
    return [
        Unsaid(condition=name, live=live, edited=edited, reason=reasons[name])
        for name, (live, edited) in found.items()
    ]
