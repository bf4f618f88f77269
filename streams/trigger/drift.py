"""Conditions on drift: the window's columns, or its labels, are distributed otherwise than before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from schemas.profile import ColumnProfile
from streams.declared import InvalidPipeline, here
from streams.summary.sketch import unpack
from streams.trigger.compare import Comparison, check_options
from streams.trigger.condition import Condition, Look, Watched
from streams.trigger.history import Reference
from streams.trigger.reference import TRAINING, Against
from streams.trigger.statistic import (
    Tested,
    category_stability,
    hellinger,
    jensen_shannon,
    kolmogorov_smirnov,
    population_stability,
    two_shares,
)

Distance = Literal["hellinger", "jensen-shannon"]


@dataclass(frozen=True, kw_only=True)
class Drift(Comparison):
    """Distances column by column; no columns named: all of the pipeline's features."""

    columns: tuple[str, ...] = ()
    psi: bool = False
    categories: Distance = "hellinger"

    def watched(self) -> Watched:
        own = Watched(features=not self.columns, columns=frozenset(self.columns))
        return super().watched() | own

    def compare(self, look: Look, reference: Reference) -> Mapping[str, Tested | str]:
        now, then = look.profile.columns, reference.profile.columns
        names: Iterable[str] = self.columns or dict.fromkeys([*then, *now])
        return {name: self._column(then.get(name), now.get(name)) for name in names}

    def _column(  # noqa: PLR0911  (each way out is one reason)
        self, then: ColumnProfile | None, now: ColumnProfile | None
    ) -> Tested | str:
        if then is None or now is None:
            return f"{'the window' if now is None else 'the reference'} has no such column"
        if bool(then.kll) != bool(now.kll) and (then.categories or now.categories):
            return "numbers here and no numbers there: the column has changed its type"
        present_then, present_now = then.rows - then.missing, now.rows - now.missing
        if present_then == present_now == 0:
            return "no values, here and there"
        absence: Tested | None = None
        if then.missing or now.missing:
            absence = two_shares((then.missing, now.missing), (then.rows, now.rows))
        if min(present_then, present_now) < self.minimum_rows:
            if absence is not None and min(then.rows, now.rows) >= self.minimum_rows:
                return absence
            fewer, whose = min((present_then, "the reference"), (present_now, "the window"))
            return f"{fewer} values in {whose}, fewer than {self.minimum_rows}"
        if _constant(then) is not None and _constant(then) == _constant(now) and absence is None:
            return f"constant: always {_constant(now)}"
        tested = self._distance(then, now)
        if absence is None or self.psi:
            return tested
        # Two looks at one column: each counts half (Bonferroni).
        distance, chance = min((tested, absence), key=lambda each: (each[1], -abs(each[0])))
        return distance, min(1.0, 2 * chance)

    def _distance(self, then: ColumnProfile, now: ColumnProfile) -> Tested:
        if then.kll or now.kll:
            reference, sample = unpack(then.kll, then.rank_error), unpack(now.kll, now.rank_error)
            if self.psi:
                return population_stability(reference, sample, (then.missing, now.missing))
            return kolmogorov_smirnov(reference, sample)
        counts = _counts(then, self.psi), _counts(now, self.psi)
        if self.psi:
            return category_stability(*counts)
        return hellinger(*counts) if self.categories == "hellinger" else jensen_shannon(*counts)


class LabelDrift(Drift):
    """The same of the labels that had come when the window closed."""

    def compare(self, look: Look, reference: Reference) -> Mapping[str, Tested | str]:
        then, now = reference.profile.label, look.profile.label
        # How many labels have come by now says how late they are, not how they are.
        return {"label": self._column(then and _present(then), now and _present(now))}


def _present(label: ColumnProfile) -> ColumnProfile:
    return ColumnProfile(
        rows=label.rows - label.missing,
        kll=label.kll,
        rank_error=label.rank_error,
        categories=label.categories,
        other=label.other,
    )


def _counts(column: ColumnProfile, with_missing: bool) -> dict[str, int]:
    counts = {f"={value}": count for value, count in column.categories.items()}
    counts["other"] = column.other
    if with_missing:
        counts["missing"] = column.missing
    return counts


def _constant(column: ColumnProfile) -> str | None:
    """The one value that a column has, if it has one."""
    if column.kll:
        values = unpack(column.kll).values
        return f"{values[0]:g}" if values[0] == values[-1] else None
    return next(iter(column.categories)) if len(column.categories) == 1 and not column.other else None


def drift(
    *columns: str,
    psi: float | None = None,
    least: float | None = None,
    alpha: float = 0.005,
    correction: str = "holm",
    categories: Distance = "hellinger",
    against: Against = TRAINING,
    minimum_rows: int = 50,
) -> Condition:
    """Some column is distributed otherwise than in the reference; by default, any feature than in training.

    Numbers by Kolmogorov-Smirnov on the windows' sketches (`statistic.kolmogorov_smirnov`), categories by
    their Hellinger or Jensen-Shannon distance, both beside the share of rows without a value; with `psi` both
    by the population stability index. At the default settings data without drift fire on fewer than 1 window
    in 100, and a shift of .1 sigma in one of 20 columns on its first window of 100,000 rows
    (`tidemill bench drift` measures both).

    Args:
        columns: columns of the main source, or features; none: all features.
        psi: judge by PSI, and fire from this value on: .1 is some drift, .25 much.
        least: smallest distance, 0 to 1, that is worth a training however sure it is; .02 by default.
        alpha: chance of a false alarm of one window, over all columns.
        correction: "holm" (any false alarm), "benjamini-hochberg" (their share) or "none".
        against: `TRAINING`, `previous(windows=…)` or `span(name, start, end)`.
        minimum_rows: a column with fewer values is not judged.

    Raises:
        InvalidPipeline: an option cannot be.
    """
    if psi is not None and least is not None:
        raise InvalidPipeline(here(), "drift: psi is the least distance already; leave least out")
    reach = psi if psi is not None else 0.02 if least is None else least
    check_options("drift", alpha=alpha, least=reach, correction=correction, minimum_rows=minimum_rows)
    return Drift(
        text=_text("drift", [*map(repr, columns), *([f"psi={psi:g}"] if psi is not None else [])], against),
        what="column",
        alpha=alpha,
        least=reach,
        correction=correction,
        against=against,
        minimum_rows=minimum_rows,
        columns=columns,
        psi=psi is not None,
        categories=categories,
    )


def label_drift(
    *,
    psi: float | None = None,
    least: float = 0.02,
    alpha: float = 0.005,
    categories: Distance = "hellinger",
    against: Against = TRAINING,
    minimum_rows: int = 50,
) -> Condition:
    """The labels are distributed otherwise than in the reference; by the same statistics as `drift`.

    Counts the labels that had come when a window closed, in both: a window's lateness should leave them time.
    """
    reach = least if psi is None else psi
    check_options("label_drift", alpha=alpha, least=reach, correction="none", minimum_rows=minimum_rows)
    return LabelDrift(
        text=_text("label_drift", [f"psi={psi:g}"] if psi is not None else [], against),
        what="label",
        alpha=alpha,
        least=reach,
        correction="none",
        against=against,
        minimum_rows=minimum_rows,
        psi=psi is not None,
        categories=categories,
    )


def _text(name: str, arguments: list[str], against: Against) -> str:
    return f"{name}({', '.join([*arguments, *([against.text] if against.text else [])])})"
