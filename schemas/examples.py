"""One example of each announcement: a week of flights that became a model, told event by event."""

from __future__ import annotations

from typing import Any

import msgspec

from .alert import AlertRaised
from .canary import CanaryTerms
from .contract import Announcement
from .dead_letter import DeadLetter, RecordRedriven
from .decision import Decision, Evaluation
from .features import AsOf, FeatureSpec, Label, Trailing
from .job import (
    DatasetRange,
    Experiment,
    Gate,
    JobAnswered,
    JobFailed,
    JobMerged,
    JobPreempted,
    JobProgress,
    JobQueued,
    JobRequested,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobStopRequested,
    JobSucceeded,
    JobSwept,
)
from .model import (
    AdoptionRefused,
    Artifact,
    CanaryJudged,
    CanaryPromoted,
    CanaryPublished,
    CanaryWithdrawn,
    Comparison,
    Difference,
    Field,
    Finding,
    Lineage,
    Manifest,
    ModelAdopted,
    ModelFresh,
    ModelPublished,
    ModelRefused,
    ModelStale,
    OffsetRange,
    OverBound,
    RolledBack,
    Scores,
)
from .prediction import Predictions
from .profile import ColumnProfile, Profile, SliceProfile, WindowProfiled
from .selection import Balanced
from .standing import OpenWindow, PartitionStands, PipelineStands
from .window import (
    DatasetSwitched,
    Moments,
    Summary,
    Window,
    WindowAmended,
    WindowClosed,
    WindowExcluded,
    WindowIncluded,
)

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_START_MS = 1_357_016_400_000  # 1 January 2013, midnight in New York
_NOW_MS = 1_764_000_000_000
_JOB = "flights-1357621200000-1357707600000-00"
_DIGEST = "4f" * 32
_CODE_DIGEST = "c0" * 32
_DATASET = "file:///srv/tidemill/flights"

_WINDOW = Window(start_ms=_START_MS + 7 * _DAY_MS, end_ms=_START_MS + 8 * _DAY_MS)

_SUMMARY = Summary(
    rows=842,
    rejected={"between(distance)": 1},
    dropped={"dedupe": 3},
    tags={"night": 61},
    columns={"distance": Moments(count=842, mean=1077.5, m2=4.4e8, min=80.0, max=4983.0)},
)

_KLL = "05010f02d00708000200000000000000d0070100ce0700000000a04200b89b450000a04200b89b45"

_SPEC = FeatureSpec(
    source="flights.scheduled",
    key="flight_id",
    columns=("carrier", "origin", "dest", "distance"),
    features=(
        AsOf(
            source="weather.hourly",
            by=("origin",),
            columns={"wind_speed": "wind_speed"},
            max_age_ms=3 * _HOUR_MS,
        ),
        Trailing(
            source="flights.departed",
            by=("origin",),
            over_ms=2 * _HOUR_MS,
            aggregates={"departed_2h": ("count", "dep_delay"), "delay_2h": ("mean", "dep_delay")},
        ),
    ),
    label=Label(source="flights.arrived", column="arr_delay", key="flight_id", within_ms=2 * _DAY_MS),
)

_EXPERIMENT = Experiment(
    pipeline="flights",
    model="flights",
    code="trainers.models.flights:train",
    code_sha256=_CODE_DIGEST,
    training=DatasetRange(uri=_DATASET, version=412, start_ms=_START_MS, end_ms=_WINDOW.start_ms),
    evaluation=DatasetRange(uri=_DATASET, version=412, start_ms=_WINDOW.start_ms, end_ms=_WINDOW.end_ms),
    spec=_SPEC,
    selection=Balanced(rows=5_890, by="origin"),
    params={"epochs": 8},
    warm_start=True,
    gate=Gate(
        metric="log_loss",
        tolerance=0.005,
        slices=("origin",),
        slice_tolerance=0.02,
        allowances={"tag=night": 0.05},
    ),
)

_CHALLENGER = Scores(
    rows=812, auc=0.771, log_loss=0.447, accuracy=0.803, slices={"origin=EWR": {"auc": 0.764}}
)
_CHAMPION = Scores(rows=812, auc=0.752, log_loss=0.459, accuracy=0.797)

_COMPARISON = Comparison(
    metric="log_loss",
    method="paired bootstrap",
    confidence=0.95,
    slice_confidence=0.975,
    seed=0,
    overall=Difference(rows=812, value=0.012, low=0.004, high=0.02),
    slices={
        "origin=EWR": Difference(rows=290, value=0.009, low=-0.006, high=0.024),
        "tag=night": Difference(rows=61, value=-0.004, low=-0.031, high=0.022),
    },
)

