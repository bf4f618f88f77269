"""When a model is stale: a pure function of what is known of it and of the bounds that the service chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InvalidConfiguration
from ..model import OverBound


@dataclass(frozen=True, kw_only=True, slots=True)
class StalenessBound:
    """How stale a model may be, and what becomes of questions while it is beyond that.

    A bound of None is none. Staleness that passes a bound begins and ends as an event, whatever `then` is.

    Args:
        age_s: longest time since the model was published, by this machine's clock.
        behind_s: longest time for which a newer version may be known and not held, whyever: it is on its way,
            its store is away, or it was refused.
        unconfirmed_s: longest time since the cluster was last asked for the end of the models' log and all up
            to there was read. Beyond it there may be versions of which nobody here knows.
        then: `serve` answers as before. `flag` answers, and the answer says that it is stale and why. `wait`
            answers once the model is within its bounds again.
        patience_s: of `wait`: who has waited so long is told `StaleModel`. None: for as long as it takes.

    Raises:
        InvalidConfiguration: a bound is no positive number, or `then` is unknown.
    """

    age_s: float | None = None
    behind_s: float | None = None
    unconfirmed_s: float | None = None
    then: Literal["serve", "flag", "wait"] = "flag"
    patience_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("age_s", "behind_s", "unconfirmed_s", "patience_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidConfiguration(f"{name} is {value}; give seconds above 0, or None for no bound")
        if self.then not in ("serve", "flag", "wait"):
            raise InvalidConfiguration(f"a stale model shall {self.then!r}; choose serve, flag or wait")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a held model at one moment, in seconds.

    `behind_s` is None where no newer version is known.
    """

    age_s: float
    behind_s: float | None
    unconfirmed_s: float


def over(known: Known, bound: StalenessBound) -> tuple[OverBound, ...]:
    """The bounds that are passed; none: the model is not stale."""
    return tuple(
        OverBound(bound=kind, for_s=for_s, at_most_s=at_most_s)
        for kind, for_s, at_most_s in _pairs(known, bound)
        if for_s > at_most_s
    )


def next_s(known: Known, bound: StalenessBound) -> float | None:
    """Seconds until the next bound is passed if nothing happens; None: none will be."""
    left = [at_most_s - for_s for _, for_s, at_most_s in _pairs(known, bound) if for_s <= at_most_s]
    return min(left, default=None)


def words(passed: Sequence[OverBound]) -> str:
    """Why a model is stale, for a person."""
    return "; ".join(map(str, passed))


def _pairs(
    known: Known, bound: StalenessBound
) -> list[tuple[Literal["age", "behind", "unconfirmed"], float, float]]:
    found: list[tuple[Literal["age", "behind", "unconfirmed"], float, float]] = []
    if bound.age_s is not None:
        found.append(("age", known.age_s, bound.age_s))
    if bound.behind_s is not None and known.behind_s is not None:
        found.append(("behind", known.behind_s, bound.behind_s))
    if bound.unconfirmed_s is not None:
        found.append(("unconfirmed", known.unconfirmed_s, bound.unconfirmed_s))
    return found
