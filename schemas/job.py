"""A training job: an experiment (model + dataset + execution parameters) and its life."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from .contract import Announcement, announces
from .features import FeatureSpec
from .raw import TimeMs
from .selection import Selection, Whole


class DatasetRange(Struct, frozen=True, kw_only=True):
    """Exactly which rows: a dataset version, and the span of event time [start_ms, end_ms)."""

    uri: str
    version: int
    start_ms: TimeMs
    end_ms: TimeMs


class Resources(Struct, frozen=True, kw_only=True):
    """What a job asks for. `device="auto"` takes a GPU with room if there is one, else the CPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_memory_bytes: int = 2 * 2**30
    cpus: int = 1
    memory_bytes: int = 2 * 2**30
    time_limit_s: Annotated[float, Meta(gt=0)] = 600.0


class Gate(Struct, frozen=True, kw_only=True):
    """When a challenger is published: with confidence no worse than the champion on the newest unseen rows.

    The difference of both models' `metric` on the same rows, turned so that more is better, has a lower bound
    at `confidence` (one-sided; `infra.paired` says how). It must not lie below `-tolerance`: with a tolerance
    of 0 the challenger must be better beyond noise (or answer alike), with more it must be shown not to be
    worse by that much, the non-inferiority margin of clinical trials. A confidence of .5 takes the difference
    as it stands. Fewer labelled rows than `minimum_rows`, or labels of one class only: the gate cannot judge.

    A slice (a value of a column in `slices`, or with `tags` a tag) refuses the challenger where it is worse
    there by more than its allowance, and worse at all beyond noise: the upper bound, at a confidence shared
    out over all slices (Bonferroni), lies below 0. Slices are small; to ask a proof of each would publish
    nothing.
    """

    metric: Literal["auc", "log_loss", "accuracy"] = "auc"
    tolerance: Annotated[float, Meta(ge=0)] = 0.0
    confidence: Annotated[float, Meta(ge=0.5, lt=1, description="one-sided")] = 0.95
    minimum_rows: Annotated[int, Meta(ge=1)] = 100
    slices: tuple[str, ...] = ()
    tags: Annotated[bool, Meta(description="each tag of the judged rows is a slice too")] = True
    slice_tolerance: Annotated[float, Meta(ge=0)] = 1.0
    allowances: Annotated[
        dict[str, float],
        Meta(
            description="by slice (`origin=EWR`, `tag=night`) or column (`origin`, `tag`): its own allowance"
        ),
    ] = field(default_factory=dict)
    slice_rows: Annotated[int, Meta(ge=2, description="a smaller slice is shown, not judged")] = 30
    trusted: Annotated[
        tuple[str, ...], Meta(description="features that may tell the label by themselves, or `*` for all")
    ] = ()
    first: Annotated[
        Literal["publish", "refuse"], Meta(description="a first model, when the gate cannot judge")
    ] = "publish"


class Experiment(Struct, frozen=True, kw_only=True):
    """All that determines a training's result, and what is done with it.

    `training` is what the model sees, as far as `selection` takes it; `evaluation` the newest unseen window,
    which both champion and challenger are scored on. The challenger never sees it before the gate.
    """

    pipeline: str
    model: Annotated[str, Meta(description="name under which services follow it")]
    code: Annotated[str, Meta(description="`package.module:function`, importable by the trainer")]
    code_sha256: Annotated[
        str, Meta(description="hash of the module's source; empty: the trainer's is taken")
    ] = ""
    training: DatasetRange
    evaluation: DatasetRange | None
    spec: FeatureSpec
    selection: Selection = field(default_factory=Whole)
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    warm_start: bool = False
    minimum_rows: int = 1
    resources: Resources = field(default_factory=Resources)
    gate: Gate = field(default_factory=Gate)
    configuration_sha256: Annotated[str, Meta(description="hash of the pipeline's declaration")] = ""


class JobEvent(Announcement, frozen=True, kw_only=True):
    """Base of a job's life."""

    job_id: str

    def subject(self) -> str:
        return self.job_id

    def key(self) -> str:
        return self.job_id


@announces("job.requested")
class JobRequested(JobEvent, frozen=True, kw_only=True):
    """Somebody (a trigger's decision, or a person) asks for a training."""

    experiment: Experiment
    decision_id: str | None
    requested_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/requested"


@announces("job.started")
class JobStarted(JobEvent, frozen=True, kw_only=True):
    """A process of its own has begun on it."""

    attempt: int
    device: Annotated[str, Meta(description="`cpu`, or `cuda:0 NVIDIA …`")]
    started_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/started/{self.attempt}"


@announces("job.progress")
class JobProgress(JobEvent, frozen=True, kw_only=True):
    """How far it is. Sent at most a few times a second."""

    attempt: int
    step: int
    of: int
    metrics: dict[str, float] = field(default_factory=dict)

    def event_id(self) -> str:
        return f"{self.job_id}/progress/{self.attempt}/{self.step}"


@announces("job.succeeded")
class JobSucceeded(JobEvent, frozen=True, kw_only=True):
    """It trained a challenger. Whether that was published is the model topic's to say."""

    attempt: int
    rows: int
    train_s: float
    finished_ms: TimeMs
    artifact_sha256: str

    def event_id(self) -> str:
        return f"{self.job_id}/succeeded"


@announces("job.failed")
class JobFailed(JobEvent, frozen=True, kw_only=True):
    """It will not be tried again. The live model stays."""

    attempt: int
    reason: str
    log_tail: Annotated[str, Meta(description="end of the process's output")]
    finished_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/failed"


@announces("job.skipped")
class JobSkipped(JobEvent, frozen=True, kw_only=True):
    """There was nothing to train on (no rows, one class, too few rows). The live model stays."""

    reason: str
    finished_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/skipped"