_MANIFEST = Manifest(
    name="flights",
    version=2,
    artifact=Artifact(uri=f"http://127.0.0.1:8700/{_DIGEST}.safetensors", size_bytes=48_236, sha256=_DIGEST),
    architecture="tabular",
    config={
        "categorical": [{"name": "carrier", "vocabulary": ["AA", "B6", "UA"], "dim": 4}],
        "numeric": [{"name": "distance", "mean": 1077.5, "scale": 720.1}],
        "calendar": None,
        "hidden": [64],
    },
    inputs=[Field(name="carrier", type="string"), Field(name="distance", type="float")],
    outputs=[Field(name="probability", type="float")],
    example={"carrier": "UA", "distance": 1400.0},
    champion=_CHAMPION,
    challenger=_CHALLENGER,
    lineage=Lineage(
        pipeline="flights",
        job_id=_JOB,
        decision_id=f"flights/{_WINDOW}/decision",
        dataset_uri=_DATASET,
        dataset_version=412,
        window_ids=[f"flights/{_WINDOW}"],
        offsets=[OffsetRange(topic="flights.scheduled", partition=0, start=0, end=1604)],
        code="trainers.models.flights:train",
        code_sha256=_CODE_DIGEST,
        configuration_sha256="d1" * 32,
        params={"epochs": 8},
        seed=0,
        parent_sha256="3e" * 32,
        rows=5890,
        libraries={"torch": "2.15.0"},
        device="cpu",
        input_sha256="1a" * 32,
        evaluation_sha256="2b" * 32,
        parent_version=1,
        champion_sha256="3e" * 32,
        hardware={"cpu": "x86_64", "cores": "2"},
        experiment=_EXPERIMENT,
    ),
    published_ms=_NOW_MS,
    comparison=_COMPARISON,
)

