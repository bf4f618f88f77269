"""What a job's process does: read exactly the rows that are named, train, score, keep the weights.

Runs in a process of its own (`trainers.child`); whatever user code does there ends with it. The trainer
itself never imports this module, nor torch.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import safetensors.torch
import torch

from infra.dataset import Dataset
from infra.paired import compare
from infra.point_in_time import LABEL_TIME, PLACE, examples
from schemas.errors import Rejected
from schemas.job import DatasetRange, Experiment
from schemas.model import Comparison, Field, Scores
from trainers.architecture import network
from trainers.artifact import ArtifactStore
from trainers.assignment import Assignment, Outcome
from trainers.context import Model, TrainingContext
from trainers.evaluate import is_constant, score, slice_masks
from trainers.lineage import lineage
from trainers.loop import fit
from trainers.sanity import constant_answers, findings

_SANITY_ROWS = 10_000


class NothingToTrainOn(Rejected):
    """No rows, one class, or fewer rows than the experiment's minimum: the job is skipped."""


class BadModelCode(Rejected):
    """The code that the job names cannot be found, or gives back what is no model."""


class BadExperiment(Rejected):
    """What the job asks for contradicts itself, or its data."""


def perform(assignment: Assignment, report: Callable[[int, int, dict[str, float]], None]) -> Outcome:
    """Train a challenger, keep its weights, score it and the live model on the same unseen rows.

    Raises:
        NothingToTrainOn: the job is to be skipped.
        BadModelCode: the code reference is wrong, or its result is.
        BadExperiment: what the job asks for contradicts itself.
    """
    job, experiment = assignment.job, assignment.job.experiment
    torch.set_num_threads(assignment.threads)
    train, code_sha256 = find_code(experiment)
    rows, judged = _read(experiment)
    found = findings(rows, experiment.spec, trusted=experiment.gate.trusted)
    rows = _without_provenance(rows)
    store = ArtifactStore(Path(assignment.artifacts))
    champion = _champion(assignment, store)
    warm = champion is not None and experiment.warm_start
    origin = lineage(
        job,
        rows=rows.height,
        code_sha256=code_sha256,
        device=assignment.device_name,
        parent=assignment.champion if warm else None,
    )
    context = TrainingContext(
        rows=rows,
        features=experiment.spec.names(),
        label=_label(experiment),
        params=experiment.params,
        seed=experiment.seed,
        device=_device(assignment),
        parent=dict(champion.state_dict()) if champion is not None and warm else None,
        parent_config=champion.config if champion is not None and warm else None,
        _report=report,
    )
    _seed(experiment.seed)
    began = time.perf_counter()
    model = train(context)
    train_s = time.perf_counter() - began
    trained_ms = int(time.time() * 1000)
    _check_model(model, experiment.code)

    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = safetensors.torch.save(weights)
    digest = store.put(content)
    judgement = judge_on(judged, experiment, champion=champion, challenger=model)
    sample = rows.tail(_SANITY_ROWS) if judged is None or judged.height == 0 else judged
    if is_constant(_predict(model, sample, experiment)):
        found = [constant_answers(experiment.model), *found]
    return Outcome(
        sha256=digest,
        size_bytes=len(content),
        architecture=model.architecture,
        config=model.config,
        inputs=[Field(name=n, type=_type(rows.schema[n])) for n in experiment.spec.names()],
        example=rows.select(experiment.spec.names()).row(-1, named=True),
        lineage=origin,
        champion=judgement.champion,
        challenger=judgement.challenger,
        comparison=judgement.comparison,
        findings=found,
        rows=rows.height,
        train_s=train_s,
        trained_ms=trained_ms,
    )


def find_code(experiment: Experiment) -> tuple[Callable[[TrainingContext], Any], str]:
    """The training that the experiment's code reference means, and the SHA-256 of its module's source.

    Raises:
        BadModelCode: there is none, or it is not the version that the experiment was declared with.
    """
    reference = experiment.code
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
        source = Path(str(module.__file__)).read_bytes()
        found = getattr(module, name)
    except ModuleNotFoundError as error:
        raise BadModelCode(
            f"model code {reference!r}: no module {error.name!r} here; install it where the trainer runs"
        ) from error
    except AttributeError as error:
        raise BadModelCode(f"model code {reference!r}: module {module_name} has no {name!r}") from error
    except (SyntaxError, ImportError, ValueError, OSError) as error:
        raise BadModelCode(f"model code {reference!r} cannot be imported: {error}") from error
    digest = hashlib.sha256(source).hexdigest()
    if experiment.code_sha256 not in {"", digest}:
        raise BadModelCode(
            f"model code {reference!r} has SHA-256 {digest} here, the job was declared with "
            f"{experiment.code_sha256}; install the same version on trainer and worker"
        )
    if isinstance(found, type) and issubclass(found, torch.nn.Module):
        return lambda ctx: fit(found, ctx), digest
    if not callable(found):
        raise BadModelCode(f"model code {reference!r} is no function but a {type(found).__name__}")
    return found, digest


