"""Where a model comes from: exactly which rows, code, configuration, parent, libraries and device."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import msgspec
import psutil
import torch

from infra.dataset import Dataset
from infra.digest import table_digest
from infra.point_in_time import spans
from schemas.job import Experiment, JobRequested
from schemas.model import Lineage, Manifest
from schemas.window import Window
from trainers.rows import Rows, known_by_ms

_LIBRARIES = ("torch", "polars", "safetensors", "deltalake", "numpy")


def lineage(
    job: JobRequested,
    rows: Rows,
    *,
    code_sha256: str,
    device: str,
    torch_device: str,
    threads: int,
    champion: Manifest | None,
) -> Lineage:
    """The lineage of what a job trains.

    Args:
        rows: what the training sees, and what it is judged on.
        code_sha256: of the source of the module that is run.
        device: for people, as in `JobStarted`; `torch_device` is what torch calls it.
        threads: of torch.
        champion: the live model that it is judged beside, and begins from where the experiment says so.
    """
    experiment = job.experiment
    span = experiment.training
    ranges = [span, *([experiment.evaluation] if experiment.evaluation else [])]
    parent = champion if experiment.warm_start else None
    return Lineage(
        pipeline=experiment.pipeline,
        job_id=job.job_id,
        decision_id=job.decision_id,
        dataset_uri=span.uri,
        dataset_version=span.version,
        window_ids=[f"{experiment.pipeline}/{Window(start_ms=s.start_ms, end_ms=s.end_ms)}" for s in ranges],
        offsets=Dataset(span.uri).offset_ranges(
            version=span.version, start_ms=span.start_ms, end_ms=span.end_ms, of=_read_spans(experiment)
        ),
        code=experiment.code,
        code_sha256=code_sha256,
        configuration_sha256=experiment.configuration_sha256,
        params=msgspec.to_builtins(experiment.params),
        seed=experiment.seed,
        parent_sha256=parent.artifact.sha256 if parent else None,
        rows=rows.training.height,
        libraries=libraries(),
        device=device,
        input_sha256=table_digest(rows.training),
        evaluation_sha256="" if rows.judged is None else table_digest(rows.judged),
        parent_version=parent.version if parent else None,
        champion_sha256=champion.artifact.sha256 if champion else None,
        threads=threads,
        hardware=hardware(torch_device),
        experiment=experiment,
    )


def libraries() -> dict[str, str]:
    """Versions of what decides a training's numbers, Python's too."""
    return {
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in _LIBRARIES},
    }


def hardware(torch_device: str) -> dict[str, str]:
    """What it runs on: the processor and the instructions that torch uses, or the GPU with CUDA's version."""
    found = {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": str(psutil.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if torch_device != "cpu":
        found["gpu"] = torch.cuda.get_device_name(torch_device)
        found["cuda"] = str(torch.version.cuda)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def _read_spans(experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Event times that the training's rows were read from, by source: events, looked-up features, labels."""
    span, spec = experiment.training, experiment.spec
    read = spans(spec, start_ms=span.start_ms, end_ms=span.end_ms, label_known_by_ms=known_by_ms(experiment))
    asked = [(spec.source, read.events), *read.features.items()]
    if spec.label is not None:
        asked.append((spec.label.source, read.labels))
    widest: dict[str, tuple[int, int]] = {}
    for source, (first, last) in asked:
        known = widest.get(source, (first, last))
        widest[source] = (min(first, known[0]), max(last, known[1]))
    return widest
