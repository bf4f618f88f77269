"""Conditions on bias: a slice's share, or its label, moves away from the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from schemas.profile import SliceProfile
from streams.declared import InvalidPipeline, here
from streams.trigger.answers import error_bias
from streams.trigger.compare import Comparison, check_options
from streams.trigger.condition import Condition, Look, Watched
from streams.trigger.history import Reference
from streams.trigger.reference import TRAINING, Against
from streams.trigger.statistic import Tested, normal_tail, two_shares

Slices = Mapping[str, SliceProfile]


@dataclass(frozen=True, kw_only=True)
class Bias(Comparison):
    """Every value of a slice column, against the rest."""

    column: str
    of: Literal["share", "label"]

    def watched(self) -> Watched:
        return super().watched() | Watched(slices=frozenset([self.column]))

    def compare(self, look: Look, reference: Reference) -> Mapping[str, Tested | str]:
        then = reference.profile.slices.get(self.column, {})
        now = look.profile.slices.get(self.column, {})
        values = sorted({*then, *now})
        if len(values) < 2:
            return {self.column: f"a single slice ({values[0]})" if values else "no row has a slice"}
        judge = self._share if self.of == "share" else self._label
        return {f"{self.column}={value}": judge(value, then, now) for value in values}

    def _share(self, value: str, then: Slices, now: Slices) -> Tested | str:
        of = then[value].rows if value in then else 0, now[value].rows if value in now else 0
        among = sum(s.rows for s in then.values()), sum(s.rows for s in now.values())
        if min(among) < self.minimum_rows:
            return f"{min(among)} rows, fewer than {self.minimum_rows}"
        return two_shares(of, among)

    def _label(self, value: str, then: Slices, now: Slices) -> Tested | str:
        """How far the slice's gap to the rest has moved; p by the normal distribution of four means."""
        gaps, variance = [], 0.0
        for slices in (then, now):
            own = slices.get(value, SliceProfile(rows=0))
            n = own.labelled, sum(s.labelled for name, s in slices.items() if name != value)
            if min(n) < self.minimum_rows:
                return f"{min(n)} labelled rows in it or beside it, fewer than {self.minimum_rows}"
            total = own.label_sum, sum(s.label_sum for name, s in slices.items() if name != value)
            # Half a row of each kind more (Agresti and Caffo, 2000): a share of 0 or 1 is not certain.
            share = [(t + 0.5) / (k + 1) for t, k in zip(total, n, strict=True)]
            if any(not 0 < s < 1 for s in share):
                return "the labels are not 0 and 1"
            gaps.append(total[0] / n[0] - total[1] / n[1])
            variance += sum(s * (1 - s) / k for s, k in zip(share, n, strict=True))
        moved = gaps[1] - gaps[0]
        return moved, normal_tail(moved / math.sqrt(variance))


def bias(
    column: str,
    *,
    of: Literal["share", "label", "error"] = "share",
    least: float = 0.05,
    alpha: float = 0.005,
    correction: str = "holm",
    against: Against = TRAINING,
    minimum_rows: int = 50,
    windows: int = 1,
    baseline: int = 5,
    labelled: float = 0.8,
) -> Condition:
    """A slice moves away from the rest: in its share of the rows, its labels' mean, or the model's error.

    Share by the two-proportion z-test against its share in the reference; labels by the change of the slice's
    gap to all other slices (a difference of differences). The error is the live model's mean log loss, judged
    in the same way against the version's own first windows; only a slice that gets worse counts. Corrected
    over the slices.

    Args:
        column: a column of the main source whose values are the slices.
        of: "share" of the rows, the "label" (of 0 and 1), or the "error" of the live model's answers.
        least: smallest change that counts: 0 to 1, of an error in log loss.
        minimum_rows: slices with fewer rows (or labels, in it and beside it) are not judged.
        windows: of an error, so many of the newest judged windows are held against the baseline.
        baseline, labelled: of an error, as of `quality`.

    Raises:
        InvalidPipeline: an option cannot be.
    """
    if of not in ("share", "label", "error"):
        raise InvalidPipeline(
            here(), f"bias: of={of!r} is nothing to judge; write 'share', 'label' or 'error'"
        )
    check_options("bias", alpha=alpha, least=least, correction=correction, minimum_rows=minimum_rows)
    if of == "error":
        if against is not TRAINING:
            raise InvalidPipeline(
                here(), "bias of errors is held against the version's own first windows; leave against out"
            )
        return error_bias(
            column,
            least=least,
            alpha=alpha,
            correction=correction,
            minimum_rows=minimum_rows,
            windows=windows,
            baseline=baseline,
            labelled=labelled,
        )
    behind = f", {against.text}" if against.text else ""
    return Bias(
        text=f"bias({column!r}, of={of}{behind})",
        what="slice",
        alpha=alpha,
        least=least,
        correction=correction,
        against=against,
        minimum_rows=minimum_rows,
        column=column,
        of=of,
    )
