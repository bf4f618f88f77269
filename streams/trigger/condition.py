"""What a condition is, and how conditions combine: a logic of three values, yes, no and cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from schemas.decision import Evaluation
from schemas.profile import Profile
from schemas.window import WindowClosed
from streams.declared import InvalidPipeline, here
from streams.live.track import Live
from streams.trigger.history import History


@dataclass(frozen=True, slots=True)
class Look:
    """All that a condition sees: the window that closed, its profile, what was before, the live model."""

    window: WindowClosed
    history: History
    profile: Profile = field(default_factory=Profile)
    live: Live = field(default_factory=Live)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a condition fires; None where it cannot say. With every part as it stood."""

    fired: bool | None
    parts: list[Evaluation]


@dataclass(frozen=True, slots=True)
class Watched:
    """What must be known for a condition: of a window's profile, and of the live model's answers.

    `profiles`: whether it reads profiles at all; `features`: all of the pipeline's features; `columns`: those
    by name; `slices`: columns that part rows;
    `references`: spans [start_ms, end_ms) that are remembered by name; `windows`: how many of the newest;
    `answers`: whether it reads how the live model's answers fare; `errors`: columns that part the answers.
    """

    profiles: bool = False
    features: bool = False
    columns: frozenset[str] = frozenset()
    slices: frozenset[str] = frozenset()
    references: tuple[tuple[str, int, int], ...] = ()
    windows: int = 0
    answers: bool = False
    errors: frozenset[str] = frozenset()

    def __or__(self, other: Watched) -> Watched:
        return Watched(
            profiles=self.profiles or other.profiles,
            features=self.features or other.features,
            columns=self.columns | other.columns,
            slices=self.slices | other.slices,
            references=tuple(dict.fromkeys(self.references + other.references)),
            windows=max(self.windows, other.windows),
            answers=self.answers or other.answers,
            errors=self.errors | other.errors,
        )


class Condition:
    """Base of conditions; combine with `&`, `|`, `any_of` and `at_least`. A pure function of what it sees."""

    def evaluate(self, look: Look) -> Answer:
        """Whether it fires on this window, with each part's score beside its threshold. Never raises."""
        raise NotImplementedError

    def parts(self) -> Sequence[Condition]:
        """Conditions that it is made of."""
        return ()

    def watched(self) -> Watched:
        """What it reads of profiles, its parts apart."""
        return Watched()

    def __and__(self, other: Condition) -> Condition:
        return All((self, other))

    def __or__(self, other: Condition) -> Condition:
        return AtLeast(1, (self, other))


def all_parts(condition: Condition) -> Iterator[Condition]:
    """A condition and all that it is made of, however deep."""
    yield condition
    for part in condition.parts():
        yield from all_parts(part)


def watched_by(condition: Condition | None) -> Watched:
    """All that a trigger reads of profiles."""
    whole = Watched()
    for part in all_parts(condition) if condition is not None else ():
        whole |= part.watched()
    return whole


@dataclass(frozen=True)
class All(Condition):
    """Fires when all of its conditions do. One that does not decides it, whatever the others cannot say."""

    conditions: Sequence[Condition]

    def parts(self) -> Sequence[Condition]:
        return self.conditions

    def evaluate(self, look: Look) -> Answer:
        answers = [c.evaluate(look) for c in self.conditions]
        said = [a.fired for a in answers]
        fired = False if False in said else None if None in said else True
        return Answer(fired, [e for a in answers for e in a.parts])


@dataclass(frozen=True)
class AtLeast(Condition):
    """Fires when at least `count` of its conditions do; says no once too few could still."""

    count: int
    conditions: Sequence[Condition]

    def parts(self) -> Sequence[Condition]:
        return self.conditions

    def evaluate(self, look: Look) -> Answer:
        answers = [c.evaluate(look) for c in self.conditions]
        yes = sum(a.fired is True for a in answers)
        unsaid = sum(a.fired is None for a in answers)
        fired = True if yes >= self.count else None if yes + unsaid >= self.count else False
        return Answer(fired, [e for a in answers for e in a.parts])


def any_of(*conditions: Condition) -> Condition:
    """At least one of them."""
    return at_least(1, *conditions)


def at_least(count: int, *conditions: Condition) -> Condition:
    """At least `count` of them."""
    if not 1 <= count <= len(conditions):
        raise InvalidPipeline(
            here(), f"at_least({count}, …) of {len(conditions)} conditions: it can never fire, or always does"
        )
    return AtLeast(count, conditions)


def decide(
    condition: Condition,
    window: WindowClosed,
    history: History,
    profile: Profile | None = None,
    live: Live | None = None,
) -> tuple[bool | None, str, list[Evaluation]]:
    """Verdict (None: not evaluated), its reason in one line, and every part's evaluation."""
    answer = condition.evaluate(Look(window, history, profile or Profile(), live or Live()))
    decisive = [e for e in answer.parts if _said(e) == answer.fired] or answer.parts
    return answer.fired, "; ".join(f"{e.condition}: {e.reason}" for e in decisive), answer.parts


def _said(evaluation: Evaluation) -> bool | None:
    return evaluation.fired if evaluation.evaluated else None
