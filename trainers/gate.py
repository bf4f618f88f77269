"""The gate: is the challenger good enough to be published? A pure function of both models' scores."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.job import Gate
from schemas.model import Scores

_SLICE_ROWS = 30


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
    constant: bool = False,
    champion_changed: bool = False,
) -> Verdict:
    """Compare on the same rows.

    Args:
        champion, challenger: scores on the evaluation rows; None where there were none to score on, or the
            champion could not answer them.
        has_champion: whether a model of this name is live.
        constant: the challenger answers every row alike.
        champion_changed: another model went live than the one that was scored.
    """
    if constant:
        return Verdict(publish=False, reason="the challenger answers every row alike")
    if champion_changed:
        return Verdict(publish=False, reason="another model went live while this one was trained and judged")
    new = None if challenger is None else _better(gate, challenger)
    if challenger is None or challenger.rows < gate.minimum_rows or new is None:
        rows = 0 if challenger is None else challenger.rows
        why = f"the gate has {rows} labelled rows of {gate.minimum_rows}, or one class only"
        if has_champion:
            return Verdict(publish=False, reason=f"{why}: the live model stays")
        return Verdict(publish=gate.first == "publish", reason=f"{why}; there is no live model")
    if not has_champion:
        return Verdict(publish=True, reason=f"first model: {gate.metric} {abs(new):.4f}")
    return _compare(gate, champion, challenger, new)


def _compare(gate: Gate, champion: Scores | None, challenger: Scores, new: float) -> Verdict:
    old = None if champion is None else _better(gate, champion)
    if champion is None or old is None:
        return Verdict(publish=True, reason=f"{gate.metric} {abs(new):.4f}; the live model gives no answer")
    against = f"{gate.metric} {abs(new):.4f} against the live model's {abs(old):.4f}"
    on = f"on {challenger.rows} rows (tolerance {gate.tolerance:g})"
    if new < old - gate.tolerance:
        return Verdict(publish=False, reason=f"{against} {on}")
    if worse := _worse_slice(gate, champion, challenger):
        return Verdict(publish=False, reason=worse)
    return Verdict(publish=True, reason=f"{against} {on}")


def _better(gate: Gate, scores: Scores) -> float | None:
    """The metric, turned so that more is better."""
    value = getattr(scores, gate.metric)
    if value is None or value != value:  # noqa: PLR0124  (NaN is not itself)
        return None
    return -value if gate.metric == "log_loss" else value


def _worse_slice(gate: Gate, champion: Scores, challenger: Scores) -> str | None:
    sign = -1 if gate.metric == "log_loss" else 1
    for name, new in challenger.slices.items():
        old = champion.slices.get(name, {})
        before, after = old.get(gate.metric), new.get(gate.metric)
        if before is None or after is None or (new.get("rows") or 0) < _SLICE_ROWS:
            continue
        if sign * (after - before) < -gate.slice_tolerance:
            return (
                f"slice {name}: {gate.metric} {after:.4f} against the live model's {before:.4f} "
                f"(allowance {gate.slice_tolerance:g})"
            )
    return None
