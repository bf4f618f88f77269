"""One policy over the recorded stream: what it would have decided, trained, published, and answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from infra.lab.policies.declared import Policy
from infra.lab.policies.judging import Judging
from infra.lab.policies.recorded import Closed, Recorded
from infra.lab.policies.training import Trained, Trainings
from schemas.client.load import LoadedModel, load
from schemas.decision import Decision
from schemas.job import JobRequested
from schemas.model import Manifest
from streams.announce.fold import after_decision, decided
from streams.summary.profiling import beginning
from trainers.conclusion import conclude


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training that the policy asked for, and what came of it."""

    asked_ms: int
    live_ms: int | None
    job_id: str
    run_key: str
    cpu_s: float
    gpu_s: float
    reason: str


@dataclass(kw_only=True, slots=True)
class Walked:
    """What a policy did. `scores` (N,) are of the recorded rows; NaN where no model was live yet."""

    policy: Policy
    scores: np.ndarray
    verdicts: dict[str, int] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def published(self) -> int:
        """How many of its trainings went live."""
        return sum(each.live_ms is not None for each in self.trainings)

    @property
    def live_from_ms(self) -> int | None:
        """When it had a first model."""
        return min((t.live_ms for t in self.trainings if t.live_ms is not None), default=None)


async def walk(
    policy: Policy,
    recorded: Recorded,
    trainings: Trainings,
    *,
    sha256: str,
    step: Callable[[], object] = lambda: None,
) -> Walked:
    """Window after window: decide, train, judge, publish; and answer each row by the model live at its time.

    A training begins when its window closes, or when the one before it is done: one trainer a policy. Its
    model is live from its end on, by the seconds that the training took. A row sees no model that came later.

    Args:
        sha256: of the pipeline's file, as it stands in a job.
        step: called after each window.
    """
    pipeline = policy.pipeline(recorded.pipeline)
    spec = pipeline.spec()
    history = beginning(pipeline)
    walked = Walked(policy=policy, scores=np.full(recorded.rows.height, np.nan))
    answering = _Answering(recorded.rows, walked.scores)
    judging = Judging(recorded, pipeline.train_when, walked.scores, answering.versions)
    champion: Manifest | None = None
    free_ms = 0
    for closed in recorded.windows:
        event = closed.event
        answering.up_to(_closed_ms(closed))
        decision, job = decided(
            pipeline,
            event,
            history,
            closed.profile,
            spec=spec,
            newest_from_ms=closed.newest_from_ms,
            configuration_sha256=sha256,
            requested_ms=_closed_ms(closed),
            excluded=closed.excluded,
            live=judging.at(_closed_ms(closed)),
        )
        history = after_decision(history, event, decision, closed.profile)
        walked.decisions.append(decision)
        walked.verdicts[decision.verdict] = walked.verdicts.get(decision.verdict, 0) + 1
        if job is not None:
            trained = await trainings.of(job, champion)
            if trained.outcome is None:
                walked.skipped.append(f"{job.job_id}: {trained.skipped}")
            else:
                began_ms = max(_closed_ms(closed), free_ms)
                free_ms = began_ms + int(trained.outcome.train_s * 1000)
                judging.measured(trained.outcome.train_s, ended_ms=free_ms)
                manifest, reason = _judged(job, trained, champion, free_ms)
                if manifest is not None:
                    champion = manifest
                    answering.adopt(
                        load(manifest, trainings.store.get(manifest.artifact.sha256)), from_ms=free_ms
                    )
                walked.trainings.append(
                    Training(
                        asked_ms=_closed_ms(closed),
                        live_ms=free_ms if manifest else None,
                        job_id=job.job_id,
                        run_key=trained.run_key,
                        cpu_s=trained.cpu_s,
                        gpu_s=trained.gpu_s,
                        reason=reason,
                    )
                )
        step()
    answering.finish()
    return walked


def _closed_ms(closed: Closed) -> int:
    """When the window's closing was known, in event time: the watermark that closed it."""
    return max(closed.event.watermark_ms, closed.event.window.end_ms)


def _judged(
    job: JobRequested, trained: Trained, champion: Manifest | None, now_ms: int
) -> tuple[Manifest | None, str]:
    """The trainer's own conclusion: the manifest of what is published, or why it is refused."""
    assert trained.outcome is not None
    conclusion = conclude(
        job, 1, trained.outcome, judged_against=champion, champion=champion, store_url="", now_ms=now_ms
    )
    if conclusion.published is not None:
        return conclusion.published.manifest, "published"
    assert conclusion.refused is not None
    return None, conclusion.refused.reason


class _Answering:
    """Answers rows in the order of their event times, each by the newest model that was live then."""

    def __init__(self, rows: pl.DataFrame, scores: np.ndarray) -> None:
        self._rows = rows
        self._times_ms = rows.get_column("_time").to_numpy()
        self._scores = scores
        self.versions = np.zeros(rows.height, dtype=np.int64)
        self._model: LoadedModel | None = None
        self._from = 0

    def adopt(self, model: LoadedModel, *, from_ms: int) -> None:
        """The model before it answers all rows up to then; this one those from then on."""
        until = int(np.searchsorted(self._times_ms, from_ms, side="left"))
        self._answer(until)
        self._model, self._from = model, until

    def up_to(self, at_ms: int) -> None:
        """The model that is live answers all rows before a time."""
        until = int(np.searchsorted(self._times_ms, at_ms, side="left"))
        self._answer(until)
        self._from = max(self._from, until)

    def finish(self) -> None:
        """The last model answers the rest."""
        self._answer(len(self._times_ms))

    def _answer(self, until: int) -> None:
        if self._model is None or until <= self._from:
            return
        columns = self._rows[self._from : until].to_dict(as_series=True)
        self._scores[self._from : until] = np.asarray(self._model.predict(columns), dtype=np.float64)
        self.versions[self._from : until] = self._model.version
