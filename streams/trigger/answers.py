"""Conditions on the live model's answers, as their labels come: quality, errors by slice, and what both cost.

Each holds the live version against its own first windows: a model that is bad from its beginning is the
gate's to refuse. What they see is counted in the dataset's log (`streams.live`), so the same decision comes
of it whoever makes it. Where nobody answers they cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from schemas.decision import Evaluation
from schemas.window import Window
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms
from streams.live.tally import BINS, PaneTally, Tally
from streams.live.track import FIRST_PANES, Live
from streams.trigger.compare import Judged, check_options, forecast
from streams.trigger.condition import Answer, Condition, Look, Watched
from streams.trigger.statistic import Tested, normal_tail

Quality = Literal["log_loss", "auc"]

_SLACK = 0.5
# Answers that are all alike have no variance; a change of them is sure, and no number is divided by 0.
_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Which windows of the live version are judged, and which of them are its baseline.

    A window is judged once `labelled` of its answers have their label, and no fewer than `minimum_rows`: else
    the first labels to come would speak for all. Its first `windows` that are judged are the baseline.
    """

    windows: int
    labelled: float
    minimum_rows: int

    def parted(self, live: Live) -> tuple[list[PaneTally], list[PaneTally]] | str:
        """Baseline and later windows, or why there are none."""
        if live.version == 0:
            return "no answer of a live model is known yet"
        least = self.minimum_rows
        panes = [
            pane for pane in live.panes
            if pane.whole.labelled >= max(least, 2, self.labelled * pane.whole.answers)
        ]  # fmt: skip
        if len(panes) <= self.windows:
            answers, labels = (
                sum(getattr(pane.whole, of) for pane in live.panes) for of in ("answers", "labelled")
            )
            return (
                f"version {live.version} has {len(panes)} windows to judge by ({least} labels or more, "
                f"for {self.labelled:.0%} of the answers), and the first {self.windows} are its baseline; "
                f"{labels} of {answers} answers have their label"
            )
        return panes[: self.windows], panes[self.windows :]

    def name(self, live: Live, panes: Sequence[PaneTally]) -> str:
        """Of the baseline, for people."""
        span = Window(panes[0].start_ms, panes[-1].start_ms)
        return f"the first {self.windows} windows of version {live.version}, starting {span}"


@dataclass(frozen=True, kw_only=True)
class QualityFalls(Condition):
    """A one-sided CUSUM of the windows' mean loss (or of 1 - AUC), in standard errors over the baseline."""

    text: str
    of: Quality
    least: float
    alpha: float
    baseline: Baseline
    place: Place = field(default_factory=here, compare=False)

    def watched(self) -> Watched:
        return Watched(answers=True)

    def evaluate(self, look: Look) -> Answer:
        threshold = math.log(1 / self.alpha)
        found = self.baseline.parted(look.live)
        if isinstance(found, str):
            return _cannot_say(self.text, threshold, found)
        first, later = found
        measured = [_measured(pane.whole, self.of) for pane in first]
        known = [each for each in measured if each is not None]
        if len(known) < 2:
            return _cannot_say(self.text, threshold, "the baseline's labels are all alike: it has no AUC")
        level, level_error, spread = _level(known)
        sum_, rises, weights = 0.0, [], []
        for pane in later:
            one = _measured(pane.whole, self.of)
            if one is None:
                continue
            value, variance = one
            # The baseline is itself uncertain: what may be its error is no rise.
            z = (value - level - level_error) / math.sqrt(variance + spread)
            sum_ = max(0.0, sum_ + z - _SLACK)
            if sum_ == 0.0:
                rises, weights = [], []
            else:
                rises.append(value - level)
                weights.append(pane.whole.labelled)
        rise = sum(r * w for r, w in zip(rises, weights, strict=True)) / sum(weights) if weights else 0.0
        fired = sum_ >= threshold and rise >= self.least
        worse = "log loss has risen" if self.of == "log_loss" else "AUC has fallen"
        said = f"version {look.live.version}: {worse} by {rise:.4g} over {len(rises)} windows"
        if not fired and sum_ >= threshold:
            said += f"; below {self.least:g}"
        elif not fired:
            said += "; it may be chance"
        evaluation = Evaluation(
            condition=self.text,
            fired=fired,
            score=sum_,
            threshold=threshold,
            reason=said,
            reference=self.baseline.name(look.live, first),
            forecast_windows=0.0 if fired else forecast(look, self.text, sum_, threshold),
            scores={"baseline": level, "rise": rise},
        )
        return Answer(fired, [evaluation])


