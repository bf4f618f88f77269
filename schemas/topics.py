"""One record a topic: what it is for, who writes and reads it, its key, its settings, its contract.

`infra.kafka.topics` creates the topics from these records; `schemas/json/` holds the JSON Schemas
written from them (`python -m schemas.json_schema`), and a test keeps both in step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from . import alert, dead_letter, decision, job, model, prediction, profile, raw, standing, window
from .contract import Announcement
from .examples import example_of

DAY_MS = 86_400_000

NEWEST_OF_A_KEY: Mapping[str, str] = {
    "cleanup.policy": "compact",
    "retention.ms": "-1",
    # The segment that is being written is never compacted, and by Kafka's defaults it is that for a week, or
    # until it holds a GiB: a service that starts would read every event of it. So it is closed after an hour
    # or 4 MiB, which must be above the largest record, and what is stale is taken out soon after.
    "segment.bytes": "4194304",
    "segment.ms": "3600000",
    "max.compaction.lag.ms": "3600000",
    "min.cleanable.dirty.ratio": "0.1",
}
"""Of topics from which a service starts: what is read depends on the number of keys, not of events."""

WATERMARK_HEADER = "tidemill-watermark"
CONTENT_TYPE_HEADER = "content-type"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a topic's schema; `contracts` are the structs a value may be."""

    number: int
    contracts: tuple[type[msgspec.Struct], ...]
    compatibility: Literal["backward", "full"] = "backward"


@dataclass(frozen=True, kw_only=True)
class Topic:
    """Declaration of a topic. `settings` are Kafka's own topic settings.

    `examples` are values as they stand in a record, one for each of the newest version's contracts, in their
    order.
    """

    name: str
    purpose: str
    producer: str
    consumers: tuple[str, ...]
    key: str
    versions: tuple[Version, ...]
    partitions: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    unknown_fields: Literal["refuse", "ignore"] = "ignore"
    examples: tuple[Mapping[str, Any], ...] = ()

    @property
    def contracts(self) -> tuple[type[msgspec.Struct], ...]:
        """The newest version's structs."""
        return self.versions[-1].contracts


def _raw(
    name: str,
    purpose: str,
    contract: type[msgspec.Struct],
    *,
    key: str,
    partitions: int,
    example: dict[str, Any],
) -> Topic:
    return Topic(
        name=name,
        purpose=purpose,
        producer="any producer (`tidemill push`, an HTTP client, the demo's player)",
        consumers=("stream worker",),
        key=key,
        partitions=partitions,
        versions=(Version(number=1, contracts=(contract,)),),
        settings={
            "cleanup.policy": "delete",
            "retention.ms": str(30 * DAY_MS),
            "max.message.bytes": "8388608",
            # Retention goes by the record's timestamp: a producer that replays last year's events under their
            # own times would see them accepted and then swept away.
            "message.timestamp.type": "LogAppendTime",
        },
        unknown_fields="refuse",
        examples=(example,),
    )


def _announced(
    name: str,
    purpose: str,
    *contracts: type[Announcement],
    producer: str,
    consumers: tuple[str, ...],
    key: str,
    retention_days: int = 365,
    settings: Mapping[str, str] | None = None,
    max_bytes: int = 2_097_152,
) -> Topic:
    base = {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_days * DAY_MS),
        "max.message.bytes": str(max_bytes),
    }
    return Topic(
        name=name,
        purpose=purpose,
        producer=producer,
        consumers=consumers,
        key=key,
        versions=(Version(number=1, contracts=contracts),),
        settings={**base, **(settings or {})},
        examples=tuple(example_of(contract) for contract in contracts),
    )


