"""Conditions on bias: a slice's share, or its label, moves away from the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from schemas.profile import SliceProfile
from streams.declared import InvalidPipeline, here
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
    of: Literal["share", "label"] = "share",
    least: float = 0.05,
    alpha: float = 0.005,
    correction: str = "holm",
    against: Against = TRAINING,
    minimum_rows: int = 50,
) -> Condition:
    """A slice moves away from the rest: in its share of the rows, or in its labels' mean.

    Share by the two-proportion z-test against its share in the reference; labels by the change of the slice's
    gap to all other slices (a difference of differences). Corrected over the slices.

    Args:
        column: a column of the main source whose values are the slices.
        of: "share" of the rows, or the "label" (of 0 and 1).
        least: smallest change, 0 to 1, that counts.
        minimum_rows: slices with fewer rows (or labels, in it and beside it) are not judged.

    Raises:
        InvalidPipeline: an option cannot be.
    """
    if of not in ("share", "label"):
        raise InvalidPipeline(here(), f"bias: of={of!r} is nothing to judge; write 'share' or 'label'")
    check_options("bias", alpha=alpha, least=least, correction=correction, minimum_rows=minimum_rows)
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
