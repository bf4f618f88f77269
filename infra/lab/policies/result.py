"""Scores against costs: all policies on the same rows, the efficient ones, and the one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from rich.table import Table

from infra.lab.policies.declared import Policy
from infra.lab.policies.recorded import Recorded
from infra.lab.policies.walk import Walked
from infra.measures import measures
from infra.paired import difference
from infra.why import when
from schemas.errors import InvalidConfiguration
from schemas.model import Difference

Measure = Literal["auc", "log_loss", "accuracy"]
CONFIDENCE = 0.95


class NothingToScore(InvalidConfiguration):
    """No row was answered by every policy and has a label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A policy's score and costs. `apart`: the difference to the reference on the same rows; more is better.

    `efficient`: no other is as good for no more.
    """

    policy: Policy
    measures: dict[str, float | None]
    trainings: int
    published: int
    skipped: int
    cpu_s: float
    gpu_s: float
    verdicts: dict[str, int]
    efficient: bool
    apart: Difference | None
    walked: Walked


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a run of the lab found; `standings` in the order of their trainings.

    `rows` of `labelled` rows since `from_ms` were scored; `held_back` names policies that never had a model.
    """

    measure: Measure
    within: float
    reference: str
    best: str
    standings: Sequence[Standing]
    rows: int
    coverage: float
    from_ms: int
    until_ms: int
    windows: int
    held_back: Sequence[str]
    trained: int
    asked: int
    cpu_s_spent: float

    def of(self, name: str) -> Standing:
        """The standing of that policy."""
        return next(each for each in self.standings if each.policy.name == name)

    def as_json(self) -> dict[str, Any]:
        """The whole result as plain data."""
        best = self.of(self.best)
        return {
            "measure": self.measure,
            "within": self.within,
            "reference": self.reference,
            "best": self.best,
            "code": best.policy.code(),
            "rows": self.rows,
            "label_coverage": round(self.coverage, 5),
            "from": when(self.from_ms),
            "until": when(self.until_ms),
            "windows": self.windows,
            "never_had_a_model": list(self.held_back),
            "trainings_asked_for": self.asked,
            "trainings_shared": self.asked - self.trained,
            "cpu_s_of_all": round(self.cpu_s_spent, 1),
            "policies": [_plain(each) for each in self.standings],
        }

    def table(self) -> Table:
        """For a person."""
        title = (
            f"{self.rows:,} rows, {when(self.from_ms)} to {when(self.until_ms)}, each by the model live then"
        )
        table = Table(title=title)
        for name in ("", "policy"):
            table.add_column(name)
        for name in (self.measure, f"against {self.reference}", "trainings", "published", "CPU s", "GPU s"):
            table.add_column(name, justify="right")
        for each in self.standings:
            marks = ("*" if each.efficient else "") + (">" if each.policy.name == self.best else "")
            table.add_row(
                marks,
                each.policy.name,
                f"{each.measures[self.measure]:.4f}",
                "" if each.apart is None else f"{each.apart.value:+.4f} (at least {each.apart.low:+.4f})",
                f"{each.trainings}",
                f"{each.published}",
                f"{each.cpu_s:,.1f}",
                f"{each.gpu_s:,.1f}",
                style="bold" if each.policy.name == self.best else None,
            )
        return table


def _plain(each: Standing) -> dict[str, Any]:
    return {
        "name": each.policy.name,
        "train_when": each.policy.trigger,
        "data": each.policy.data,
        **{name: None if v is None else round(v, 6) for name, v in each.measures.items()},
        "efficient": each.efficient,
        "trainings": each.trainings,
        "published": each.published,
        "skipped": each.skipped,
        "cpu_s": round(each.cpu_s, 2),
        "gpu_s": round(each.gpu_s, 2),
        "decisions": each.verdicts,
        "against_reference": None
        if each.apart is None
        else {"difference": round(each.apart.value, 6), "at_least": round(each.apart.low, 6)},
        "models": [
            {"asked": when(t.asked_ms), "live": t.live_ms and when(t.live_ms), "job_id": t.job_id,
             "run_key": t.run_key, "cpu_s": round(t.cpu_s, 2), "gate": t.reason}
            for t in each.walked.trainings
        ],
    }  # fmt: skip