@dataclass(frozen=True, kw_only=True)
class ErrorBias(Judged):
    """A slice's mean loss moves up from that of all other slices, by a difference of differences."""

    column: str
    baseline: Baseline
    windows: int

    def watched(self) -> Watched:
        return Watched(answers=True, errors=frozenset([self.column]))

    def evaluate(self, look: Look) -> Answer:
        found = self.baseline.parted(look.live)
        if isinstance(found, str):
            return self._cannot_say(found, None)
        first, later = found
        then, now = self._slices(first), self._slices(later[-self.windows :])
        values = sorted({*then, *now})
        name = self.baseline.name(look.live, first)
        if len(values) < 2:
            why = f"a single slice ({values[0]})" if values else "no answer has a slice"
            return self._cannot_say(f"{self.column}: {why}", name)
        tested = {f"{self.column}={value}": self._moved(value, then, now) for value in values}
        return self._judge(look, tested, name)

    def _slices(self, panes: Sequence[PaneTally]) -> dict[str, Tally]:
        whole: dict[str, Tally] = {}
        for pane in panes:
            for value, tally in pane.slices.get(self.column, {}).items():
                whole[value] = whole.get(value, Tally()) + tally
        return whole

    def _moved(self, value: str, then: Mapping[str, Tally], now: Mapping[str, Tally]) -> Tested | str:
        """How far the slice's loss has moved up from the rest's; p one-sided, by Welch's variances (1947)."""
        gaps, variance = [], 0.0
        for slices in (then, now):
            own = slices.get(value, Tally())
            rest = sum((tally for name, tally in slices.items() if name != value), Tally())
            fewest = min(own.labelled, rest.labelled)
            if fewest < max(self.minimum_rows, 2):
                return f"{fewest} labelled answers in it or beside it, fewer than {self.minimum_rows}"
            gaps.append(own.mean_loss - rest.mean_loss)
            variance += sum(max(each.loss_variance, _LEAST_VARIANCE) / each.labelled for each in (own, rest))
        moved = gaps[1] - gaps[0]
        if moved <= 0:
            return 0.0, 1.0
        return moved, normal_tail(moved / math.sqrt(variance)) / 2


@dataclass(frozen=True, kw_only=True)
class WorthIt(Condition):
    """What a training is expected to save, against what trainings have cost."""

    text: str
    per_loss: float
    per_training_second: float
    over_ms: int
    windows: int
    alpha: float
    baseline: Baseline
    place: Place = field(default_factory=here, compare=False)

    def watched(self) -> Watched:
        return Watched(answers=True)

    def evaluate(self, look: Look) -> Answer:
        live = look.live
        found = self.baseline.parted(live)
        if isinstance(found, str):
            return _cannot_say(self.text, None, found)
        if not live.trainings_s:
            return _cannot_say(self.text, None, "no training of this pipeline has been measured yet")
        seconds = sum(live.trainings_s) / len(live.trainings_s)
        price = seconds * self.per_training_second
        first, later = found
        then, now = (sum((p.whole for p in panes), Tally()) for panes in (first, later[-self.windows :]))
        rise = now.mean_loss - then.mean_loss
        error = math.sqrt(sum(each.loss_variance / each.labelled for each in (then, now)))
        sure = max(0.0, rise - NormalDist().inv_cdf(1 - self.alpha) * error)
        answers = _answers_in(self.over_ms, [*first, *later])
        gain = sure * answers * self.per_loss
        fired = gain >= price and gain > 0
        said = (
            f"log loss is {rise:.4g} above the baseline, {sure:.4g} for sure: over {answers:.0f} answers "
            f"that costs {gain:.4g}; a training of {seconds:.3g} s costs {price:.4g}"
        )
        evaluation = Evaluation(
            condition=self.text,
            fired=fired,
            score=gain,
            threshold=price,
            reason=said,
            reference=self.baseline.name(live, first),
            forecast_windows=0.0 if fired else forecast(look, self.text, gain, price),
            scores={"rise": rise, "training_s": seconds},
        )
        return Answer(fired, [evaluation])


def _answers_in(over_ms: int, panes: Sequence[PaneTally]) -> float:
    """Answers that a span is expected to bring, at the pace of these windows."""
    spanned_ms = panes[-1].start_ms - panes[0].start_ms
    return sum(pane.whole.answers for pane in panes[:-1]) * over_ms / spanned_ms


def _measured(tally: Tally, of: Quality) -> tuple[float, float] | None:
    """What rises when a model gets worse, and its variance by sampling; None where it cannot be told."""
    if of == "log_loss":
        return tally.mean_loss, max(tally.loss_variance, _LEAST_VARIANCE) / tally.labelled
    return _one_less_auc(tally)


def _one_less_auc(tally: Tally) -> tuple[float, float] | None:
    """1 - AUC of the scores' bins, ties counted half; variance by Hanley and McNeil (1982)."""
    n, m = sum(tally.negatives), sum(tally.positives)
    if n == 0 or m == 0 or len(tally.positives) != BINS:
        return None
    below, won = 0, 0.0
    for negative, positive in zip(tally.negatives, tally.positives, strict=True):
        won += positive * (below + negative / 2)
        below += negative
    auc = won / (n * m)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (q1 - auc * auc) + (n - 1) * (q2 - auc * auc)
    return 1 - auc, max(variance, auc * (1 - auc) or 1.0 / (n * m)) / (n * m)


