"""A run of the lab: fold once, then walk all policies side by side, sharing what they train."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from infra import stopping
from infra.lab.policies.declared import Policy
from infra.lab.policies.recorded import Recorded, record
from infra.lab.policies.training import Trainings
from infra.lab.policies.walk import Walked, walk
from streams.load import Loaded

Progress = Callable[[str, int, int], object]
"""Told what is under way, how much of it is done, and of how much."""


def run(
    loaded: Loaded,
    uri: str | Path,
    policies: Sequence[Policy],
    folder: Path,
    *,
    start_ms: int | None = None,
    end_ms: int | None = None,
    processes: int | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Recorded, list[Walked]]:
    """Walk all policies over a pipeline's recorded dataset.

    Args:
        folder: where the fold, the trainings and their weights are kept; the same call goes on from there.
        start_ms, end_ms: only windows within.
        processes: how many trainings at once; None: one a core.

    Raises:
        DatasetUnreadable, NothingRecorded: there is nothing to walk over.
        TrainingFailed: a training ended without a model.
    """
    recorded = record(
        loaded.pipeline,
        uri,
        [policy.train_when for policy in policies],
        folder,
        start_ms=start_ms,
        end_ms=end_ms,
        progress=lambda version, newest: progress("reading the stream", version + 1, newest + 1),
    )
    at_once = processes or len(os.sched_getaffinity(0))
    return recorded, stopping.run(_walk_all(loaded, recorded, policies, folder, at_once, progress))


async def _walk_all(
    loaded: Loaded,
    recorded: Recorded,
    policies: Sequence[Policy],
    folder: Path,
    processes: int,
    progress: Progress,
) -> list[Walked]:
    of, gone = len(policies) * len(recorded.windows), 0

    async with Trainings(folder, processes=processes) as trainings:

        def step() -> None:
            nonlocal gone
            gone += 1
            said = f"walking {len(policies)} policies; {trainings.trained} trained, {trainings.kept} known"
            progress(said, gone, of)

        walks = [
            asyncio.create_task(walk(policy, recorded, trainings, sha256=loaded.sha256, step=step))
            for policy in policies
        ]
        try:
            return await asyncio.gather(*walks)  # the first error as it is, in no group
        finally:
            for each in walks:
                each.cancel()
            await asyncio.gather(*walks, return_exceptions=True)
