"""What a yes asks for: the experiment that a pipeline declares, over the windows of the moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from schemas.canary import CanaryTerms
from schemas.features import FeatureSpec
from schemas.job import DatasetRange, Experiment, Gate, JobRequested, Resources
from schemas.raw import EARLIEST_MS
from schemas.selection import Balanced, Decay, Hard, Reservoir, Selection, Whole
from schemas.sweep import Measure, SweepPlan, space_of
from schemas.window import Window, WindowClosed
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms


@dataclass(frozen=True)
class Data:
    """The last n windows before the ones that the models are judged on, or with None all; and which rows."""

    windows: int | None
    selection: Selection = field(default_factory=Whole)
    place: Place = field(default_factory=here, compare=False)


def last(*, windows: int) -> Data:
    """Train on every row of the last n windows."""
    return _data("last", windows, Whole())


def history(*, half_life: str, rows: int, windows: int | None = None) -> Data:
    """Train on a sample of all history (or the last n windows) whose rows count half as much per half-life.

    `half_life` is a duration such as "30d".
    """
    return _data("history", windows, Decay(rows=rows, half_life_ms=to_ms(half_life)))


def reservoir(*, rows: int, windows: int | None = None) -> Data:
    """Train on a uniform sample of all history, or of the last n windows."""
    return _data("reservoir", windows, Reservoir(rows=rows))


def balanced(*, by: str, rows: int, windows: int | None = None) -> Data:
    """Train on equally many rows of each value of a column, or with `by="_tags"` of each set of tags."""
    return _data("balanced", windows, Balanced(rows=rows, by=by))


def hard(*, rows: int, windows: int | None = None, floor: float = 0.1) -> Data:
    """Train on a sample in which a row counts by the live model's log-loss on it, plus `floor`."""
    return _data("hard", windows, Hard(rows=rows, floor=floor))


def _data(name: str, windows: int | None, selection: Selection) -> Data:
    if windows is not None and windows < 1:
        raise InvalidPipeline(here(), f"{name}(windows={windows}): at least one window is needed")
    if not isinstance(selection, Whole) and selection.rows < 1:
        raise InvalidPipeline(here(), f"{name}(rows={selection.rows}): at least one row is needed")
    if isinstance(selection, Hard) and selection.floor <= 0:
        raise InvalidPipeline(
            here(), f"hard(floor={selection.floor}): it must be above 0, or sure rows are never seen"
        )
    return Data(windows, selection)


@dataclass(frozen=True)
class Publish:
    """The gate, and over how many of the newest windows it judges."""

    gate: Gate
    windows: int = 1


def better_than_champion(
    metric: Literal["auc", "log_loss", "accuracy"] = "auc",
    *,
    windows: int = 1,
    tolerance: float = 0.0,
    confidence: float = 0.95,
    minimum_rows: int = 100,
    slices: str | tuple[str, ...] = (),
    slice_tolerance: float = 1.0,
    allowances: Mapping[str, float] | None = None,
    trusted: str | tuple[str, ...] = (),
) -> Publish:
    """Publish a challenger that is, with confidence, no worse than the champion on newest, unseen windows.

    With `tolerance=0` it must be better beyond noise. A stream that drifts wants a fresh model that is as
    good: then the tolerance is the loss that it must be shown not to exceed. `schemas.job.Gate` has the rule.

    Args:
        windows: how many of the newest windows both are judged on; more give a surer judgement.
        slices: columns whose values are judged one by one, as is each tag.
        slice_tolerance: how much worse a slice may get; `allowances` says so by slice (`"origin=EWR"`,
            `"tag=night"`) or column (`"origin"`, `"tag"`).
        trusted: features that may tell the label all by themselves.
    """
    return Publish(
        Gate(
            metric=metric,
            tolerance=tolerance,
            confidence=confidence,
            minimum_rows=minimum_rows,
            slices=(slices,) if isinstance(slices, str) else slices,
            slice_tolerance=slice_tolerance,
            allowances=dict(allowances or {}),
            trusted=(trusted,) if isinstance(trusted, str) else trusted,
        ),
        windows,
    )


def gpu(memory_bytes: int = 2 * 2**30, *, time_limit_s: float = 600.0) -> Resources:
    """A share of a GPU; where there is none, the CPU."""
    return Resources(device="auto", gpu_memory_bytes=memory_bytes, time_limit_s=time_limit_s)


@dataclass(frozen=True)
class Sweeping:
    """Every so many trainings, configurations are tried, and the best of them is the challenger."""

    every: int
    vary: Mapping[str, object]
    trials: int
    parallel: int
    measure: Measure | None
    watch: str
    place: Place = field(default_factory=here, compare=False)

    def plan(self, publish: Publish) -> SweepPlan:
        """As it rides in a job's event.

        Raises:
            ValueError: what is varied cannot be read.
        """
        return SweepPlan(
            vary={name: space_of(said) for name, said in self.vary.items()},
            trials=self.trials,
            parallel=self.parallel,
            measure=self.measure or publish.gate.metric,
            watch=self.watch,
        )


def sweep(
    *,
    every: int,
    vary: Mapping[str, object],
    trials: int = 20,
    parallel: int = 2,
    measure: Measure | None = None,
    watch: str = "loss",
) -> Sweeping:
    """Make every so many trainings a sweep: trials are jobs like any others, the best meets the same gate.

    Args:
        every: 12 makes the 12th training one, the 24th, and so on; 1 makes each one.
        vary: parameters and what to try: `"1..8"`, `"log:1e-4..1e-1"`, or a list of values.
        trials: how many configurations.
        parallel: how many are in the queue at once, one step of priority behind other jobs.
        measure: what decides between trials; the gate's metric unless said.
        watch: metric of `ctx.progress`, less is better, by which bad trials are stopped early; "": none is.
    """
    return Sweeping(every, vary, trials, parallel, measure, watch)


