"""What a job's process does: read exactly the rows that are named, train, score, keep the weights.

Runs in a process of its own (`trainers.child`); whatever user code does there ends with it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import safetensors.torch
import torch
from msgspec import Struct

from infra.dataset import Dataset
from infra.point_in_time import examples
from schemas.errors import Rejected
from schemas.job import DatasetRange, Experiment, JobRequested
from schemas.model import Field, Lineage, Manifest, Scores
from schemas.window import Window
from trainers.architecture import network
from trainers.artifact import ArtifactStore
from trainers.context import TrainingContext
from trainers.evaluate import score

_LIBRARIES = ("torch", "polars", "safetensors", "deltalake", "numpy")


class NothingToTrainOn(Rejected):
    """No rows, one class, or fewer rows than the experiment's minimum: the job is skipped."""


class BadModelCode(Rejected):
    """The code that the job names cannot be found, or gives back what is no model."""


class Assignment(Struct, frozen=True, kw_only=True):
    """What a child is given: the job, where it runs, and the live model if there is one."""

    job: JobRequested
    attempt: int
    device: str
    artifacts: str
    champion: Manifest | None
    threads: int = 1


class Outcome(Struct, frozen=True, kw_only=True):
    """What a child gives back: a challenger with its scores, its weights already in the store."""

    sha256: str
    size_bytes: int
    architecture: str
    config: dict[str, Any]
    inputs: list[Field]
    example: dict[str, Any]
    lineage: Lineage
    champion: Scores | None
    challenger: Scores | None
    rows: int
    train_s: float
    trained_ms: int


def perform(assignment: Assignment, report: Callable[[int, int, dict[str, float]], None]) -> Outcome:
    """Train and score.

    Raises:
        NothingToTrainOn: the job is to be skipped.
        BadModelCode: the code reference is wrong, or its result is.
    """
    job, experiment = assignment.job, assignment.job.experiment
    torch.set_num_threads(assignment.threads)
    train, code_sha256 = find_code(experiment.code)
    dataset = Dataset(experiment.training.uri)
    rows = _labelled(dataset, experiment, experiment.training)
    _check_rows(rows, experiment)
    label = _label(experiment)
    device = torch.device(assignment.device)
    store = ArtifactStore(Path(assignment.artifacts))
    champion = _champion(assignment, store)
    parent = champion.state_dict() if champion is not None and experiment.warm_start else None

    torch.manual_seed(experiment.seed)
    np.random.seed(experiment.seed)
    context = TrainingContext(
        rows=rows,
        features=experiment.spec.names(),
        label=label,
        params=experiment.params,
        seed=experiment.seed,
        device=device,
        parent=parent,
        parent_config=champion.config if parent is not None else None,
        _report=report,
    )
    began = time.perf_counter()
    model = train(context)
    train_s = time.perf_counter() - began
    trained_ms = int(time.time() * 1000)
    _check_model(model, experiment.code)

    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = safetensors.torch.save(weights)
    digest = store.put(content)
    judged = None if experiment.evaluation is None else _labelled(dataset, experiment, experiment.evaluation)
    return Outcome(
        sha256=digest,
        size_bytes=len(content),
        architecture=model.architecture,
        config=model.config,
        inputs=[Field(name=n, type=_type(rows.schema[n])) for n in experiment.spec.names()],
        example=rows.select(experiment.spec.names()).row(-1, named=True),
        lineage=_lineage(job, dataset, rows, code_sha256, device, assignment.champion if parent else None),
        champion=_score(champion, judged, experiment),
        challenger=_score(model, judged, experiment),
        rows=rows.height,
        train_s=train_s,
        trained_ms=trained_ms,
    )


