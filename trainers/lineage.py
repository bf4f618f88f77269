"""Where a model comes from: exactly which rows, code, configuration, parent, libraries and device."""

from __future__ import annotations

import importlib.metadata

import msgspec

from infra.dataset import Dataset
from schemas.job import JobRequested
from schemas.model import Lineage, Manifest
from schemas.window import Window

_LIBRARIES = ("torch", "polars", "safetensors", "deltalake", "numpy")


def lineage(
    job: JobRequested, *, rows: int, code_sha256: str, device: str, parent: Manifest | None
) -> Lineage:
    """The lineage of what a job trained.

    Args:
        rows: labelled rows that the training saw.
        code_sha256: of the source of the module that was run.
        device: for people, as in `JobStarted`.
        parent: the model whose weights the training began with.
    """
    experiment = job.experiment
    span = experiment.training
    spans = [span, *([experiment.evaluation] if experiment.evaluation else [])]
    return Lineage(
        pipeline=experiment.pipeline,
        job_id=job.job_id,
        decision_id=job.decision_id,
        dataset_uri=span.uri,
        dataset_version=span.version,
        window_ids=[f"{experiment.pipeline}/{Window(start_ms=s.start_ms, end_ms=s.end_ms)}" for s in spans],
        offsets=Dataset(span.uri).offset_ranges(
            version=span.version, start_ms=span.start_ms, end_ms=span.end_ms
        ),
        code=experiment.code,
        code_sha256=code_sha256,
        configuration_sha256=experiment.configuration_sha256,
        params=msgspec.to_builtins(experiment.params),
        seed=experiment.seed,
        parent_sha256=parent.artifact.sha256 if parent else None,
        rows=rows,
        libraries={library: importlib.metadata.version(library) for library in _LIBRARIES},
        device=device,
    )
