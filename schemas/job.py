"""A training job: an experiment (model + dataset + execution parameters) and its life."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from .canary import CanaryTerms
from .contract import Announcement, announces
from .features import FeatureSpec
from .raw import TimeMs
from .selection import Hard, Selection, Whole
from .sweep import SweepPlan
from .window import Window


class DatasetRange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly which rows: a dataset version, and the span of event time [start_ms, end_ms)."""

    uri: str
    version: int
    start_ms: TimeMs
    end_ms: TimeMs
    # Left out where there is none: so run keys from before there were exclusions stay as they were.
    excluded: Annotated[
        tuple[Window, ...],
        Meta(description="spans within it that a person excluded: no example is made of their events"),
    ] = ()


class Resources(Struct, frozen=True, kw_only=True):
    """What a job asks for, and is held to.

    `device="auto"` takes a GPU with room if there is one, else the CPU. On a GPU a job has a share of one
    device, `gpu_memory_bytes` of it, beside other jobs; with `gpus` it has so many whole devices to itself,
    and never runs on the CPU.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: Annotated[int, Meta(ge=0, description="whole devices; 0: a share of one")] = 0
    gpu_memory_bytes: Annotated[int, Meta(ge=0)] = 2 * 2**30
    ranks: Annotated[
        int, Meta(ge=1, description="processes of a data parallel training; on GPUs one for each of `gpus`")
    ] = 1
    cpus: Annotated[int, Meta(ge=1, description="of all ranks together")] = 1
    memory_bytes: Annotated[
        int,
        Meta(ge=1, description="of the machine, beyond what all jobs share; a job that takes more is ended"),
    ] = 2 * 2**30
    time_limit_s: Annotated[float, Meta(gt=0, description="of one attempt")] = 600.0


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
    purpose: Annotated[
        Literal["challenger", "trial"], Meta(description="a trial is scored and never published")
    ] = "challenger"

    def run_key(self, *, code_sha256: str = "", parent_sha256: str | None = None) -> str:
        """SHA-256 over what determines the result: two experiments of one key are the same training.

        Resources but `ranks` are left out, and the hash of the pipeline's whole declaration: what it changes
        in the data is in the dataset's version.

        Args:
            code_sha256: of the module's source as it is, where the experiment names none.
            parent_sha256: of the live model, where a warm start begins from it or it chooses the rows.
        """
        same = msgspec.structs.replace(
            self,
            resources=Resources(ranks=self.resources.ranks),
            configuration_sha256="",
            code_sha256=self.code_sha256 or code_sha256,
        )
        depends = self.warm_start or isinstance(self.selection, Hard)
        parts = (same, parent_sha256 if depends else None)
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()

    def pending_key(self) -> str:
        """The same for two experiments that differ in their data alone, such as one job a window."""
        span = {"uri": self.training.uri, "version": 0, "start_ms": 0, "end_ms": 0}
        same = msgspec.structs.replace(
            self,
            training=DatasetRange(**span),
            evaluation=None if self.evaluation is None else DatasetRange(**span),
        )
        return same.run_key()


class JobEvent(Announcement, frozen=True, kw_only=True):
    """Base of a job's life."""

    job_id: str

    def subject(self) -> str:
        return self.job_id

    def key(self) -> str:
        return self.job_id


@announces("job.requested")
class JobRequested(JobEvent, frozen=True, kw_only=True):
    """Somebody (a trigger's decision, or a person) asks for a training.

    A job's place in the queue is when it was asked for, moved forward for each step of `priority`. So a job
    of low priority waits longer, never for ever; one that cannot run beside a job of lower priority may take
    that one's place.
    """

    experiment: Experiment
    decision_id: str | None
    requested_ms: TimeMs
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    why: Annotated[str, Meta(description="in words, for people; a decision says it better")] = ""
    sweep: Annotated[
        SweepPlan | None, Meta(description="configurations are tried first; the best is what is trained")
    ] = None
    canary: Annotated[
        CanaryTerms | None,
        Meta(description="one that passes the gate is on trial first; null: it is current at once"),
    ] = None

    def event_id(self) -> str:
        return f"{self.job_id}/requested"


