"""Model code tested by plain pytest: a job in, the trained model and its scores out; no broker, no trainer.

    from streams.testing import run
    from trainers.testing import train

    def test_the_model_learns():
        (job, *_) = run(pipeline, events).jobs
        assert train(job).scores.auc > 0.7

It is the code that a trainer's process runs: the same rows, the same seed, the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import torch

from schemas.errors import Rejected
from schemas.job import JobRequested
from schemas.model import Finding, Scores
from trainers.rows import read
from trainers.work import find_code, judge_on, losses_of, train_on

__all__ = ["Trained", "train"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to.

    Attributes:
        model: what the model code returned.
        scores: on the newest rows, which the training has not seen.
        rows: what the model code saw.
        findings: signs that a feature, or a label, tells what it must not; the gate would refuse it.
        curve: what the model code said by `ctx.progress`: step, of how many, metrics.
    """

    model: Any
    scores: Scores
    rows: pl.DataFrame
    findings: list[Finding]
    curve: list[tuple[int, int, dict[str, float]]]


def train(job: JobRequested, *, champion: Any = None) -> Trained:
    """Train what a job asks for, in this process and on the CPU, and score it on the rows it has not seen.

    Args:
        champion: a live model, whose weights the training starts from where the experiment says so.

    Raises:
        NothingToTrainOn: too few labelled rows, or all of one class.
        BadModelCode: the code cannot be found, or gives back what is no model.
        NothingToJudgeOn: no row of the newest windows has its label.
    """
    experiment = job.experiment
    code, _ = find_code(experiment)
    rows = read(experiment, losses_of(champion, experiment))
    curve: list[tuple[int, int, dict[str, float]]] = []
    model = train_on(
        rows.training,
        experiment,
        train=code,
        champion=champion,
        device=torch.device("cpu"),
        report=lambda step, of, metrics: curve.append((step, of, metrics)),
    )
    judgement = judge_on(rows.judged, experiment, champion=champion, challenger=model)
    if judgement.challenger is None:
        raise NothingToJudgeOn(f"job {job.job_id}: no row of the newest windows has its label by now")
    return Trained(
        model=model, scores=judgement.challenger, rows=rows.training, findings=rows.findings, curve=curve
    )


class NothingToJudgeOn(Rejected):
    """The rows that the model would be scored on have no labels."""
