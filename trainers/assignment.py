"""What a job's process is given, and what it says back: plain data, so that the trainer needs no torch."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from infra.walls import Walls
from schemas.job import JobRequested
from schemas.model import Comparison, Field, Finding, Lineage, Manifest, Scores


class Assignment(Struct, frozen=True, kw_only=True):
    """What a process is given: the job, where it runs, and the live model if there is one.

    `device` is what torch calls it: "cpu", or "cuda:0", the first
    of the GPUs that `gpu_uuids` makes visible.
    `device_name` is for people. `checkpoint` is where the training's state may be kept; empty: nowhere.
    `artifacts` holds the live model's weights; the challenger's go to `outbox`, or there too if it is empty.
    `walls` go up before any code of the job's runs.
    """

    job: JobRequested
    attempt: int
    artifacts: str
    champion: Manifest | None
    device: str = "cpu"
    device_name: str = "cpu"
    gpu_uuids: tuple[str, ...] = ()
    gpu_share: float | None = None
    threads: int = 1
    run_key: str = ""
    checkpoint: str = ""
    outbox: str = ""
    walls: Walls | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """A challenger with its scores, its weights already in the store.

    `findings`: what no honest model has; the gate need not weigh anything else.
    """

    sha256: str
    size_bytes: int
    architecture: str
    config: dict[str, Any]
    inputs: list[Field]
    example: dict[str, Any]
    lineage: Lineage
    champion: Scores | None
    challenger: Scores | None
    comparison: Comparison | None
    findings: list[Finding]
    rows: int
    train_s: float
    trained_ms: int


class Began(Struct, frozen=True, kw_only=True, tag="began"):
    """The process exists and has its assignment."""

    pid: int
    started_ms: int


class Progress(Struct, frozen=True, kw_only=True, tag="progress"):
    """How far user code says it is; metrics that are not finite are left out."""

    step: int
    of: int
    metrics: dict[str, float] = field(default_factory=dict)


class Done(Struct, frozen=True, kw_only=True, tag="done"):
    """It trained and scored a challenger."""

    outcome: Outcome


class Skipped(Struct, frozen=True, kw_only=True, tag="skipped"):
    """There was nothing to train on."""

    reason: str


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """It raised. `retryable`: what failed were its surroundings, which may be better next time."""

    reason: str
    retryable: bool = False


class Yielded(Struct, frozen=True, kw_only=True, tag="yielded"):
    """It was told to make room. `checkpointed`: its state is kept."""

    checkpointed: bool


Report = Began | Progress | Done | Skipped | Failed | Yielded
