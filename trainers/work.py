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

from infra.measures import log_losses
from infra.paired import compare
from schemas.errors import Rejected
from schemas.job import Experiment
from schemas.model import Comparison, Field, Finding, Manifest, Scores
from trainers.architecture import network
from trainers.artifact import ArtifactStore
from trainers.assignment import Assignment, Outcome
from trainers.checkpoint import Checkpoints
from trainers.context import Model, TrainingContext
from trainers.evaluate import is_constant, score, slice_masks
from trainers.lineage import lineage
from trainers.loop import fit
from trainers.rows import Rows, label_of, read
from trainers.sanity import constant_answers

_SANITY_ROWS = 10_000

Report = Callable[[int, int, dict[str, float]], None]


class BadModelCode(Rejected):
    """The code that the job names cannot be found, or gives back what is no model."""


def perform(
    assignment: Assignment, report: Report, checkpoints: Checkpoints | None = None, rank: int = 0
) -> Outcome | None:
    """Train a challenger, keep its weights, score it and the live model on the same unseen rows.

    Of several ranks the first alone scores; the others help it train, and come to None.

    Raises:
        NothingToTrainOn: the job is to be skipped.
        BadModelCode: the code reference is wrong, or its result is.
        BadExperiment: what the job asks for contradicts itself.
    """
    job, experiment = assignment.job, assignment.job.experiment
    torch.set_num_threads(assignment.threads)
    train, code_sha256 = find_code(experiment)
    store = ArtifactStore(Path(assignment.artifacts))
    champion = live_model(assignment.champion, store)
    rows = read(experiment, losses_of(champion, experiment))
    device = _device(assignment, rank)
    origin = lineage(
        job,
        rows,
        code_sha256=code_sha256,
        device=assignment.device_name,
        torch_device=assignment.device,
        threads=assignment.threads,
        champion=assignment.champion,
    )
    began = time.perf_counter()
    model = train_on(
        rows.training,
        experiment,
        train=train,
        champion=champion,
        device=device,
        report=report,
        checkpoints=checkpoints,
        rank=rank,
    )
    if rank > 0:
        return None
    train_s = time.perf_counter() - began
    trained_ms = int(time.time() * 1000)

    content = weights_of(model)
    digest = (ArtifactStore(Path(assignment.outbox)) if assignment.outbox else store).put(content)
    judgement = judge_on(rows.judged, experiment, champion=champion, challenger=model)
    return Outcome(
        sha256=digest,
        size_bytes=len(content),
        architecture=model.architecture,
        config=model.config,
        inputs=[Field(name=n, type=_type(rows.training.schema[n])) for n in experiment.spec.names()],
        example=rows.training.select(experiment.spec.names()).row(-1, named=True),
        lineage=origin,
        champion=judgement.champion,
        challenger=judgement.challenger,
        comparison=judgement.comparison,
        findings=[*_constant(model, rows, experiment), *rows.findings],
        rows=rows.training.height,
        train_s=train_s,
        trained_ms=trained_ms,
    )


def train_on(
    rows: pl.DataFrame,
    experiment: Experiment,
    *,
    train: Callable[[TrainingContext], Any],
    champion: Any,
    device: torch.device,
    report: Report = lambda *_: None,
    checkpoints: Checkpoints | None = None,
    rank: int = 0,
) -> Any:
    """Run user code on the rows, from the champion's weights where the experiment says so.

    Raises:
        BadModelCode: it gave back no model, or one with NaN.
    """
    parent = champion if experiment.warm_start else None
    context = TrainingContext(
        rows=rows,
        features=experiment.spec.names(),
        label=label_of(experiment),
        params=experiment.params,
        seed=experiment.seed,
        device=device,
        parent=None if parent is None else dict(parent.state_dict()),
        parent_config=None if parent is None else parent.config,
        rank=rank,
        ranks=experiment.resources.ranks if torch.distributed.is_initialized() else 1,
        _checkpoints=checkpoints or Checkpoints(None, ""),
        _report=report,
    )
    _seed(experiment.seed)
    model = train(context)
    _check_model(model, experiment.code)
    return model


def weights_of(model: Any) -> bytes:
    """A model's weights as safetensors: the same weights give the same bytes."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})


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


def _device(assignment: Assignment, rank: int) -> torch.device:
    device = torch.device(assignment.device)
    if device.type == "cuda" and rank:
        device = torch.device("cuda", rank)
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


def live_model(manifest: Manifest | None, store: ArtifactStore) -> Any:
    """The model that a manifest means, its weights from the store; None of none.

    Raises:
        ArtifactCorrupt: they are missing there, or damaged.
        UnknownArchitecture: no network of that name is here.
    """
    if manifest is None:
        return None
    model = network(manifest.architecture, manifest.config)
    model.load_state_dict(safetensors.torch.load(store.get(manifest.artifact.sha256)))
    return model


def losses_of(champion: Any, experiment: Experiment) -> Callable[[pl.DataFrame], np.ndarray | None]:
    """Of labelled rows, the live model's log-loss (N,) on each; None where it cannot answer."""

    def losses(rows: pl.DataFrame) -> np.ndarray | None:
        chance = None if champion is None else _answers(champion, rows, experiment)
        if chance is None:
            return None
        return log_losses(rows.get_column(label_of(experiment)).to_numpy(), chance)

    return losses


def _answers(champion: Any, rows: pl.DataFrame, experiment: Experiment) -> np.ndarray | None:
    """The live model's, or None: what cannot answer defends nothing."""
    try:
        return _predict(champion, rows, experiment)
    except BadModelCode as error:
        print(f"the live model cannot be scored: {error}")
        return None


def _constant(model: Any, rows: Rows, experiment: Experiment) -> list[Finding]:
    sample = (
        rows.training.tail(_SANITY_ROWS) if rows.judged is None or rows.judged.height == 0 else rows.judged
    )
    alike = is_constant(_predict(model, sample, experiment))
    return [constant_answers(experiment.model)] if alike else []


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
    gate, label = experiment.gate, label_of(experiment)
    masks = slice_masks(rows, gate.slices, tags=gate.tags)
    new = _predict(challenger, rows, experiment)
    scored = score(rows, label, new, slices=masks)
    old = None if champion is None else _answers(champion, rows, experiment)
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


def _type(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "int"
    return "float" if dtype.is_numeric() else "string"
