"""Does a canary do as well as the current model, on requests that both answered? A pure function of answers.

It is looked at when `pairs` labelled requests are there, and at 2, 4 and 8 times as many, by the gate's own
statistics (`infra.paired`). Each look has 1 / 4 of the error that the gate's confidence leaves, so that all
looks together have no more than that (Bonferroni's inequality; Dunn, 1961). Boundaries that know how looks
hang together would be a little narrower (Pocock, 1977).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from infra.paired import compare
from schemas.canary import LOOKS, CanaryTerms
from schemas.job import Gate
from schemas.model import CanaryJudged


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a trial stands: what becomes of the canary, why, and the numbers of the newest look."""

    outcome: Literal["goes on", "promoted", "withdrawn"]
    reason: str
    judged: CanaryJudged


def judge(
    truth: np.ndarray, current: np.ndarray, canary: np.ndarray, *, terms: CanaryTerms, gate: Gate
) -> Verdict:
    """Look at the newest of the looks that there are labels for.

    The canary is promoted where the lower bound of its difference does not lie below the gate's `-tolerance`,
    and withdrawn where the upper bound does. At the last look one that is neither is withdrawn.

    Args:
        truth: (N,) of 0 and 1, in the order in which the labels came. A look of n takes the first n, so one
            that is repeated, as after a restart, says the same.
        current, canary: (N,) probabilities that each gave.
    """
    looks = terms.looks()
    reached = [pairs for pairs in looks if pairs <= len(truth)]
    if not reached:
        none = CanaryJudged(look=0, pairs=len(truth))
        return Verdict("goes on", f"{len(truth)} of {looks[0]} requests have their label", none)
    look, n = len(reached), reached[-1]
    confidence = 1 - (1 - gate.confidence) / LOOKS
    comparison = compare(truth[:n], current[:n], canary[:n], metric=gate.metric, confidence=confidence)
    judged = CanaryJudged(look=look, pairs=n, comparison=comparison)
    is_last = look == LOOKS
    if comparison is None:
        said = f"look {look}: the labels of {n} requests are of one class, and {gate.metric} cannot be told"
        return Verdict("withdrawn" if is_last else "goes on", said, judged)
    overall = comparison.overall
    said = (
        f"look {look} of {LOOKS}: {gate.metric} better by {overall.value:+.4f} on {n} requests that both "
        f"answered, with {confidence:.2%} confidence by {overall.low:+.4f} to {overall.high:+.4f} "
        f"(tolerance {gate.tolerance:g})"
    )
    if overall.low >= -gate.tolerance:
        return Verdict("promoted", said, judged)
    if overall.high < -gate.tolerance:
        return Verdict("withdrawn", said, judged)
    return (
        Verdict("withdrawn", f"{said}; it was the last look", judged)
        if is_last
        else Verdict("goes on", said, judged)
    )
