"""A model's life in public: published, refused, adopted by a service, rolled back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from .canary import CanaryTerms
from .contract import Announcement, announces
from .job import Experiment
from .raw import TimeMs

_SECONDS_SHOWN = 120.0
_OVER = {
    "age": "published {} ago",
    "behind": "a newer version is known for {} and is not held",
    "unconfirmed": "the end of the models' log was last confirmed {} ago",
}


class Artifact(Struct, frozen=True, kw_only=True):
    """Bytes of the weights. The digest is their name in the store."""

    uri: Annotated[str, Meta(description="http(s) or s3 address below one of the client's allowed stores")]
    size_bytes: Annotated[int, Meta(ge=1)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    format: Annotated[str, Meta(description="`safetensors`")] = "safetensors"


class Field(Struct, frozen=True, kw_only=True):
    """One column of a model's input or output."""

    name: str
    type: Annotated[str, Meta(description="`string`, `float` or `int`")]


class Scores(Struct, frozen=True, kw_only=True):
    """A model on the evaluation window, and on its slices (`column=value`) and tags (`tag=name`)."""

    rows: int
    auc: float | None
    log_loss: float | None
    accuracy: float | None
    slices: dict[str, dict[str, float | None]] = field(default_factory=dict)


class Difference(Struct, frozen=True, kw_only=True):
    """Challenger less champion on the same rows, turned so that more is better, with one-sided bounds."""

    rows: int
    value: float
    low: float
    high: float


class Comparison(Struct, frozen=True, kw_only=True):
    """How sure the gate may be: overall at `confidence`, of each slice at `slice_confidence`."""

    metric: str
    method: Annotated[str, Meta(description="how the bounds were found, see `infra.paired`")]
    confidence: float
    slice_confidence: float
    seed: Annotated[int, Meta(description="of the resampling, where there is any")]
    overall: Difference
    slices: dict[str, Difference] = field(default_factory=dict)


class Finding(Struct, frozen=True, kw_only=True):
    """Something about the data or the answers that no honest model has, with its numbers."""

    check: Annotated[
        str, Meta(description="`constant_answers`, `feature_tells_label` or `label_before_event`")
    ]
    subject: Annotated[str, Meta(description="the feature, the label, or the model")]
    value: float
    limit: float
    detail: str


class OffsetRange(Struct, frozen=True, kw_only=True):
    """Half-open range of a partition's offsets whose rows the training saw."""

    topic: str
    partition: int
    start: int
    end: int


class Lineage(Struct, frozen=True, kw_only=True):
    """Where a model comes from: enough to rebuild its input bytes and, on a CPU, its weights.

    `offsets` are of all rows that were read: events, what their features looked back at, and labels. Digests
    are of the rows as user code and gate got them, after selection; `infra.digest` says over which bytes.
    """

    pipeline: str
    job_id: str
    decision_id: str | None
    dataset_uri: str
    dataset_version: int
    window_ids: list[str]
    offsets: list[OffsetRange]
    code: str
    code_sha256: str
    configuration_sha256: str
    params: dict[str, Any]
    seed: int
    parent_sha256: str | None
    rows: int
    libraries: dict[str, str]
    device: str
    input_sha256: Annotated[str, Meta(description="of the training rows; empty: not recorded")] = ""
    evaluation_sha256: Annotated[str, Meta(description="of the judged rows; empty: there were none")] = ""
    parent_version: int | None = None
    champion_sha256: Annotated[
        str | None, Meta(description="weights of the live model that was judged beside it")
    ] = None
    threads: Annotated[int, Meta(description="of torch; sums depend on it")] = 1
    hardware: dict[str, str] = field(default_factory=dict)
    experiment: Annotated[
        Experiment | None, Meta(description="what was asked for, whole; null: of an older trainer")
    ] = None