FLIGHTS_SCHEDULED = _raw(
    "flights.scheduled",
    "A flight as known before it departs: what a prediction is asked for.",
    raw.Flight,
    key="flight_id",
    partitions=4,
    example={
        "flight_id": "2013-01-01-UA-1545-EWR-0515",
        "scheduled": 1357035300000,
        "carrier": "UA",
        "flight": 1545,
        "tailnum": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "distance": 1400.0,
        "scheduled_arrival_hhmm": 819,
    },
)
FLIGHTS_DEPARTED = _raw(
    "flights.departed",
    "A flight left its gate: known delays of departure.",
    raw.Departure,
    key="flight_id",
    partitions=4,
    example={
        "flight_id": "2013-01-01-UA-1545-EWR-0515",
        "departed": 1357035420000,
        "scheduled": 1357035300000,
        "carrier": "UA",
        "tailnum": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "dep_delay": 2.0,
    },
)
FLIGHTS_ARRIVED = _raw(
    "flights.arrived",
    "A flight reached its gate: the label, hours after the prediction.",
    raw.Arrival,
    key="flight_id",
    partitions=4,
    example={
        "flight_id": "2013-01-01-UA-1545-EWR-0515",
        "arrived": 1357050540000,
        "scheduled": 1357035300000,
        "carrier": "UA",
        "tailnum": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "arr_delay": 11.0,
        "air_time": 227.0,
    },
)
WEATHER_HOURLY = _raw(
    "weather.hourly",
    "Hourly weather at the airports of origin.",
    raw.Weather,
    key="origin",
    partitions=1,
    example={
        "origin": "EWR",
        "observed": 1357020000000,
        "temp": 39.02,
        "dewp": 26.06,
        "humid": 59.37,
        "wind_dir": 270.0,
        "wind_speed": 10.35702,
        "wind_gust": None,
        "precip": 0.0,
        "pressure": 1012.0,
        "visib": 10.0,
    },
)