@dataclass(frozen=True)
class Canary:
    """A challenger that passes the gate answers a share of the requests before it is made current.

    Services that follow canaries give it that share, by a hash of the requests' ids, and publish what the
    current model answers to the same. Once `pairs` of them have their label, and at 2, 4 and 8 times as many,
    the gate's own rule decides: promoted, withdrawn, or on to the next look. No second challenger is taken
    while one is on trial. A first model has nothing to be compared with, and is current at once.

    Args:
        share: of requests, at most a half.
        pairs: labelled requests of the first look.
        longest: a canary that is not promoted by then is withdrawn, such as "7d".
    """

    share: float = 0.1
    pairs: int = 500
    longest: str = "7d"
    place: Place = field(default_factory=here, compare=False)

    def terms(self) -> CanaryTerms:
        """As they ride in a job's event."""
        return CanaryTerms(share=self.share, pairs=self.pairs, longest_ms=to_ms(self.longest))


@dataclass(frozen=True)
class Training:
    """Model code, data, parameters and resources: the experiment, all but the windows of the moment.

    `code` is "package.module:function"; `model` is the name under which services follow the result
    (the pipeline's own name when empty). With `canary=Canary(…)` a challenger is tried on a share of the
    requests before it is current.
    """

    code: str
    data: Data = field(default_factory=lambda: Data(30))
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    warm_start: bool = False
    minimum_rows: int = 1
    resources: Resources = field(default_factory=gpu)
    model: str = ""
    sweep: Sweeping | None = None
    canary: Canary | None = None
    place: Place = field(default_factory=here, compare=False)

    def __post_init__(self) -> None:
        module, _, function = self.code.partition(":")
        if not module or not function:
            raise InvalidPipeline(
                self.place, f"{self.code!r} names no model code; write 'package.module:train'"
            )


def job_for(
    training: Training,
    publish: Publish,
    window: WindowClosed,
    *,
    spec: FeatureSpec,
    newest_from_ms: Callable[[int, int], int],
    decision_id: str,
    configuration_sha256: str,
    requested_ms: int,
    excluded: Sequence[Window] = (),
    training_number: int = 0,
) -> JobRequested:
    """The job that a yes on `window` asks for. The same window and exclusions give the same job.

    A window that lies wholly within an excluded span does not count as one of the newest.

    Args:
        newest_from_ms: gives, of a count and a time, where the newest so many windows start that end by then.
        training_number: which of the pipeline's trainings it is, from 1; 0: of none, and so no sweep.
    """
    model = training.model or window.pipeline
    end_ms = window.window.end_ms

    def from_ms(count: int, until_ms: int) -> int:
        return _counting_from_ms(newest_from_ms, count, until_ms, excluded)

    judged_from_ms = from_ms(publish.windows, end_ms)
    windows = training.data.windows

    def rows(start_ms: int, until_ms: int) -> DatasetRange:
        return DatasetRange(
            uri=window.dataset_uri,
            version=window.dataset_version,
            start_ms=start_ms,
            end_ms=until_ms,
            excluded=tuple(sorted(s for s in excluded if s.start_ms < until_ms and s.end_ms > start_ms)),
        )

    experiment = Experiment(
        pipeline=window.pipeline,
        model=model,
        code=training.code,
        training=rows(EARLIEST_MS if windows is None else from_ms(windows, judged_from_ms), judged_from_ms),
        evaluation=rows(judged_from_ms, end_ms),
        spec=spec,
        selection=training.data.selection,
        params=dict(training.params),
        seed=training.seed,
        warm_start=training.warm_start,
        minimum_rows=training.minimum_rows,
        resources=training.resources,
        gate=publish.gate,
        configuration_sha256=configuration_sha256,
    )
    sweeping = training.sweep
    due = sweeping is not None and training_number > 0 and training_number % sweeping.every == 0
    return JobRequested(
        job_id=job_id(model, end_ms, window.window.key),
        experiment=experiment,
        decision_id=decision_id,
        requested_ms=requested_ms,
        why=f"training {training_number}, a sweep as every {sweeping.every}th" if sweeping and due else "",
        sweep=sweeping.plan(publish) if sweeping and due else None,
        canary=training.canary.terms() if training.canary else None,
    )


# A span of a century is no reason to count its seconds.
_MOST_EXCLUDED = 10_000


def _counting_from_ms(
    newest_from_ms: Callable[[int, int], int], count: int, end_ms: int, excluded: Sequence[Window]
) -> int:
    """Where the newest so many windows start that end by then and are not excluded whole."""
    if not excluded:
        return newest_from_ms(count, end_ms)
    start_ms, counted, looked_at = end_ms, 0, 0
    while counted < count and looked_at < count + _MOST_EXCLUDED:
        looked_at += 1
        until_ms, start_ms = start_ms, newest_from_ms(looked_at, end_ms)
        if start_ms == until_ms and looked_at > count:
            break  # there are no more
        counted += not any(s.start_ms <= start_ms and until_ms <= s.end_ms for s in excluded)
    return start_ms


def job_id(model: str, end_ms: int, key: str = "") -> str:
    """Readable and the same for the same window: `flights-20130128T0500`."""
    if key:  # any text: told apart by its digest
        model = f"{model}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    try:
        end = datetime.fromtimestamp(end_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{model}-{end_ms}ms"  # a time that no calendar has, from an event with a wrong one
    exact = "" if end.second == 0 and end.microsecond == 0 else end.strftime("%S") + f"{end_ms % 1000:03d}"
    return f"{model}-{end:%Y%m%dT%H%M}{exact}"


def digest(*parts: object) -> str:
    """SHA-256 over what determines a result."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()
