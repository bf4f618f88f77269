"""Trainings, each done once: in processes forked like a trainer's jobs, kept by run key, shared by policies.

What is kept survives Ctrl-C: the next run of the lab finds it and trains the rest.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from types import TracebackType

import msgspec
import safetensors.torch
import torch
from msgspec import Struct

from infra import atomic_file
from schemas.errors import Rejected, TidemillError
from schemas.job import JobRequested
from schemas.model import Manifest
from trainers.architecture import network
from trainers.artifact import ArtifactStore
from trainers.assignment import Assignment, Done, Failed, Outcome, Skipped
from trainers.code import source_sha256
from trainers.process import Standby, ending
from trainers.rows import judged_rows
from trainers.work import judge_on, live_model


class TrainingFailed(Rejected):
    """A training of the lab ended without a model."""


class Trained(Struct, frozen=True, kw_only=True):
    """What a training came to. `skipped`: there was nothing to train on, and why; it has no outcome then.

    `cpu_s` is of its whole process: reading, training, judging; `gpu_s` the time it trained on a GPU.
    """

    run_key: str
    outcome: Outcome | None
    skipped: str = ""
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    champion_sha256: str | None = None


class Trainings:
    """Trains what is asked for, at most `processes` at once, unless it is kept in `folder`."""

    def __init__(self, folder: Path, *, processes: int) -> None:
        self._folder = folder / "trainings"
        self._logs = folder / "logs"
        self._standby = Standby(folder / "standby.log")
        self._slots = asyncio.Semaphore(processes)
        self._starting = asyncio.Lock()
        self._threads = max(1, (os.cpu_count() or 1) // processes)
        self._under_way: dict[str, asyncio.Task[Trained]] = {}
        self.store = ArtifactStore(folder / "artifacts")
        self.trained = 0
        self.kept = 0

    async def __aenter__(self) -> Trainings:
        for each in (self._folder, self._logs, self.store.folder):
            await asyncio.to_thread(each.mkdir, parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._standby.stop()
        await asyncio.to_thread(shutil.rmtree, self._logs, ignore_errors=True)

    async def of(self, job: JobRequested, champion: Manifest | None) -> Trained:
        """The job's training, done now or before by whatever policy, judged beside this live model.

        Raises:
            TrainingFailed: it raised, or its process died.
        """
        champion_sha256 = champion.artifact.sha256 if champion else None
        key = job.experiment.run_key(
            code_sha256=source_sha256(job.experiment.code), parent_sha256=champion_sha256
        )
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(self._known_or_trained(key, job, champion))
        trained = await asyncio.shield(self._under_way[key])
        if trained.outcome is None or trained.champion_sha256 == champion_sha256:
            return trained
        return await asyncio.to_thread(self._judged_anew, trained, job, champion)

    async def _known_or_trained(self, key: str, job: JobRequested, champion: Manifest | None) -> Trained:
        file = self._folder / f"{key}.json"
        kept = await asyncio.to_thread(self._read, file)
        if kept is None:
            async with self._slots:
                kept = await self._train(key, job, champion)
            await asyncio.to_thread(atomic_file.write_bytes, file, msgspec.json.encode(kept))
            self.trained += 1
        else:
            self.kept += 1
        return kept

    def _read(self, file: Path) -> Trained | None:
        try:
            kept = msgspec.json.decode(file.read_bytes(), type=Trained)
            if kept.outcome is not None:
                self.store.get(kept.outcome.sha256)
        except (OSError, msgspec.MsgspecError, TidemillError):
            return None
        return kept

    async def _train(self, key: str, job: JobRequested, champion: Manifest | None) -> Trained:
        async with self._starting:  # of two who began it, one would end the other's
            warm = await self._standby.warm()
        gpu = warm.cuda is not None and torch.cuda.is_available()
        assignment = Assignment(
            job=job,
            attempt=1,
            artifacts=str(self.store.folder),
            champion=champion,
            device="cuda:0" if gpu else "cpu",
            device_name="cuda:0" if gpu else "cpu",
            threads=self._threads,
            run_key=key,
        )
        process = await self._standby.begin(self._logs / f"{key}.log")
        ended = None
        try:
            async with asyncio.timeout(job.experiment.resources.time_limit_s):
                async for report in process.reports(assignment):
                    if isinstance(report, Done | Skipped | Failed):
                        ended = report
                code = await process.ended()
        except TimeoutError as error:
            raise TrainingFailed(
                f"{job.job_id} took longer than its {job.experiment.resources.time_limit_s:g} s"
            ) from error
        finally:
            process.kill()
        champion_sha256 = champion.artifact.sha256 if champion else None
        cpu_s = process.cpu_s or 0.0
        match ended:
            case Done(outcome=outcome):
                return Trained(
                    run_key=key,
                    outcome=outcome,
                    cpu_s=cpu_s,
                    gpu_s=outcome.train_s if gpu else 0.0,
                    champion_sha256=champion_sha256,
                )
            case Skipped(reason=reason):
                return Trained(run_key=key, outcome=None, skipped=reason, cpu_s=cpu_s)
            case Failed(reason=reason):
                said = reason
            case _:
                said = "the warm process is gone" if code is None else ending(code)
        raise TrainingFailed(f"{job.job_id}: {said}; its output ends:\n{process.log_tail()[-2000:]}")

    def _judged_anew(self, trained: Trained, job: JobRequested, champion: Manifest | None) -> Trained:
        """The same weights, beside another live model: trained once, judged for each who asks."""
        outcome = trained.outcome
        assert outcome is not None
        champion_sha256 = champion.artifact.sha256 if champion else None
        file = self._folder / f"{trained.run_key}-{(champion_sha256 or 'none')[:16]}.json"
        if (kept := self._read(file)) is not None:
            return kept
        challenger = network(outcome.architecture, outcome.config)
        challenger.load_state_dict(safetensors.torch.load(self.store.get(outcome.sha256)))
        judgement = judge_on(
            judged_rows(job.experiment),
            job.experiment,
            champion=live_model(champion, self.store),
            challenger=challenger,
        )
        anew = msgspec.structs.replace(
            trained,
            champion_sha256=champion_sha256,
            outcome=msgspec.structs.replace(
                outcome,
                champion=judgement.champion,
                challenger=judgement.challenger,
                comparison=judgement.comparison,
            ),
        )
        atomic_file.write_bytes(file, msgspec.json.encode(anew))
        return anew