def _level(measured: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of a baseline's windows: their mean, its standard error, and the variance between windows.

    The last is what windows differ by beyond sampling, by the method of moments (DerSimonian, Laird, 1986).
    """
    values = [value for value, _ in measured]
    count = len(values)
    mean = sum(values) / count
    within = sum(variance for _, variance in measured) / count
    between = max(0.0, sum((value - mean) ** 2 for value in values) / (count - 1) - within)
    return mean, math.sqrt((within + between) / count), between


def _cannot_say(text: str, threshold: float | None, why: str) -> Answer:
    said = Evaluation(
        condition=text,
        fired=False,
        evaluated=False,
        score=None,
        threshold=threshold,
        reason=f"not evaluated: {why}",
    )
    return Answer(None, [said])


def quality(
    of: Quality = "log_loss",
    *,
    least: float = 0.01,
    alpha: float = 0.005,
    baseline: int = 5,
    labelled: float = 0.8,
    minimum_rows: int = 100,
) -> Condition:
    """The live model answers worse than it did in its own first windows.

    A one-sided CUSUM over windows (Page, 1954): each adds how far its mean lies above the baseline's, in
    standard errors, less a half. It fires at ln(1/alpha), where a steady model is expected to take at least
    1/alpha windows to a false alarm (Lorden, 1971), and once the mean has risen by `least` since it began to.
    It stays so until another version answers: `once(…)` or a cooldown keeps it from asking again and again.

    Args:
        of: mean "log_loss", or "auc" over 50 bins of the score.
        least: smallest rise of log loss, or fall of AUC, that is worth a training.
        alpha: one window in 1/alpha may fire by chance.
        baseline: how many of a version's first windows are what it is held against; 2 to 64.
        labelled: a window is judged once this share of its answers have their label.
        minimum_rows: and no fewer than so many.

    Raises:
        InvalidPipeline: an option cannot be.
    """
    if of not in ("log_loss", "auc"):
        raise InvalidPipeline(here(), f"quality: of={of!r} is nothing to judge; write 'log_loss' or 'auc'")
    check_options("quality", alpha=alpha, least=least, correction="none", minimum_rows=minimum_rows)
    return QualityFalls(
        text=f"quality({of})" if of != "log_loss" else "quality()",
        of=of,
        least=least,
        alpha=alpha,
        baseline=_baseline("quality", baseline, labelled, minimum_rows),
    )


def error_bias(
    column: str,
    *,
    least: float,
    alpha: float,
    correction: str,
    minimum_rows: int,
    windows: int,
    baseline: int,
    labelled: float,
) -> Condition:
    """See `bias(column, of="error")`."""
    return ErrorBias(
        text=f"bias({column!r}, of=error)",
        what="slice",
        alpha=alpha,
        least=least,
        correction=correction,
        minimum_rows=minimum_rows,
        column=column,
        windows=windows,
        baseline=_baseline("bias", baseline, labelled, minimum_rows, newest=windows),
    )


def cost(
    *,
    per_loss: float,
    per_training_second: float,
    over: str,
    alpha: float = 0.005,
    windows: int = 1,
    baseline: int = 5,
    labelled: float = 0.8,
    minimum_rows: int = 100,
) -> Condition:
    """A training is expected to save more than it costs, both in the money, or the energy, that you name.

    What it saves: that the model answers again as in its own first windows, for `over` from now on: the rise
    of its mean log loss that is sure (but for `alpha`, one-sided), times the answers that come in that time,
    times `per_loss`. What it costs: the mean seconds of the pipeline's last five trainings, as the trainer
    measured them, times `per_training_second`. After Žliobaitė, Budka and Stahl, "Towards cost-sensitive
    adaptation: when is it worth updating your predictive model?" (2015).

    Args:
        per_loss: what one answer costs whose log loss is higher by 1.
        per_training_second: what a second of training costs.
        over: how long a new model is expected to serve, such as "7d".
        alpha: chance that a window without any rise is taken for one with some.
        windows: so many of the newest judged windows are held against the baseline.
        baseline, labelled, minimum_rows: as of `quality`.

    Raises:
        InvalidPipeline: an option cannot be.
    """
    check_options("cost", alpha=alpha, least=0.0, correction="none", minimum_rows=minimum_rows)
    if per_loss <= 0 or per_training_second < 0:
        raise InvalidPipeline(
            here(),
            "cost: per_loss must be above 0, and per_training_second not below; name what each is worth",
        )
    return WorthIt(
        text=f"cost(over={over})",
        per_loss=per_loss,
        per_training_second=per_training_second,
        over_ms=to_ms(over),
        windows=windows,
        alpha=alpha,
        baseline=_baseline("cost", baseline, labelled, minimum_rows, newest=windows),
    )


def _baseline(name: str, windows: int, labelled: float, minimum_rows: int, *, newest: int = 1) -> Baseline:
    """What a condition holds its `newest` windows against, once all of it can be."""
    if newest < 1:
        raise InvalidPipeline(here(), f"{name}: windows={newest}; at least the newest one is judged")
    if not 2 <= windows <= FIRST_PANES:
        raise InvalidPipeline(
            here(), f"{name}: baseline={windows}; take 2 to {FIRST_PANES} of the first windows"
        )
    if not 0 < labelled <= 1:
        raise InvalidPipeline(here(), f"{name}: labelled={labelled} is no share; write one such as 0.8")
    return Baseline(windows=windows, labelled=labelled, minimum_rows=minimum_rows)