def _read(experiment: Experiment) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Labelled rows to train on, and those to judge on."""
    training, evaluation = experiment.training, experiment.evaluation
    known_by_ms = None
    if evaluation is not None:
        if evaluation.start_ms < training.end_ms and training.start_ms < evaluation.end_ms:
            raise BadExperiment(
                f"evaluation [{evaluation.start_ms}, {evaluation.end_ms}) overlaps training "
                f"[{training.start_ms}, {training.end_ms}): a model cannot be judged on what it has seen"
            )
        if evaluation.start_ms >= training.end_ms:
            # A label that came while the judged rows were live would tell of them.
            known_by_ms = evaluation.start_ms
    rows = _labelled(experiment, training, known_by_ms)
    label = rows.get_column(_label(experiment))
    if rows.height < max(1, experiment.minimum_rows):
        raise NothingToTrainOn(
            f"{rows.height} labelled rows, at least {max(1, experiment.minimum_rows)} are asked for"
        )
    if not label.is_in([0.0, 1.0]).all():
        raise BadExperiment(f"label {label.name!r} is not 0 or 1 throughout; derive one that is")
    if label.n_unique() < 2:
        raise NothingToTrainOn(f"all {rows.height} labelled rows are of one class")
    return rows, None if evaluation is None else _labelled(experiment, evaluation, None)


def _labelled(experiment: Experiment, span: DatasetRange, known_by_ms: int | None) -> pl.DataFrame:
    """Examples of a range whose label is known at its version."""
    label = _label(experiment)
    rows = examples(
        Dataset(span.uri),
        experiment.spec,
        version=span.version,
        start_ms=span.start_ms,
        end_ms=span.end_ms,
        label_known_by_ms=known_by_ms,
        provenance=True,
    )
    return rows.drop_nulls(label).with_columns(pl.col(label).cast(pl.Float64))


def _label(experiment: Experiment) -> str:
    if experiment.spec.label is None:
        raise NothingToTrainOn(f"pipeline {experiment.pipeline} declares no label; give it labels=Labels(…)")
    return experiment.spec.label.column


def _device(assignment: Assignment) -> torch.device:
    device = torch.device(assignment.device)
    if device.type == "cuda" and assignment.gpu_share is not None:
        # What a job declares it keeps to: the neighbours on the device were promised the rest.
        torch.cuda.set_per_process_memory_fraction(assignment.gpu_share, device)
    return device


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _check_model(model: Any, code: str) -> None:
    if not isinstance(model, Model):
        lacking = [n for n in ("architecture", "config", "state_dict", "predict") if not hasattr(model, n)]
        raise BadModelCode(
            f"{code} returned {type(model).__name__}, which has no {lacking[0]!r}; see trainers.context"
        )
    if bad := [n for n, t in model.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]:
        raise BadModelCode(f"{code} returned NaN or infinite weights in {bad[0]}; lower the learning rate")
    try:
        same = msgspec.json.decode(msgspec.json.encode(model.config)) == model.config
    except (TypeError, ValueError, msgspec.MsgspecError):
        same = False
    if not same:
        raise BadModelCode(
            f"{code} returned a model whose config does not survive JSON; keep to text, lists, dicts with "
            "text keys, and finite numbers"
        )


def _champion(assignment: Assignment, store: ArtifactStore) -> Any:
    manifest = assignment.champion
    if manifest is None:
        return None
    model = network(manifest.architecture, manifest.config)
    model.load_state_dict(safetensors.torch.load(store.get(manifest.artifact.sha256)))
    return model


def _predict(model: Any, rows: pl.DataFrame, experiment: Experiment) -> np.ndarray:
    """Probabilities (N,).

    Raises:
        BadModelCode: they are none.
    """
    chance = np.asarray(model.predict(rows.to_dict(as_series=True)), dtype=np.float64)
    if chance.shape != (rows.height,):
        raise BadModelCode(f"{experiment.code}: predictions have shape {chance.shape}, not ({rows.height},)")
    if not np.isfinite(chance).all() or chance.min() < 0 or chance.max() > 1:
        raise BadModelCode(f"{experiment.code}: predictions are NaN, or outside 0 to 1")
    return chance


@dataclass(frozen=True, slots=True)
class Judgement:
    """Both models on the same rows; None where there is nothing to say."""

    champion: Scores | None = None
    challenger: Scores | None = None
    comparison: Comparison | None = None


def judge_on(
    rows: pl.DataFrame | None, experiment: Experiment, *, champion: Any, challenger: Any
) -> Judgement:
    """Score champion and challenger overall, by slice and by tag, and say how sure their difference is.

    A live model that cannot answer these rows defends nothing: it has no scores then.

    Raises:
        BadModelCode: the challenger does not answer in probabilities.
    """
    if rows is None or rows.height == 0:
        return Judgement()
    gate, label = experiment.gate, _label(experiment)
    masks = slice_masks(rows, gate.slices, tags=gate.tags)
    new = _predict(challenger, rows, experiment)
    scored = score(rows, label, new, slices=masks)
    old = None
    try:
        old = None if champion is None else _predict(champion, rows, experiment)
    except BadModelCode as error:
        print(f"the live model cannot be scored: {error}")
    if old is None:
        return Judgement(challenger=scored)
    comparison = compare(
        rows.get_column(label).to_numpy(),
        old,
        new,
        metric=gate.metric,
        confidence=gate.confidence,
        slices={name: mine for name, mine in masks.items() if mine.sum() >= gate.slice_rows},
        seed=experiment.seed,
    )
    return Judgement(score(rows, label, old, slices=masks), scored, comparison)


def _without_provenance(rows: pl.DataFrame) -> pl.DataFrame:
    """What user code may see: not when a label came, nor where in its topic a row stood."""
    return rows.drop(LABEL_TIME, *PLACE, strict=False)


def _type(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "int"
    return "float" if dtype.is_numeric() else "string"
