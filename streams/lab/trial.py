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
from streams.lab.compare import Decisions, Report, WindowDifference, differences
from streams.lab.cost import Cost, costs
from streams.lab.recorded import Batch, Recorded
from streams.lab.rehearse import Rehearsal
from streams.pipeline import Pipeline
from streams.transport.frame import Frame

_COST_EVENTS = 20_000
_ROUNDS = 3


@dataclass(slots=True)
class _Side:
    rehearsal: Rehearsal
    decisions: dict[str, Decision] = field(default_factory=dict)

    def take(self, batch: Batch) -> None:
        own = self.rehearsal.pipeline.sources()
        turn = self.rehearsal.take(
            [frame for frame in batch.frames if frame.topic in own],
            idle={p: at for p, at in batch.idle.items() if p[0] in own},
        )
        for each in turn.announced if turn is not None else ():
            if each.topic == DECISIONS.name:
                decision = unwrap(each.envelope)
                assert isinstance(decision, Decision)
                self.decisions[str(decision.window)] = decision


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
    sample: list[Frame] = []
    sampled = events = 0
    async for batch in recorded.batches(rows=batch_rows, idle_after_ms=idle_after_ms):
        for side in sides:
            await asyncio.to_thread(side.take, batch)
        events += batch.rows
        if sampled < _COST_EVENTS:
            sample += batch.frames
            sampled += batch.rows
        progress(events)
    found = await asyncio.to_thread(differences, ((live, home / "live"), (edited, home / "edited")))
    cost = await asyncio.to_thread(_costs, {"live": live, "edited": edited}, sample, writers)
    return Report(
        pipeline=edited.name,
        live=names[0],
        edited=names[1],
        read=read,
        events=events,
        sources=found,
        decisions=_decided(*(side.decisions for side in sides)),
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


def _decided(live: dict[str, Decision], edited: dict[str, Decision]) -> Decisions:
    differing = []
    for name in sorted(live.keys() | edited.keys()):
        one, other = live.get(name), edited.get(name)
        if one is None or other is None or one.verdict != other.verdict:
            said = other or one
            assert said is not None
            differing.append(
                WindowDifference(
                    window=said.window,
                    name=name,
                    live="" if one is None else one.verdict,
                    edited="" if other is None else other.verdict,
                    reason=said.reason,
                )
            )
    return Decisions(
        windows=(len(live), len(edited)),
        yes=tuple(sum(d.verdict == "yes" for d in side.values()) for side in (live, edited)),  # type: ignore[arg-type]
        differing=differing,
    )