DEAD_LETTERS = _announced(
    "tidemill.dead-letters",
    "Records that were refused, with their bytes, origin and reason; and that they were pushed again.",
    dead_letter.DeadLetter,
    dead_letter.RecordRedriven,
    producer="stream worker (refused), page and `tidemill redrive` (pushed again)",
    consumers=("engineers", "tidemill redrive", "page"),
    key="origin topic/partition",
    retention_days=30,
    max_bytes=16_777_216,
)
ALERTS = _announced(
    "tidemill.alerts",
    "What no worker may decide alone: it has stopped, and says which choices a person has.",
    alert.AlertRaised,
    producer="stream worker",
    consumers=("engineers",),
    key="pipeline",
)
FEATURES = Topic(
    name="tidemill.features",
    purpose="Feature rows that are ready to be predicted on, one Arrow IPC stream a record.",
    producer="stream worker",
    consumers=("services",),
    key="pipeline",
    # The columns are the pipeline's own: its FeatureSpec is the contract (see schemas.features).
    versions=(Version(number=1, contracts=()),),
    settings={"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS), "max.message.bytes": "16777216"},
)
WINDOWS = _announced(
    "tidemill.windows",
    "Windows that closed or were amended by late rows, excluded spans, and switches of the live dataset.",
    window.WindowClosed,
    window.WindowAmended,
    window.WindowExcluded,
    window.WindowIncluded,
    window.DatasetSwitched,
    producer="stream worker",
    consumers=("engineers", "trigger"),
    key="pipeline",
)
PROFILES = _announced(
    "tidemill.profiles",
    "What each closed window's rows look like, column by column: the ground that drift is judged on.",
    profile.WindowProfiled,
    producer="stream worker",
    consumers=("trigger", "engineers"),
    key="pipeline",
    max_bytes=16_777_216,
)
STANDINGS = _announced(
    "tidemill.standings",
    "How far a pipeline is, about once a second: positions, watermarks, windows that are filling.",
    standing.PipelineStands,
    producer="stream worker",
    consumers=("engineers", "page"),
    key="pipeline",
    retention_days=1,
)
DECISIONS = _announced(
    "tidemill.decisions",
    "Every evaluation of a trigger, yes and no.",
    decision.Decision,
    producer="stream worker",
    consumers=("engineers",),
    key="pipeline",
)
JOBS = _announced(
    "tidemill.jobs",
    "Training jobs: requested, and their life.",
    job.JobRequested,
    job.JobStopRequested,
    job.JobQueued,
    job.JobAnswered,
    job.JobMerged,
    job.JobStarted,
    job.JobProgress,
    job.JobPreempted,
    job.JobSwept,
    job.JobRetried,
    job.JobSucceeded,
    job.JobFailed,
    job.JobSkipped,
    producer="stream worker, `tidemill train`, Python (requested), trainer (life)",
    consumers=("trainer", "engineers"),
    key="job id",
)
MODELS = _announced(
    "tidemill.models",
    "History of all models: published, refused, adopted, adoption refused, stale, fresh again, rolled back; "
    "canaries published, promoted and withdrawn.",
    model.ModelPublished,
    model.ModelRefused,
    model.ModelAdopted,
    model.AdoptionRefused,
    model.ModelStale,
    model.ModelFresh,
    model.RolledBack,
    model.CanaryPublished,
    model.CanaryPromoted,
    model.CanaryWithdrawn,
    producer="trainer (published, refused, rolled back, canaries), "
    "services (adopted, adoption refused, stale, fresh)",
    consumers=("services", "engineers"),
    key="model name",
)
MODELS_CURRENT = _announced(
    "tidemill.models.current",
    "The current model of each name, the newest event of a key.",
    model.ModelPublished,
    model.RolledBack,
    model.CanaryPromoted,
    producer="trainer",
    consumers=("services",),
    key="model name",
    settings=NEWEST_OF_A_KEY,
)
MODELS_CANARIES = _announced(
    "tidemill.models.canaries",
    "The canary of each model that is or was the last on trial, the newest event of a key.",
    model.CanaryPublished,
    model.CanaryPromoted,
    model.CanaryWithdrawn,
    producer="trainer",
    consumers=("services",),
    key="model name",
    settings=NEWEST_OF_A_KEY,
)
PREDICTIONS = _announced(
    "tidemill.predictions",
    "What services answered, with which model.",
    prediction.Predictions,
    producer="services",
    consumers=("engineers", "demo", "stream worker"),
    key="service",
    retention_days=30,
    max_bytes=16_777_216,
)

TOPICS: tuple[Topic, ...] = (
    FLIGHTS_SCHEDULED,
    FLIGHTS_DEPARTED,
    FLIGHTS_ARRIVED,
    WEATHER_HOURLY,
    DEAD_LETTERS,
    ALERTS,
    FEATURES,
    WINDOWS,
    PROFILES,
    STANDINGS,
    DECISIONS,
    JOBS,
    MODELS,
    MODELS_CURRENT,
    MODELS_CANARIES,
    PREDICTIONS,
)


_OWN: dict[str, Topic] = {}


def declare(own: Topic) -> Topic:
    """Declare a topic beside `TOPICS`, as a pipeline that brings its own contract does when it is imported.

    Raises:
        ValueError: another topic of that name is declared.
    """
    if declared(own.name) not in (None, own):
        raise ValueError(f"topic {own.name!r} is declared already, and otherwise; choose another name")
    _OWN[own.name] = own
    return own


@contextmanager
def apart() -> Iterator[None]:
    """What is declared in this block is forgotten behind it, and what was declared before is not seen in it.

    For two versions of one pipeline, whose contracts bear the same names.
    """
    before = dict(_OWN)
    _OWN.clear()
    try:
        yield
    finally:
        _OWN.clear()
        _OWN.update(before)


def all_declared() -> tuple[Topic, ...]:
    """`TOPICS`, and those that a pipeline has declared by `declare`."""
    return (*TOPICS, *_OWN.values())


def declared(name: str) -> Topic | None:
    """The topic of that name, here or by `declare`; None if there is none."""
    return next((t for t in TOPICS if t.name == name), _OWN.get(name))


def raw_topics() -> tuple[Topic, ...]:
    """All topics that producers push events to, those of `declare` among them."""
    return tuple(t for t in (*TOPICS, *_OWN.values()) if t.unknown_fields == "refuse")


def topic(name: str) -> Topic:
    """The declared topic of that name.

    Raises:
        KeyError: it is not declared.
    """
    if (found := declared(name)) is None:
        raise KeyError(f"topic {name!r} is not declared in schemas/topics.py")
    return found