@announces("job.swept")
class JobSwept(JobEvent, frozen=True, kw_only=True):
    """Its sweep is over: from now on it is a training with these parameters over its own, as any other."""

    params: dict[str, Any]
    best_job_id: Annotated[str, Meta(description="the trial that they are of")]
    value: Annotated[float, Meta(description="of what decides, on rows kept from the training's own")]
    trials: int
    swept_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/swept"


@announces("job.stop-requested")
class JobStopRequested(JobEvent, frozen=True, kw_only=True):
    """Somebody wants the job ended: it fails with this reason, whether it runs or waits."""

    reason: str
    requested_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/stop-requested"


@announces("job.queued")
class JobQueued(JobEvent, frozen=True, kw_only=True):
    """It cannot start at once. Said once a job; one that starts at once is never queued."""

    reason: Annotated[str, Meta(description="what it waits for")]
    ahead: Annotated[int, Meta(ge=0, description="jobs before it in the queue")]
    queued_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/queued"


@announces("job.answered")
class JobAnswered(JobEvent, frozen=True, kw_only=True):
    """It is over without a training: one with the same run key exists, and its model event is the answer."""

    run_key: str
    earlier_job_id: str
    answered_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/answered"


@announces("job.merged")
class JobMerged(JobEvent, frozen=True, kw_only=True):
    """It is over: another waiting job asks for the same on newer data, and takes its place in the queue."""

    into_job_id: str
    merged_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/merged"


@announces("job.started")
class JobStarted(JobEvent, frozen=True, kw_only=True):
    """A process of its own has begun on it."""

    attempt: int
    device: Annotated[str, Meta(description="`cpu`, or `cuda:0 NVIDIA …`")]
    started_ms: TimeMs
    run_key: Annotated[str, Meta(description="hash of what determines the result")] = ""
    resumed: Annotated[bool, Meta(description="a checkpoint of an earlier attempt is there")] = False

    def event_id(self) -> str:
        return f"{self.job_id}/started/{self.attempt}"


@announces("job.progress")
class JobProgress(JobEvent, frozen=True, kw_only=True):
    """How far it is. Sent at most a few times a second."""

    attempt: Annotated[int, Meta(description="0: of its sweep, whose steps are trials")]
    step: int
    of: int
    metrics: dict[str, float] = field(default_factory=dict)

    def event_id(self) -> str:
        return f"{self.job_id}/progress/{self.attempt}/{self.step}"


@announces("job.preempted")
class JobPreempted(JobEvent, frozen=True, kw_only=True):
    """It made room for a job of higher priority and waits again, in its old place in the queue."""

    attempt: int
    by_job_id: str
    checkpointed: Annotated[bool, Meta(description="it goes on from a checkpoint; else from the beginning")]
    preempted_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/preempted/{self.attempt}"


@announces("job.retried")
class JobRetried(JobEvent, frozen=True, kw_only=True):
    """An attempt failed for a reason that may pass; the next begins at `not_before_ms` or later."""

    attempt: Annotated[int, Meta(description="the one that failed")]
    reason: str
    log_tail: Annotated[str, Meta(description="end of the process's output")]
    not_before_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.job_id}/retried/{self.attempt}"


@announces("job.succeeded")
class JobSucceeded(JobEvent, frozen=True, kw_only=True):
    """It trained a challenger. Whether that was published is the model topic's to say."""

    attempt: int
    rows: int
    train_s: float
    finished_ms: TimeMs
    artifact_sha256: str
    scores: Annotated[
        dict[str, float], Meta(description="on the rows it was judged on, by measure; empty: there were none")
    ] = field(default_factory=dict)

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
