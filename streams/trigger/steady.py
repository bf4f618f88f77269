"""Conditions on another one over time: not again and again for one finding, not for a single window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.decision import Evaluation
from streams.declared import InvalidPipeline, Place, here
from streams.trigger.condition import All, Answer, AtLeast, Condition, Look

_ARMED, _SPENT = "armed", "spent"


@dataclass(frozen=True)
class Hysteresis(Condition):
    """Fires with its condition, then only after the score has been below `release` once."""

    condition: Condition
    release: float
    place: Place = field(default_factory=here, compare=False)

    def parts(self) -> Sequence[Condition]:
        return (self.condition,)

    def evaluate(self, look: Look) -> Answer:
        inner = self.condition.evaluate(look)
        own = inner.parts[0]
        text = f"hysteresis({own.condition}, release={self.release:g})"
        state = look.history.states.get(text, _ARMED)
        if state == _SPENT and own.score is not None and own.score < self.release:
            state = _ARMED
        fired = None if inner.fired is None else inner.fired and state == _ARMED
        if fired:
            said, following = "it fires, and is spent until the score falls", _SPENT
        elif fired is None:
            said, following = own.reason, state
        else:
            said = "spent: it has fired" if state == _SPENT else "armed: it has not fired"
            said += f", and its score has not been below {self.release:g} since" if state == _SPENT else ""
            following = state
        return Answer(fired, [*inner.parts, _about(text, fired, own.score, self.release, said, following)])


@dataclass(frozen=True)
class Sustained(Condition):
    """Fires once its condition has held for so many windows in a row."""

    condition: Condition
    windows: int
    place: Place = field(default_factory=here, compare=False)

    def parts(self) -> Sequence[Condition]:
        return (self.condition,)

    def evaluate(self, look: Look) -> Answer:
        inner = self.condition.evaluate(look)
        text = f"sustained({_name(inner)}, windows={self.windows})"
        before = int(look.history.states.get(text, "0"))
        # A window that cannot be judged neither breaks the row nor lengthens it.
        held = before if inner.fired is None else before + 1 if inner.fired else 0
        fired = None if inner.fired is None else held >= self.windows
        said = f"held for {held} of {self.windows} windows in a row"
        about = _about(text, fired, float(held), float(self.windows), said, str(held))
        return Answer(fired, [*inner.parts, about])


@dataclass(frozen=True)
class Once(Condition):
    """Fires at the first window of those in a row at which its condition does."""

    condition: Condition
    place: Place = field(default_factory=here, compare=False)

    def parts(self) -> Sequence[Condition]:
        return (self.condition,)

    def evaluate(self, look: Look) -> Answer:
        inner = self.condition.evaluate(look)
        text = f"once({_name(inner)})"
        state = look.history.states.get(text, _ARMED)
        fired = None if inner.fired is None else inner.fired and state == _ARMED
        following = state if inner.fired is None else _SPENT if inner.fired else _ARMED
        said = (
            "it fired at a window before, and has since" if inner.fired and not fired else f"{state} before"
        )
        return Answer(fired, [*inner.parts, _about(text, fired, None, None, said, following)])


def _name(inner: Answer) -> str:
    return ", ".join(dict.fromkeys(e.condition for e in inner.parts))


def _about(
    text: str, fired: bool | None, score: float | None, threshold: float | None, said: str, state: str
) -> Evaluation:
    return Evaluation(
        condition=text,
        fired=bool(fired),
        evaluated=fired is not None,
        score=score,
        threshold=threshold,
        reason=said if fired is not None else f"not evaluated: {said}",
        state=state,
    )


def hysteresis(condition: Condition, *, release: float) -> Condition:
    """Once it has fired it is spent, until the condition's score has been below `release`: no flutter.

    The condition must have one score: it is no `&`, `|` or `at_least`.
    """
    if isinstance(condition, All | AtLeast):
        raise InvalidPipeline(here(), "hysteresis needs one score; put it around each condition of its own")
    return Hysteresis(condition, release)


def sustained(condition: Condition, *, windows: int) -> Condition:
    """It has held for n windows in a row: one odd window asks for nothing."""
    if windows < 1:
        raise InvalidPipeline(here(), f"sustained(…, windows={windows}): at least one window is needed")
    return Sustained(condition, windows)


def once(condition: Condition) -> Condition:
    """One finding, one training: it fires again only after a window at which the condition did not hold."""
    return Once(condition)