def judge(
    recorded: Recorded,
    walked: Sequence[Walked],
    *,
    measure: Measure = "auc",
    within: float = 0.003,
    reference: str | None = None,
) -> Result:
    """Score all policies on the rows that each of them answered, and choose.

    A policy is efficient where none has as good a score for no more trainings and CPU-seconds, and is better
    in one of them. The one to take has the fewest trainings among those not worse than the reference by more
    than `within`; of equals the better one.

    Args:
        within: how much of the measure a cheaper policy may lose.
        reference: name of the policy that others are held against; None: the best score.

    Raises:
        NothingToScore: no row has a label and an answer of every policy.
    """
    alive = [each for each in walked if each.live_from_ms is not None]
    held_back = [each.policy.name for each in walked if each.live_from_ms is None]
    if reference in held_back:
        raise NothingToScore(f"{reference} never had a model, so nothing can be held against it")
    label = recorded.rows.get_column(recorded.label).cast(pl.Float64).to_numpy()
    answered = np.logical_and.reduce(
        [~np.isnan(each.scores) for each in alive] or [np.zeros(len(label), bool)]
    )
    scored = answered & ~np.isnan(label)
    if not scored.any() or len(np.unique(label[scored])) < 2:
        raise NothingToScore(
            "no policy had a model while labelled rows came: take a longer span, or begin sooner"
        )
    truth = label[scored]
    found = {each.policy.name: measures(truth, each.scores[scored]) for each in alive}
    worth = {name: _worth(of[measure], measure) for name, of in found.items()}
    against = reference or max(worth, key=lambda name: worth[name])
    costs = {each.policy.name: _costs(each) for each in alive}
    enough = [name for name in worth if worth[name] >= worth[against] - within]
    best = min(enough, key=lambda name: (costs[name][0], -worth[name]))
    base = next(each.scores[scored] for each in alive if each.policy.name == against)
    times_ms = recorded.rows.get_column("_time").to_numpy()
    standings = [
        Standing(
            policy=each.policy,
            measures=found[(name := each.policy.name)],
            trainings=len(each.trainings),
            published=each.published,
            skipped=len(each.skipped),
            cpu_s=costs[name][1],
            gpu_s=sum(t.gpu_s for t in each.trainings),
            verdicts=each.verdicts,
            efficient=not any(_beats(other, name, worth, costs) for other in worth),
            apart=None
            if name == against
            else difference(truth, base, each.scores[scored], metric=measure, confidence=CONFIDENCE, seed=0),
            walked=each,
        )
        for each in alive
    ]
    every = {t.run_key: t.cpu_s for each in walked for t in each.trainings}
    return Result(
        measure=measure,
        within=within,
        reference=against,
        best=best,
        standings=sorted(standings, key=lambda s: (-s.trainings, s.cpu_s)),
        rows=int(scored.sum()),
        coverage=float(scored.sum() / answered.sum()),
        from_ms=int(times_ms[answered].min()),
        until_ms=int(times_ms[answered].max()),
        windows=len(recorded.windows),
        held_back=held_back,
        trained=len(every),
        asked=sum(len(each.trainings) for each in walked),
        cpu_s_spent=sum(every.values()),
    )


def _worth(value: float | None, measure: Measure) -> float:
    """More is better."""
    if value is None:
        return -np.inf
    return -value if measure == "log_loss" else value


def _costs(walked: Walked) -> tuple[int, float]:
    return len(walked.trainings), sum(t.cpu_s for t in walked.trainings)


def _beats(one: str, other: str, worth: dict[str, float], costs: dict[str, tuple[int, float]]) -> bool:
    """Whether `one` is as good for no more, and better in something. Measured seconds vary by a percent."""
    (n, cpu), (m, cost) = costs[one], costs[other]
    as_good = worth[one] >= worth[other] and n <= m and cpu <= cost * 1.01
    return as_good and (worth[one] > worth[other] or n < m)
