"""What holds a window against a reference: from a test for each column or slice to one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.decision import Evaluation
from streams.declared import InvalidPipeline, Place, here
from streams.trigger.condition import Answer, Condition, Look, Watched
from streams.trigger.history import Reference
from streams.trigger.reference import Against
from streams.trigger.statistic import CORRECTIONS, Tested

_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Judged(Condition):
    """Fires when some distance reaches `least` and chance alone hardly ever makes it so large.

    The p-values of all columns, or slices, are corrected for being many; `alpha` bounds the corrected one.
    """

    text: str
    what: str
    alpha: float
    least: float
    correction: str
    minimum_rows: int
    place: Place = field(default_factory=here, compare=False)

    def _judge(self, look: Look, found: Mapping[str, Tested | str], reference: str) -> Answer:
        """The answer, of distance and p-value by column or slice, or why there is none."""
        tested = {name: each for name, each in found.items() if not isinstance(each, str)}
        unsaid = {name: each for name, each in found.items() if isinstance(each, str)}
        left_out = "; ".join(f"{name}: {why}" for name, why in list(unsaid.items())[:_NAMED])
        if not tested:
            return self._cannot_say(left_out or f"there is no {self.what} to judge", reference)
        chances = CORRECTIONS[self.correction]([chance for _, chance in tested.values()])
        judged = {n: (abs(d), p) for (n, (d, _)), p in zip(tested.items(), chances, strict=True)}
        sure = {n: d for n, (d, p) in judged.items() if p <= self.alpha}
        named = max(sure or judged, key=lambda n: (judged[n][0], -judged[n][1], n))
        distance, chance = judged[named]
        fired = bool(sure) and distance >= self.least
        said = f"{named} is {distance:.4g} off, p {chance:.2g} over {len(tested)} ({self.correction})"
        if not fired:
            said += f"; below {self.least:g}" if distance < self.least else "; it may be chance"
        if left_out:
            said += f"; not judged: {left_out}"
        worst = sorted(judged, key=lambda n: (-judged[n][0], n))[:_NAMED]
        return Answer(
            fired,
            [
                Evaluation(
                    condition=self.text,
                    fired=fired,
                    score=distance,
                    threshold=self.least,
                    reason=said,
                    reference=reference,
                    forecast_windows=0.0 if fired else forecast(look, self.text, distance, self.least),
                    scores={name: judged[name][0] for name in worst},
                )
            ],
        )

    def _cannot_say(self, why: str, reference: str | None) -> Answer:
        said = Evaluation(
            condition=self.text,
            fired=False,
            evaluated=False,
            score=None,
            threshold=self.least,
            reason=f"not evaluated: {why}",
            reference=reference,
        )
        return Answer(None, [said])


@dataclass(frozen=True, kw_only=True)
class Comparison(Judged):
    """Holds a window's profile against a reference's."""

    against: Against

    def compare(self, look: Look, reference: Reference) -> Mapping[str, Tested | str]:
        """By column or slice: distance and p-value, or why there is none."""
        raise NotImplementedError

    def watched(self) -> Watched:
        return self.against.watched() | Watched(profiles=True)

    def evaluate(self, look: Look) -> Answer:
        reference = self.against.find(look.history)
        if isinstance(reference, str):
            return self._cannot_say(reference, None)
        if look.window.summary.rows == 0 or look.profile.rows == 0:
            return self._cannot_say("the window has no rows", reference.name)
        return self._judge(look, self.compare(look, reference), reference.name)


def forecast(look: Look, condition: str, score: float, threshold: float) -> float | None:
    """Windows until a straight line through a condition's last scores reaches the threshold."""
    scores = [*look.history.scores.get(condition, ()), score]
    if len(scores) < 3 or score >= threshold:
        return None
    middle = (len(scores) - 1) / 2
    mean = sum(scores) / len(scores)
    rise = sum((i - middle) * (s - mean) for i, s in enumerate(scores))
    rise /= sum((i - middle) ** 2 for i in range(len(scores)))
    return (threshold - score) / rise if rise > 0 else None


def check_options(name: str, *, alpha: float, least: float, correction: str, minimum_rows: int) -> None:
    """Refuse options that no comparison can have.

    Raises:
        InvalidPipeline: with the way out.
    """
    if not 0 < alpha < 1:
        raise InvalidPipeline(here(), f"{name}: alpha={alpha} is no chance of a false alarm; write 0.005")
    if least < 0:
        raise InvalidPipeline(here(), f"{name}: a least distance of {least} is below 0; write 0.02")
    if minimum_rows < 1:
        raise InvalidPipeline(here(), f"{name}: minimum_rows={minimum_rows}; of no rows nothing can be said")
    if correction not in CORRECTIONS:
        known = ", ".join(CORRECTIONS)
        raise InvalidPipeline(here(), f"{name}: there is no correction {correction!r}; there are {known}")