class Manifest(Struct, frozen=True, kw_only=True):
    """All that a service needs to take the model up, and all that it may want to know of it.

    `architecture` and `config` name a network of the client library; no code travels with a model.
    `example` is one input row: the client warms up on it before it swaps.
    """

    name: str
    version: Annotated[
        int,
        Meta(
            ge=1,
            description="the epoch: grows by one with each model of this name that is published or rolled "
            "back to, and never goes back",
        ),
    ]
    artifact: Artifact
    architecture: str
    config: dict[str, Any]
    inputs: list[Field]
    outputs: list[Field]
    example: dict[str, Any]
    champion: Scores | None
    challenger: Scores | None
    lineage: Lineage
    published_ms: TimeMs
    comparison: Comparison | None = None
    canary: Annotated[
        CanaryTerms | None, Meta(description="it is on trial beside the current version; null: it is none")
    ] = None


class Signature(Struct, frozen=True, kw_only=True):
    """An Ed25519 signature over a manifest's bytes; `schemas/signature.py` says which bytes."""

    key_id: Annotated[
        str,
        Meta(pattern="^[0-9a-f]{16}$", description="first 16 hex digits of the SHA-256 of the public key"),
    ]
    ed25519: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]


class ModelEvent(Announcement, frozen=True, kw_only=True):
    """Base of a model's life. `name` is the record key: on the compacted topic the newest stays."""

    name: str

    def key(self) -> str:
        return self.name


class SignedModel(ModelEvent, frozen=True, kw_only=True):
    """An event that offers a model to services. Its manifest travels in canonical form, and is signed.

    One signature by each of the trainer's keys: while keys are rotated there are two.
    """

    manifest: Manifest
    signatures: list[Signature] = field(default_factory=list)

    def encoded(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")


class CurrentModel(SignedModel, frozen=True, kw_only=True):
    """An event that makes a model the current one."""


@announces("model.published")
class ModelPublished(CurrentModel, frozen=True, kw_only=True):
    """A challenger won. The same event goes to the history and to the compacted `current` topic."""

    def event_id(self) -> str:
        return f"{self.name}/{self.manifest.version}/published/{self.manifest.artifact.sha256}"

    def subject(self) -> str:
        return f"{self.name}/{self.manifest.version}"


@announces("model.refused")
class ModelRefused(ModelEvent, frozen=True, kw_only=True):
    """A challenger lost, or could not be judged. The champion stays."""

    job_id: str
    reason: str
    champion: Scores | None
    challenger: Scores | None
    refused_ms: TimeMs
    comparison: Comparison | None = None
    findings: list[Finding] = field(default_factory=list)

    def event_id(self) -> str:
        return f"{self.name}/{self.job_id}/refused"

    def subject(self) -> str:
        return f"{self.name}/{self.job_id}"


@announces("model.adopted")
class ModelAdopted(ModelEvent, frozen=True, kw_only=True):
    """A service now answers with this version."""

    service: str
    version: int
    sha256: str
    previous_version: int | None
    adopted_ms: TimeMs
    load_ms: float
    canary: Annotated[
        bool, Meta(description="it answers its share of requests; all others are the previous version's")
    ] = False

    def event_id(self) -> str:
        return f"{self.name}/{self.version}/{self.sha256}/adopted/{self.service}/{self.adopted_ms}"

    def subject(self) -> str:
        return f"{self.name}/{self.version}"


@announces("model.adoption-refused")
class AdoptionRefused(ModelEvent, frozen=True, kw_only=True):
    """A service could not or would not take this version up, and goes on with the one it has."""

    service: str
    version: int
    sha256: str
    kept_version: int | None
    reason: str
    refused_ms: TimeMs
    canary: Annotated[bool, Meta(description="it was offered as a canary")] = False

    def event_id(self) -> str:
        return f"{self.name}/{self.version}/{self.sha256}/adoption-refused/{self.service}/{self.refused_ms}"

    def subject(self) -> str:
        return f"{self.name}/{self.version}"


class OverBound(Struct, frozen=True, kw_only=True):
    """A bound of a service's that its model is beyond."""

    bound: Annotated[
        Literal["age", "behind", "unconfirmed"],
        Meta(
            description="`age`: since it was published; `behind`: since a newer version is known that is not "
            "held; `unconfirmed`: since the end of the models' log was last confirmed"
        ),
    ]
    for_s: float
    at_most_s: float

    def __str__(self) -> str:
        since = f"{self.for_s:.1f} s" if self.for_s < _SECONDS_SHOWN else f"{self.for_s / 60:.0f} min"
        return _OVER[self.bound].format(since)


@announces("model.stale")
class ModelStale(ModelEvent, frozen=True, kw_only=True):
    """The model that a service answers with is beyond a bound that the service chose.

    Said when that begins, and again when another version that is beyond it takes its place.
    """

    service: str
    version: int
    sha256: str
    newest_version: Annotated[int, Meta(description="that the service knows of")]
    over: Annotated[list[OverBound], Meta(description="the bounds that are passed")]
    then: Annotated[Literal["serve", "flag", "wait"], Meta(description="what becomes of questions meanwhile")]
    since_ms: Annotated[TimeMs, Meta(description="when the first of the bounds was passed")]
    noted_ms: TimeMs

    @property
    def why(self) -> str:
        """For a person."""
        return "; ".join(map(str, self.over))

    def event_id(self) -> str:
        return f"{self.name}/{self.version}/{self.sha256}/stale/{self.service}/{self.noted_ms}"

    def subject(self) -> str:
        return f"{self.name}/{self.version}"


@announces("model.fresh")
class ModelFresh(ModelEvent, frozen=True, kw_only=True):
    """The model that a service answers with is within the service's bounds again."""

    service: str
    version: int
    sha256: str
    stale_version: Annotated[int, Meta(description="that the service last said to be stale")]
    stale_since_ms: TimeMs
    fresh_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.name}/{self.version}/{self.sha256}/fresh/{self.service}/{self.fresh_ms}"

    def subject(self) -> str:
        return f"{self.name}/{self.version}"


