"""Every metric that Tidemill's processes serve: name, kind, unit, labels, meaning. Nowhere else is one named.

Names are Prometheus's: base units, `_total` for what only grows. What is served, the dashboard and the alert
rules are held to this file by tests; `tidemill metrics` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Part = Literal["worker", "trainer", "door", "page"]

_QUICK_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LONG_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        unit: what a value counts or measures in.
        parts: the processes that serve it.
        labels: names of its labels, in the order in which values are given.
        buckets: upper bounds of a histogram's buckets, in its unit.
        library: whether prometheus_client fills it by itself.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    parts: tuple[Part, ...] = ("worker",)
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    library: bool = False


_ALL: tuple[Part, ...] = ("worker", "trainer", "door", "page")
_TRAINER: tuple[Part, ...] = ("trainer",)
_DOOR: tuple[Part, ...] = ("door",)
_PAGE: tuple[Part, ...] = ("page",)

# ── every process ───────────────────────────────────────────────────────────────────────────────────

INFO = Metric(
    name="tidemill_info",
    kind="gauge",
    unit="always 1",
    meaning="Which part of Tidemill this process is, in which version.",
    parts=_ALL,
    labels=("part", "version"),
)
READY = Metric(
    name="tidemill_ready",
    kind="gauge",
    unit="1 or 0",
    meaning="Whether the process does its work, as /ready says it.",
    parts=_ALL,
)
CONTACT_AGE = Metric(
    name="tidemill_cluster_contact_age_seconds",
    kind="gauge",
    unit="seconds",
    meaning="Since a broker last answered this process; +Inf before the first answer.",
    parts=_ALL,
)

# ── a worker: ingest ────────────────────────────────────────────────────────────────────────────────

EVENTS = Metric(
    name="tidemill_worker_events_total",
    kind="counter",
    unit="events",
    meaning="Events that commits of this process account for: rows, dead letters and dropped repeats.",
    labels=("pipeline", "topic"),
)
ROWS = Metric(
    name="tidemill_worker_rows_total",
    kind="counter",
    unit="rows",
    meaning="Rows that were committed.",
    labels=("pipeline", "topic"),
)
REJECTED = Metric(
    name="tidemill_worker_rejected_total",
    kind="counter",
    unit="events",
    meaning="Events that became dead letters, by the rule or reason that refused them.",
    labels=("pipeline", "topic", "rule"),
)
DROPPED = Metric(
    name="tidemill_worker_dropped_total",
    kind="counter",
    unit="events",
    meaning="Events that a rule dropped without a dead letter, such as repeats.",
    labels=("pipeline", "topic", "rule"),
)
COMMIT_SECONDS = Metric(
    name="tidemill_worker_commit_seconds",
    kind="histogram",
    unit="seconds",
    meaning="From rows that are ready to a commit that is on disk, waits for a full disk included.",
    labels=("pipeline",),
    buckets=_QUICK_S,
)
PREPARE_SECONDS = Metric(
    name="tidemill_worker_prepare_seconds",
    kind="histogram",
    unit="seconds",
    meaning="What a batch takes against the ledger before its commit: repeats, lateness, windows.",
    labels=("pipeline",),
    buckets=_QUICK_S,
)
COMMIT_FAILURES = Metric(
    name="tidemill_worker_commit_failures_total",
    kind="counter",
    unit="failures",
    meaning="Commits that could not be written and were tried again.",
    labels=("pipeline",),
)
REWINDS = Metric(
    name="tidemill_worker_rewinds_total",
    kind="counter",
    unit="rewinds",
    meaning="Times that a partition was read again, since a frame was lost between fetch and agent.",
    labels=("pipeline",),
)
FENCED = Metric(
    name="tidemill_worker_fenced_total",
    kind="counter",
    unit="refusals",
    meaning="Commits that the ledger refused: another worker had taken the partition over.",
    labels=("pipeline",),
)
POSITION = Metric(
    name="tidemill_worker_position_offset",
    kind="gauge",
    unit="offset",
    meaning="The next offset to be committed of each partition that this worker reads.",
    labels=("pipeline", "topic", "partition"),
)
LAG = Metric(
    name="tidemill_worker_lag_records",
    kind="gauge",
    unit="records",
    meaning="The partition's end less its position, looked at every few seconds.",
    labels=("pipeline", "topic", "partition"),
)
QUEUE_ROWS = Metric(
    name="tidemill_worker_queue_rows",
    kind="gauge",
    unit="records",
    meaning="Records that were fetched and wait for a commit.",
    labels=("pipeline",),
)
QUEUE_BYTES = Metric(
    name="tidemill_worker_queue_bytes",
    kind="gauge",
    unit="bytes",
    meaning="The same, in bytes of their values.",
    labels=("pipeline",),
)
DATASET_VERSION = Metric(
    name="tidemill_worker_dataset_version",
    kind="gauge",
    unit="version",
    meaning="The dataset's version that this process committed last; -1 before its first commit.",
    labels=("pipeline",),
)
WATERMARK = Metric(
    name="tidemill_worker_watermark_timestamp_seconds",
    kind="gauge",
    unit="seconds since 1970, event time",
    meaning="The pipeline's watermark at this process's last commit.",
    labels=("pipeline",),
)

# ── a worker: the herald and the upkeep, in the one that speaks for its pipeline ────────────────────

LEADS = Metric(
    name="tidemill_herald_leads",
    kind="gauge",
    unit="1 or 0",
    meaning="Whether this worker speaks for its pipeline. The sum over a pipeline's workers is 1.",
    labels=("pipeline",),
)
ANNOUNCED_VERSION = Metric(
    name="tidemill_herald_announced_version",
    kind="gauge",
    unit="version",
    meaning="The dataset's version that was announced last; -1 where this worker does not lead.",
    labels=("pipeline",),
)
ANNOUNCEMENTS = Metric(
    name="tidemill_herald_announcements_total",
    kind="counter",
    unit="records",
    meaning="Announcements that the cluster took.",
    labels=("pipeline", "topic"),
)
WINDOWS = Metric(
    name="tidemill_herald_windows_total",
    kind="counter",
    unit="windows",
    meaning="Windows that closed or were amended.",
    labels=("pipeline", "kind"),
)
DECISIONS = Metric(
    name="tidemill_herald_decisions_total",
    kind="counter",
    unit="decisions",
    meaning="Decisions of the trigger: yes, no or not_evaluated.",
    labels=("pipeline", "verdict"),
)
ANNOUNCE_SECONDS = Metric(
    name="tidemill_herald_announce_seconds",
    kind="histogram",
    unit="seconds",
    meaning="Folding one version of the dataset and having the cluster take what it announces.",
    labels=("pipeline",),
    buckets=_QUICK_S,
)
COMPACTIONS = Metric(
    name="tidemill_upkeep_compactions_total",
    kind="counter",
    unit="compactions",
    meaning="Times that small files of the dataset were made one.",
    labels=("pipeline",),
)
UPKEEP_FAILURES = Metric(
    name="tidemill_upkeep_failures_total",
    kind="counter",
    unit="failures",
    meaning="Compactions or vacuums that failed and are tried again.",
    labels=("pipeline",),
)

# ── a trainer ───────────────────────────────────────────────────────────────────────────────────────

JOBS = Metric(
    name="tidemill_trainer_jobs",
    kind="gauge",
    unit="jobs",
    meaning="Open jobs: waiting, sweeping (their trials wait or run on their own), or at work.",
    parts=_TRAINER,
    labels=("state",),
)
OLDEST_WAIT = Metric(
    name="tidemill_trainer_oldest_wait_seconds",
    kind="gauge",
    unit="seconds",
    meaning="How long the job that has waited longest has waited; 0 where none waits.",
    parts=_TRAINER,
)
JOB_EVENTS = Metric(
    name="tidemill_trainer_job_events_total",
    kind="counter",
    unit="events",
    meaning="What this trainer has said of jobs, by the event, such as started, succeeded or failed.",
    parts=_TRAINER,
    labels=("event",),
)
TRAINING_SECONDS = Metric(
    name="tidemill_trainer_training_seconds",
    kind="histogram",
    unit="seconds",
    meaning="Training of jobs that succeeded, scoring and queueing left out.",
    parts=_TRAINER,
    buckets=_LONG_S,
)
MODELS = Metric(
    name="tidemill_trainer_models_total",
    kind="counter",
    unit="models",
    meaning="Challengers that this trainer's gate judged: published or refused.",
    parts=_TRAINER,
    labels=("model", "verdict"),
)
MODEL_VERSION = Metric(
    name="tidemill_trainer_model_version",
    kind="gauge",
    unit="version",
    meaning="The live version of each model.",
    parts=_TRAINER,
    labels=("model",),
)
MODEL_PUBLISHED = Metric(
    name="tidemill_trainer_model_published_timestamp_seconds",
    kind="gauge",
    unit="seconds since 1970",
    meaning="When the live version of each model was published.",
    parts=_TRAINER,
    labels=("model",),
)
WARM = Metric(
    name="tidemill_trainer_warm",
    kind="gauge",
    unit="1 or 0",
    meaning="Whether the process is there that jobs are forked from.",
    parts=_TRAINER,
)
GPU_MEMORY = Metric(
    name="tidemill_trainer_gpu_memory_bytes",
    kind="gauge",
    unit="bytes",
    meaning="Memory of each GPU, free and used, when jobs were last planned.",
    parts=_TRAINER,
    labels=("gpu", "state"),
)
GPU_FAULTS = Metric(
    name="tidemill_trainer_gpu_faults",
    kind="gauge",
    unit="faults",
    meaning="GPUs, or drivers, that did not answer when jobs were last planned.",
    parts=_TRAINER,
)

# ── a door ──────────────────────────────────────────────────────────────────────────────────────────

DOOR_REQUESTS = Metric(
    name="tidemill_door_requests_total",
    kind="counter",
    unit="requests",
    meaning="Requests that were answered, by the status that they got; a batch has one of its own.",
    parts=_DOOR,
    labels=("status",),
)
DOOR_EVENTS = Metric(
    name="tidemill_door_events_total",
    kind="counter",
    unit="events",
    meaning="Events by what was answered: acknowledged, refused for good, or not confirmed (send it again).",
    parts=_DOOR,
    labels=("topic", "answer"),
)
DOOR_RECORDS = Metric(
    name="tidemill_door_in_flight_records",
    kind="gauge",
    unit="records",
    meaning="Records on their way to the cluster; at door.in_flight_records requests are told to come again.",
    parts=_DOOR,
)
DOOR_BYTES = Metric(
    name="tidemill_door_in_flight_bytes",
    kind="gauge",
    unit="bytes",
    meaning="Bytes of bodies that are read or on their way; the bound is door.in_flight_bytes.",
    parts=_DOOR,
)
DOOR_CONFIRM_SECONDS = Metric(
    name="tidemill_door_confirm_seconds",
    kind="histogram",
    unit="seconds",
    meaning="From records of one partition that are handed to the producer to the cluster's answer.",
    parts=_DOOR,
    buckets=_QUICK_S,
)
DOOR_PRODUCERS = Metric(
    name="tidemill_door_producers_replaced_total",
    kind="counter",
    unit="producers",
    meaning="Producers that lost a batch for good and were replaced.",
    parts=_DOOR,
)

# ── a page ──────────────────────────────────────────────────────────────────────────────────────────

PAGE_REQUESTS = Metric(
    name="tidemill_page_requests_total",
    kind="counter",
    unit="requests",
    meaning="Requests that were answered, by status.",
    parts=_PAGE,
    labels=("status",),
)
PAGE_VIEWERS = Metric(
    name="tidemill_page_viewers",
    kind="gauge",
    unit="browsers",
    meaning="Browsers that are served live; the bound is page.most_viewers.",
    parts=_PAGE,
)
PAGE_RECORDS = Metric(
    name="tidemill_page_records_total",
    kind="counter",
    unit="records",
    meaning="Announcements that the view was made of.",
    parts=_PAGE,
    labels=("topic",),
)
PAGE_CAUGHT_UP = Metric(
    name="tidemill_page_caught_up",
    kind="gauge",
    unit="1 or 0",
    meaning="Whether the view has all that was on the topics when the process began.",
    parts=_PAGE,
)
PAGE_REDRIVEN = Metric(
    name="tidemill_page_redriven_total",
    kind="counter",
    unit="letters",
    meaning="Dead letters that were pushed again from the page.",
    parts=_PAGE,
)

# ── what prometheus_client itself says of a process (on Linux) ──────────────────────────────────────

_OF_THE_PROCESS = (
    ("process_cpu_seconds_total", "counter", "seconds", "CPU time that the process has used."),
    ("process_resident_memory_bytes", "gauge", "bytes", "Memory that it holds."),
    ("process_virtual_memory_bytes", "gauge", "bytes", "Address space that it has taken."),
    ("process_start_time_seconds", "gauge", "seconds since 1970", "When it was started."),
    ("process_open_fds", "gauge", "descriptors", "Files and sockets that it has open."),
    ("process_max_fds", "gauge", "descriptors", "How many it may open."),
)

METRICS: tuple[Metric, ...] = (
    INFO,
    READY,
    CONTACT_AGE,
    EVENTS,
    ROWS,
    REJECTED,
    DROPPED,
    PREPARE_SECONDS,
    COMMIT_SECONDS,
    COMMIT_FAILURES,
    REWINDS,
    FENCED,
    POSITION,
    LAG,
    QUEUE_ROWS,
    QUEUE_BYTES,
    DATASET_VERSION,
    WATERMARK,
    LEADS,
    ANNOUNCED_VERSION,
    ANNOUNCEMENTS,
    WINDOWS,
    DECISIONS,
    ANNOUNCE_SECONDS,
    COMPACTIONS,
    UPKEEP_FAILURES,
    JOBS,
    OLDEST_WAIT,
    JOB_EVENTS,
    TRAINING_SECONDS,
    MODELS,
    MODEL_VERSION,
    MODEL_PUBLISHED,
    WARM,
    GPU_MEMORY,
    GPU_FAULTS,
    DOOR_REQUESTS,
    DOOR_EVENTS,
    DOOR_RECORDS,
    DOOR_BYTES,
    DOOR_CONFIRM_SECONDS,
    DOOR_PRODUCERS,
    PAGE_REQUESTS,
    PAGE_VIEWERS,
    PAGE_RECORDS,
    PAGE_CAUGHT_UP,
    PAGE_REDRIVEN,
    *(
        Metric(name=name, kind=kind, unit=unit, meaning=meaning, parts=_ALL, library=True)  # type: ignore[arg-type]
        for name, kind, unit, meaning in _OF_THE_PROCESS
    ),
)
"""In the order of the road."""


def named(name: str) -> Metric:
    """The metric of that name. Raises KeyError if none is declared."""
    return {metric.name: metric for metric in METRICS}[name]


def of_part(part: str) -> tuple[Metric, ...]:
    """What a process of that kind serves."""
    return tuple(metric for metric in METRICS if part in metric.parts)


def series_of(metric: Metric) -> tuple[str, ...]:
    """Names of the time series that it becomes."""
    if metric.kind == "histogram":
        return tuple(f"{metric.name}{ending}" for ending in ("_bucket", "_count", "_sum"))
    return (metric.name,)