_ALL: tuple[Announcement, ...] = (
    AlertRaised(
        pipeline="flights",
        kind="records_expired",
        topic="flights.scheduled",
        partition=2,
        stands_at=48_210,
        first=52_000,
        end=61_344,
        detail="flights.scheduled/2: the ledger stands at offset 48210, but the topic begins at 52000: "
        "3790 records expired unread",
        choices=[
            "go on without them: `tidemill dataset accept-gap --topic flights.scheduled --partition 2`",
            "give the pipeline a new name to begin with what is there",
        ],
    ),
    DeadLetter(
        pipeline="flights",
        topic="flights.scheduled",
        partition=2,
        offset=1207,
        timestamp_ms=_NOW_MS,
        reason="out_of_range",
        rule="between(distance)",
        detail="distance is -80.0; it must lie between 0 and 12000",
        record_key=b"2013-01-08-UA-1545-EWR-0515",
        record_value=b'{"flight_id": "2013-01-08-UA-1545-EWR-0515", "distance": -80.0}',
        record_headers=[("content-type", b"application/json")],
    ),
    RecordRedriven(
        letter_id="flights/flights.scheduled/2/1207/0",
        topic="flights.scheduled",
        partition=2,
        to_offset=1931,
        redriven_ms=_NOW_MS,
    ),
    WindowClosed(
        pipeline="flights",
        window=_WINDOW,
        summary=_SUMMARY,
        labelled=812,
        watermark_ms=_WINDOW.end_ms + 6 * _HOUR_MS,
        dataset_uri=_DATASET,
        dataset_version=412,
    ),
    WindowAmended(
        pipeline="flights",
        window=_WINDOW,
        summary=_SUMMARY,
        labelled=812,
        watermark_ms=_WINDOW.end_ms + 9 * _HOUR_MS,
        dataset_uri=_DATASET,
        dataset_version=415,
        late_rows=2,
    ),
    WindowExcluded(
        pipeline="flights",
        window=_WINDOW,
        reason="the feed of one airport was down",
        decided_by="on-call",
        decided_ms=_NOW_MS,
        dataset_version=416,
    ),
    DatasetSwitched(
        pipeline="flights",
        epoch=1,
        before="flights",
        dataset="flights@3f1c2ab4",
        rules_sha256="3f1c2ab4" + 56 * "0",
        reason="distances above 12,000 km are refused now",
        decided_by="ann",
        decided_ms=1_764_000_000_000,
        dataset_version=812,
    ),
    WindowIncluded(
        pipeline="flights",
        window=_WINDOW,
        reason="the missing rows were pushed again",
        decided_by="on-call",
        decided_ms=_NOW_MS + 3_600_000,
        dataset_version=431,
    ),
    WindowProfiled(
        pipeline="flights",
        window=_WINDOW,
        profile=Profile(
            rows=842,
            columns={
                # Two numbers, 80 and 4983, as DataSketches writes them.
                "distance": ColumnProfile(rows=842, missing=840, kll=bytes.fromhex(_KLL)),
                "carrier": ColumnProfile(rows=842, categories={"UA": 500, "AA": 342}),
            },
            label=ColumnProfile(rows=842, missing=30, categories={"0.0": 620, "1.0": 192}),
            slices={
                "carrier": {
                    "UA": SliceProfile(rows=500, labelled=480, label_sum=101.0),
                    "AA": SliceProfile(rows=342, labelled=332, label_sum=91.0),
                }
            },
        ),
        dataset_version=412,
    ),
    PipelineStands(
        pipeline="flights",
        dataset_version=412,
        committed_ms=_NOW_MS,
        watermark_ms=_WINDOW.end_ms + 6 * _HOUR_MS,
        partitions=[
            PartitionStands(
                topic="flights.scheduled", partition=0, next=1604, watermark_ms=_WINDOW.end_ms + 6 * _HOUR_MS
            ),
            PartitionStands(topic="weather.hourly", partition=0, next=576, watermark_ms=None, idle=True),
        ],
        filling=[
            OpenWindow(
                window=Window(start_ms=_WINDOW.end_ms, end_ms=_WINDOW.end_ms + _DAY_MS),
                rows=190,
                closes_at_ms=_WINDOW.end_ms + 30 * _HOUR_MS,
            )
        ],
        open_windows=1,
    ),
    Decision(
        pipeline="flights",
        window=_WINDOW,
        verdict="yes",
        reason="every(windows=7) fired",
        evaluations=[
            Evaluation(
                condition="every(windows=7)",
                fired=True,
                score=7.0,
                threshold=7.0,
                reason="7 windows closed",
                forecast_windows=0.0,
            ),
            Evaluation(
                condition="drift()",
                fired=False,
                score=0.013,
                threshold=0.02,
                reason="distance is 0.013 off, p 0.2 over 4 (holm); below 0.02",
                reference=f"the windows of the last training, {_WINDOW}",
                forecast_windows=3.5,
                scores={"distance": 0.013, "carrier": 0.008},
            ),
        ],
        dataset_version=412,
        job_id=_JOB,
        training=Window(start_ms=_START_MS, end_ms=_START_MS + 7 * _DAY_MS),
    ),
    JobRequested(
        job_id=_JOB,
        experiment=_EXPERIMENT,
        decision_id=f"flights/{_WINDOW}/decision",
        requested_ms=_NOW_MS,
    ),
    JobSwept(
        job_id=_JOB,
        params={"learning_rate": 0.004, "hidden": [128, 64]},
        best_job_id=f"{_JOB}-trial-13",
        value=0.774,
        trials=20,
        swept_ms=_NOW_MS,
    ),
    JobStopRequested(job_id=_JOB, reason="stopped by `tidemill jobs --stop`", requested_ms=_NOW_MS),
    JobQueued(job_id=_JOB, reason="no GPU has the memory free now", ahead=2, queued_ms=_NOW_MS),
    JobAnswered(job_id=_JOB, run_key=_DIGEST, earlier_job_id="flights-19ab3c-retrained", answered_ms=_NOW_MS),
    JobMerged(job_id=_JOB, into_job_id="flights-20130110T0500", merged_ms=_NOW_MS),
    JobStarted(job_id=_JOB, attempt=1, device="cpu", started_ms=_NOW_MS, run_key=_DIGEST),
    JobPreempted(job_id=_JOB, attempt=1, by_job_id="payments-1", checkpointed=True, preempted_ms=_NOW_MS),
    JobRetried(
        job_id=_JOB,
        attempt=1,
        reason="the artifact store does not answer",
        log_tail="",
        not_before_ms=_NOW_MS + 2_000,
    ),
    JobProgress(job_id=_JOB, attempt=1, step=3, of=8, metrics={"loss": 0.471}),
    JobSucceeded(
        job_id=_JOB,
        attempt=1,
        rows=5890,
        train_s=1.9,
        finished_ms=_NOW_MS,
        artifact_sha256=_DIGEST,
        scores={"auc": 0.771, "log_loss": 0.447, "accuracy": 0.803},
    ),
    JobFailed(
        job_id=_JOB,
        attempt=1,
        reason="the process ended with signal 9",
        log_tail="epoch 3 of 8\n",
        finished_ms=_NOW_MS,
    ),
    JobSkipped(job_id=_JOB, reason="412 labelled rows, and the job asks for 1000", finished_ms=_NOW_MS),
    ModelPublished(name="flights", manifest=_MANIFEST),
    ModelRefused(
        name="flights",
        job_id=_JOB,
        reason="log_loss 0.471 is worse than the champion's 0.459",
        champion=_CHAMPION,
        challenger=_CHALLENGER,
        refused_ms=_NOW_MS,
        comparison=msgspec.structs.replace(
            _COMPARISON, overall=Difference(rows=812, value=-0.012, low=-0.021, high=-0.003)
        ),
        findings=[
            Finding(
                check="feature_tells_label",
                subject="arr_minutes",
                value=0.9998,
                limit=0.999,
                detail="orders the labels with an AUC of 0.9998 all by itself",
            )
        ],
    ),
    ModelAdopted(
        name="flights",
        service="example",
        version=2,
        sha256=_DIGEST,
        previous_version=1,
        adopted_ms=_NOW_MS,
        load_ms=38.4,
    ),
    AdoptionRefused(
        name="flights",
        service="example",
        version=2,
        sha256=_DIGEST,
        kept_version=1,
        reason=f"ArtifactMismatch: the store gave 48236 bytes that are not {_DIGEST}",
        refused_ms=_NOW_MS,
    ),
    ModelStale(
        name="flights",
        service="example",
        version=1,
        sha256=_DIGEST,
        newest_version=2,
        over=[OverBound(bound="behind", for_s=60.2, at_most_s=60.0)],
        then="flag",
        since_ms=_NOW_MS,
        noted_ms=_NOW_MS + 200,
    ),
    ModelFresh(
        name="flights",
        service="example",
        version=2,
        sha256=_DIGEST,
        stale_version=1,
        stale_since_ms=_NOW_MS,
        fresh_ms=_NOW_MS + 45_000,
    ),
    RolledBack(
        name="flights",
        from_version=2,
        to_artifact_of_version=1,
        reason="worse on Sundays",
        manifest=msgspec.structs.replace(_MANIFEST, version=3),
        rolled_back_ms=_NOW_MS,
    ),
    CanaryPublished(
        name="flights",
        manifest=msgspec.structs.replace(
            _MANIFEST,
            version=4,
            canary=CanaryTerms(share=0.1, pairs=500, longest_ms=7 * _DAY_MS),
        ),
        beside_version=3,
    ),
    CanaryPromoted(
        name="flights",
        manifest=msgspec.structs.replace(_MANIFEST, version=5),
        canary_version=4,
        from_version=3,
        reason="auc better by +0.0120 on 1000 requests that both answered",
        judged=CanaryJudged(look=2, pairs=1_000, comparison=_COMPARISON),
        promoted_ms=_NOW_MS,
    ),
    CanaryWithdrawn(
        name="flights",
        version=4,
        sha256=_DIGEST,
        reason="withdrawn by hand: too slow at the gates",
        judged=CanaryJudged(look=0, pairs=0),
        withdrawn_ms=_NOW_MS,
    ),
    Predictions(
        service="example",
        name="flights",
        version=2,
        sha256=_DIGEST,
        features_id="flights/features/431/0",
        keys=["2013-01-09-UA-1545-EWR-0515", "2013-01-09-AA-1141-JFK-0540"],
        times_ms=[_START_MS + 8 * _DAY_MS + 5 * _HOUR_MS, _START_MS + 8 * _DAY_MS + 6 * _HOUR_MS],
        scores=[0.21, 0.34],
        newest_event_ms=_START_MS + 8 * _DAY_MS + 6 * _HOUR_MS,
        answered_ms=_NOW_MS,
    ),
)

_BY_CONTRACT: dict[type[Announcement], Announcement] = {type(example): example for example in _ALL}


def announced() -> tuple[Announcement, ...]:
    """All examples."""
    return _ALL


def example_of(contract: type[Announcement]) -> dict[str, Any]:
    """An example of that announcement, as its JSON stands in a record.

    Raises:
        KeyError: it has none.
    """
    return msgspec.json.decode(msgspec.json.encode(_BY_CONTRACT[contract]))
