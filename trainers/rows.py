"""The rows of a training and those it is judged on: read at their version, checked, chosen by policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.dataset import Dataset
from infra.point_in_time import LABEL_TIME, examples
from infra.row_order import PLACE
from infra.selection import select
from schemas.errors import Rejected
from schemas.job import DatasetRange, Experiment
from schemas.model import Finding
from schemas.selection import Hard
from trainers.sanity import findings


class NothingToTrainOn(Rejected):
    """No rows, one class, or fewer rows than the experiment's minimum: the job is skipped."""


class BadExperiment(Rejected):
    """What the job asks for contradicts itself, or its data."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows, sorted by event time, without what no model may see.

    `judged` is None where the experiment names no evaluation. `findings` are of all rows of the range.
    """

    training: pl.DataFrame
    judged: pl.DataFrame | None
    findings: list[Finding]


def read(experiment: Experiment, losses: Callable[[pl.DataFrame], np.ndarray | None] | None = None) -> Rows:
    """Read both ranges and choose what the model is to see.

    Args:
        losses: (N,) of the live model on N rows, asked for only where the selection needs them.

    Raises:
        NothingToTrainOn: the job is to be skipped.
        BadExperiment: the ranges overlap, or the label is not 0 and 1.
    """
    training = experiment.training
    rows = _labelled(experiment, training, known_by_ms(experiment))
    _check_label(rows.get_column(label_of(experiment)))
    _check_enough(experiment, rows)
    found = findings(rows, experiment.spec, trusted=experiment.gate.trusted)
    chosen = select(
        rows,
        experiment.selection,
        seed=experiment.seed,
        end_ms=training.end_ms,
        losses=losses(rows) if losses is not None and isinstance(experiment.selection, Hard) else None,
    )
    if chosen.height < rows.height:
        _check_enough(experiment, chosen)
    return Rows(_seen(chosen), judged_rows(experiment), found)


def judged_rows(experiment: Experiment) -> pl.DataFrame | None:
    """The labelled rows that champion and challenger are judged on; None where the experiment names none."""
    evaluation = experiment.evaluation
    return None if evaluation is None else _seen(_labelled(experiment, evaluation, None))


def known_by_ms(experiment: Experiment) -> int | None:
    """Labels of training rows are taken from before this: one that came later would tell of judged rows.

    Raises:
        BadExperiment: both ranges overlap.
    """
    training, evaluation = experiment.training, experiment.evaluation
    if evaluation is None:
        return None
    if evaluation.start_ms < training.end_ms and training.start_ms < evaluation.end_ms:
        raise BadExperiment(
            f"evaluation [{evaluation.start_ms}, {evaluation.end_ms}) overlaps training "
            f"[{training.start_ms}, {training.end_ms}): a model cannot be judged on what it has seen"
        )
    return evaluation.start_ms if evaluation.start_ms >= training.end_ms else None


def label_of(experiment: Experiment) -> str:
    """The label's column.

    Raises:
        NothingToTrainOn: the pipeline declares none.
    """
    if experiment.spec.label is None:
        raise NothingToTrainOn(f"pipeline {experiment.pipeline} declares no label; give it labels=Labels(…)")
    return experiment.spec.label.column


def _labelled(experiment: Experiment, span: DatasetRange, known_by: int | None) -> pl.DataFrame:
    """Examples of a range whose label is known at its version."""
    label = label_of(experiment)
    rows = examples(
        Dataset(span.uri),
        experiment.spec,
        version=span.version,
        start_ms=span.start_ms,
        end_ms=span.end_ms,
        label_known_by_ms=known_by,
        provenance=True,
        excluded=span.excluded,
    )
    return rows.drop_nulls(label).with_columns(pl.col(label).cast(pl.Float64))


def _check_label(label: pl.Series) -> None:
    if not label.is_in([0.0, 1.0]).all():
        raise BadExperiment(f"label {label.name!r} is not 0 or 1 throughout; derive one that is")


def _check_enough(experiment: Experiment, rows: pl.DataFrame) -> None:
    least = max(1, experiment.minimum_rows)
    if rows.height < least:
        raise NothingToTrainOn(f"{rows.height} labelled rows, at least {least} are asked for")
    if rows.get_column(label_of(experiment)).n_unique() < 2:
        raise NothingToTrainOn(f"all {rows.height} labelled rows are of one class")


def _seen(rows: pl.DataFrame) -> pl.DataFrame:
    """What user code may see: not when a label came, nor where in its topic a row stood."""
    return rows.drop(LABEL_TIME, *PLACE)