@announces("model.rolled-back")
class RolledBack(CurrentModel, frozen=True, kw_only=True):
    """Someone made an older artifact current again. `manifest.version` is new: versions never go back."""

    from_version: int
    to_artifact_of_version: int
    reason: str
    rolled_back_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.name}/{self.manifest.version}/rolled-back"

    def subject(self) -> str:
        return f"{self.name}/{self.manifest.version}"


@announces("model.canary-published")
class CanaryPublished(SignedModel, frozen=True, kw_only=True):
    """A challenger passed the gate and is on trial: services give it its share of the requests.

    It has a version of its own and is never current under it. The signature is over other bytes than a
    current model's (`schemas/signature.py`), so neither can be said again as the other.
    """

    beside_version: Annotated[int, Meta(description="the current version, which it is compared with")]

    def event_id(self) -> str:
        return f"{self.name}/{self.manifest.version}/canary-published/{self.manifest.artifact.sha256}"

    def subject(self) -> str:
        return f"{self.name}/{self.manifest.version}"


class CanaryJudged(Struct, frozen=True, kw_only=True):
    """What a canary's trial came to, in numbers: the canary less the current version, more is better."""

    look: Annotated[int, Meta(ge=0, description="at which look, from 1; 0: at none")]
    pairs: Annotated[int, Meta(ge=0, description="requests that both answered and that have their label")]
    comparison: Annotated[Comparison | None, Meta(description="null: there was nothing to compare")] = None


@announces("model.canary-promoted")
class CanaryPromoted(CurrentModel, frozen=True, kw_only=True):
    """A canary did well and is the current model now, under a new version."""

    canary_version: int
    from_version: Annotated[int, Meta(description="that was current until now")]
    reason: str
    judged: CanaryJudged
    promoted_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.name}/{self.manifest.version}/canary-promoted"

    def subject(self) -> str:
        return f"{self.name}/{self.manifest.version}"


@announces("model.canary-withdrawn")
class CanaryWithdrawn(ModelEvent, frozen=True, kw_only=True):
    """A canary's trial is over, and the current model stays. It answers no request any more."""

    version: Annotated[int, Meta(description="the canary's")]
    sha256: str
    reason: str
    judged: CanaryJudged
    withdrawn_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.name}/{self.version}/canary-withdrawn"

    def subject(self) -> str:
        return f"{self.name}/{self.version}"
