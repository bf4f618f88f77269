"""When the windows say: train. Conditions are pure functions of closed windows, and say why either way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from schemas.decision import Evaluation
from schemas.window import WindowClosed
from streams.declared import Place, here
from streams.duration import to_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the conditions may look back on: all windows closed before, since the last yes."""

    windows: int = 0
    windows_since_yes: int = 0
    labelled_since_yes: int = 0
    last_yes_end_ms: int | None = None

    def after(self, window: WindowClosed, *, yes: bool) -> History:
        """The history once that window has been decided on."""
        if yes:
            return History(windows=self.windows + 1, last_yes_end_ms=window.window.end_ms)
        return replace(
            self,
            windows=self.windows + 1,
            windows_since_yes=self.windows_since_yes + 1,
            labelled_since_yes=self.labelled_since_yes + window.labelled,
        )


class Condition:
    """Base of conditions; combine with `&`, `|` and `any_of`."""

    def evaluate(self, window: WindowClosed, history: History) -> tuple[bool, list[Evaluation]]:
        """Whether it fires on this window, with each part's score beside its threshold."""
        raise NotImplementedError

    def __and__(self, other: Condition) -> Condition:
        return All((self, other))

    def __or__(self, other: Condition) -> Condition:
        return AtLeast(1, (self, other))


@dataclass(frozen=True)
class All(Condition):
    """Fires when all of its conditions do."""

    conditions: Sequence[Condition]

    def evaluate(self, window: WindowClosed, history: History) -> tuple[bool, list[Evaluation]]:
        answers = [c.evaluate(window, history) for c in self.conditions]
        return all(fired for fired, _ in answers), [e for _, parts in answers for e in parts]


@dataclass(frozen=True)
class AtLeast(Condition):
    """Fires when at least `count` of its conditions do."""

    count: int
    conditions: Sequence[Condition]

    def evaluate(self, window: WindowClosed, history: History) -> tuple[bool, list[Evaluation]]:
        answers = [c.evaluate(window, history) for c in self.conditions]
        return sum(fired for fired, _ in answers) >= self.count, [e for _, parts in answers for e in parts]


@dataclass(frozen=True)
class _Threshold(Condition):
    """A score of the history, against a threshold that it must reach."""

    text: str
    threshold: float
    unit: str
    place: Place = field(default_factory=here, compare=False)

    def score(self, window: WindowClosed, history: History) -> float | None:
        raise NotImplementedError

    def evaluate(self, window: WindowClosed, history: History) -> tuple[bool, list[Evaluation]]:
        score = self.score(window, history)
        fired = score is None or score >= self.threshold
        said = "no training yet" if score is None else f"{score:g} of {self.threshold:g} {self.unit}"
        evaluation = Evaluation(
            condition=self.text, fired=fired, score=score, threshold=self.threshold, reason=said
        )
        return fired, [evaluation]


class Every(_Threshold):
    def score(self, window: WindowClosed, history: History) -> float:  # noqa: ARG002
        return float(history.windows_since_yes + 1)


class Seen(_Threshold):
    def score(self, window: WindowClosed, history: History) -> float:  # noqa: ARG002
        return float(history.windows + 1)


class Labelled(_Threshold):
    def score(self, window: WindowClosed, history: History) -> float:
        return float(history.labelled_since_yes + window.labelled)


class Cooldown(_Threshold):
    def score(self, window: WindowClosed, history: History) -> float | None:
        if history.last_yes_end_ms is None:
            return None
        return (window.window.end_ms - history.last_yes_end_ms) / 1000


def every(*, windows: int) -> Condition:
    """Every n closed windows since the last training was asked for."""
    return Every(f"every(windows={windows})", windows, "windows")


def seen(*, windows: int) -> Condition:
    """Once n windows have closed since the beginning: enough history for a first model."""
    return Seen(f"seen(windows={windows})", windows, "windows")


def labelled(*, rows: int) -> Condition:
    """Once the windows closed since the last training hold n labelled rows."""
    return Labelled(f"labelled(rows={rows})", rows, "labelled rows")


def cooldown(duration: str) -> Condition:
    """At least this much event time since the last training was asked for."""
    return Cooldown(f"cooldown({duration})", to_ms(duration) / 1000, "s since the last training")


def any_of(*conditions: Condition) -> Condition:
    """At least one of them."""
    return AtLeast(1, conditions)


def at_least(count: int, *conditions: Condition) -> Condition:
    """At least `count` of them."""
    return AtLeast(count, conditions)


def decide(
    condition: Condition, window: WindowClosed, history: History
) -> tuple[bool, str, list[Evaluation]]:
    """Verdict, its reason in one line, and every part's evaluation."""
    fired, evaluations = condition.evaluate(window, history)
    decisive = [e for e in evaluations if e.fired == fired] or evaluations
    return fired, "; ".join(f"{e.condition}: {e.reason}" for e in decisive), evaluations
