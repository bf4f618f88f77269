"""A run of the lab: fold once, then walk all policies side by side, sharing what they train."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from infra.lab.policies.declared import Policy
from infra.lab.policies.recorded import Recorded, record
from infra.lab.policies.training import Trainings
from infra.lab.policies.walk import Walked, walk
from streams.load import Loaded

T = TypeVar("T")
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
    return recorded, _stoppable(_walk_all(loaded, recorded, policies, folder, at_once, progress))


def _stoppable(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own; a signal cancels it, and is handled as ever once all is cleaned up.

    A handler that raises would do so wherever the loop is: in the middle of a model's code, which may
    take what is raised for its own failure.
    """
    got: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        signals = ()  # no other thread may handle any

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            if not got:  # a second one must not break off the cleaning up
                task.cancel()
            got.append(number)

        for number in signals:
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    before = {number: signal.getsignal(number) for number in signals}
    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not got:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    signal.raise_signal(got[0])
    raise asyncio.CancelledError  # whoever handles that signal goes on


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