def find_code(reference: str) -> tuple[Callable[[TrainingContext], Any], str]:
    """The function that "package.module:name" means, and the SHA-256 of its module's source.

    Raises:
        BadModelCode: there is none.
    """
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
        source = Path(str(module.__file__)).read_bytes()
        return getattr(module, name), hashlib.sha256(source).hexdigest()
    except ModuleNotFoundError as error:
        raise BadModelCode(
            f"model code {reference!r}: no module {error.name!r} here; install it where the trainer runs"
        ) from error
    except AttributeError as error:
        raise BadModelCode(f"model code {reference!r}: module {module_name} has no {name!r}") from error


def _label(experiment: Experiment) -> str:
    if experiment.spec.label is None:
        raise NothingToTrainOn(f"pipeline {experiment.pipeline} declares no label; give it labels=Labels(…)")
    return experiment.spec.label.column


def _labelled(dataset: Dataset, experiment: Experiment, span: DatasetRange) -> pl.DataFrame:
    """Examples of a range whose label is known at its version."""
    rows = examples(
        dataset, experiment.spec, version=span.version, start_ms=span.start_ms, end_ms=span.end_ms
    )
    return rows.drop_nulls(_label(experiment)).with_columns(pl.col(_label(experiment)).cast(pl.Float64))


def _check_rows(rows: pl.DataFrame, experiment: Experiment) -> None:
    if rows.height < max(1, experiment.minimum_rows):
        raise NothingToTrainOn(
            f"{rows.height} labelled rows, at least {max(1, experiment.minimum_rows)} are asked for"
        )
    if rows.get_column(_label(experiment)).n_unique() < 2:
        raise NothingToTrainOn(f"all {rows.height} labelled rows are of one class")


def _check_model(model: Any, code: str) -> None:
    for name in ("architecture", "config", "state_dict", "predict"):
        if not hasattr(model, name):
            raise BadModelCode(
                f"{code} returned {type(model).__name__}, which has no {name!r}; see trainers.context"
            )
    if bad := [n for n, t in model.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]:
        raise BadModelCode(f"{code} returned NaN or infinite weights in {bad[0]}; lower the learning rate")


def _champion(assignment: Assignment, store: ArtifactStore) -> Any:
    manifest = assignment.champion
    if manifest is None:
        return None
    model = network(manifest.architecture, manifest.config)
    model.load_state_dict(safetensors.torch.load(store.get(manifest.artifact.sha256)))
    return model


def _score(model: Any, rows: pl.DataFrame | None, experiment: Experiment) -> Scores | None:
    if model is None or rows is None or rows.height == 0:
        return None
    chance = np.asarray(model.predict(rows.to_dict(as_series=True)), dtype=np.float64)
    if chance.shape != (rows.height,) or not np.isfinite(chance).all():
        raise BadModelCode(f"{experiment.code}: predictions are NaN, infinite, or not one a row")
    return score(rows, _label(experiment), chance, slices=experiment.gate.slices)


def _lineage(
    job: JobRequested,
    dataset: Dataset,
    rows: pl.DataFrame,
    code_sha256: str,
    device: torch.device,
    parent: Manifest | None,
) -> Lineage:
    experiment = job.experiment
    span = experiment.training
    spans = [span, *([experiment.evaluation] if experiment.evaluation else [])]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Lineage(
        pipeline=experiment.pipeline,
        job_id=job.job_id,
        decision_id=job.decision_id,
        dataset_uri=span.uri,
        dataset_version=span.version,
        window_ids=[f"{experiment.pipeline}/{Window(start_ms=s.start_ms, end_ms=s.end_ms)}" for s in spans],
        offsets=dataset.offset_ranges(version=span.version, start_ms=span.start_ms, end_ms=span.end_ms),
        code=experiment.code,
        code_sha256=code_sha256,
        configuration_sha256=experiment.configuration_sha256,
        params=msgspec.to_builtins(experiment.params),
        seed=experiment.seed,
        parent_sha256=parent.artifact.sha256 if parent else None,
        rows=rows.height,
        libraries={library: importlib.metadata.version(library) for library in _LIBRARIES},
        device=name,
    )


def _type(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "int"
    return "float" if dtype.is_numeric() else "string"
