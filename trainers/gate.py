"""The gate: is the challenger good enough to be published? A pure function of both models' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from schemas.job import Gate
from schemas.model import Comparison, Finding, Scores


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to publish, and why in one line with the numbers."""

    publish: bool
    reason: str


def judge(
    gate: Gate,
    *,
    champion: Scores | None,
    challenger: Scores | None,
    has_champion: bool,
    comparison: Comparison | None = None,
    findings: Sequence[Finding] = (),
    champion_changed: bool = False,
) -> Verdict:
    """Compare on the same rows; `schemas.job.Gate` says by which rule.

    Args:
        champion, challenger: scores on the evaluation rows; None where there were none to score on, or the
            champion could not answer them.
        has_champion: whether a model of this name is live.
        comparison: how sure the difference of both is; None where it cannot be told.
        findings: what no honest model has: each refuses it, a first model too.
        champion_changed: another model went live than the one that was scored.
    """
    if findings or champion_changed:
        changed = "another model went live while this one was trained and judged"
        said = [*map(_said, findings), *([changed] if champion_changed else [])]
        return Verdict(publish=False, reason="; ".join(said))
    new = None if challenger is None else _value(gate, challenger)
    if challenger is None or challenger.rows < gate.minimum_rows or new is None:
        rows = 0 if challenger is None else challenger.rows
        why = f"the gate has {rows} labelled rows of {gate.minimum_rows}, or one class only"
        if has_champion:
            return Verdict(publish=False, reason=f"{why}: the live model stays")
        return Verdict(publish=gate.first == "publish", reason=f"{why}; there is no live model")
    if not has_champion:
        return Verdict(publish=True, reason=f"first model: {gate.metric} {new:.4f}")
    old = None if champion is None else _value(gate, champion)
    if old is None or comparison is None:
        return Verdict(publish=True, reason=f"{gate.metric} {new:.4f}; the live model gives no answer")
    return _compare(gate, old, new, comparison)


def _said(finding: Finding) -> str:
    about = "" if finding.check == "constant_answers" else f"{finding.subject}: "
    return about + finding.detail


def _compare(gate: Gate, old: float, new: float, comparison: Comparison) -> Verdict:
    overall = comparison.overall
    said = (
        f"{gate.metric} {new:.4f} against the live model's {old:.4f} on {overall.rows} rows: better by "
        f"{overall.value:+.4f}, with {comparison.confidence:.0%} confidence by at least {overall.low:+.4f} "
        f"(tolerance {gate.tolerance:g})"
    )
    if overall.low < -gate.tolerance:
        return Verdict(publish=False, reason=said)
    if worse := _worse_slices(gate, comparison):
        return Verdict(publish=False, reason="; ".join(worse))
    return Verdict(publish=True, reason=said)


def _value(gate: Gate, scores: Scores) -> float | None:
    value = getattr(scores, gate.metric)
    return None if value is None or isnan(value) else value


def _worse_slices(gate: Gate, comparison: Comparison) -> list[str]:
    """Slices worse by more than their allowance, and not by chance."""
    return [
        f"slice {name}: {gate.metric} better by {slice_.value:+.4f}, with "
        f"{comparison.slice_confidence:.2%} confidence by at most {slice_.high:+.4f}, on {slice_.rows} rows "
        f"(allowance {allowance:g})"
        for name, slice_ in comparison.slices.items()
        if slice_.rows >= gate.slice_rows
        and slice_.value < -(allowance := _allowance(gate, name))
        and slice_.high < 0
    ]


def _allowance(gate: Gate, name: str) -> float:
    """The slice's own, else its column's, else that of all."""
    column = name.partition("=")[0]
    return gate.allowances.get(name, gate.allowances.get(column, gate.slice_tolerance))
