"""What a window is held against: the data of the last training, the windows just before, or a named span."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from streams.declared import InvalidPipeline, here
from streams.trigger.condition import Watched
from streams.trigger.history import History, Reference


@dataclass(frozen=True)
class OfTraining:
    """The windows that the last training was asked to train on."""

    text: str = ""

    def find(self, history: History) -> Reference | str:
        """The reference, or why there is none."""
        if history.last_yes_end_ms is None:
            return "no training yet, so there is no reference"
        if history.trained_on is None:
            return f"no profile of the windows that the last training saw ({history.trained}) is known"
        return history.trained_on

    def watched(self) -> Watched:
        """What must be remembered for it."""
        return Watched()


@dataclass(frozen=True)
class Previous:
    """The n windows before this one."""

    windows: int

    @property
    def text(self) -> str:
        """As it stands in a condition's name."""
        return f"previous(windows={self.windows})"

    def find(self, history: History) -> Reference | str:
        """The reference, or why there is none."""
        if history.windows < self.windows or len(history.recent) < self.windows:
            return f"{len(history.recent)} windows closed before, {self.windows} are the reference"
        found = history.newest(self.windows)
        return found if found is not None else "no window before this one has a profile"

    def watched(self) -> Watched:
        """What must be remembered for it."""
        return Watched(windows=self.windows)


@dataclass(frozen=True)
class Span:
    """The windows of a span of event time, by a name for people."""

    name: str
    start_ms: int
    end_ms: int

    @property
    def text(self) -> str:
        """As it stands in a condition's name."""
        return f"span({self.name})"

    def find(self, history: History) -> Reference | str:
        """The reference, or why there is none."""
        return history.named.get(self.name, f"span {self.name!r} has not passed yet, or had no window")

    def watched(self) -> Watched:
        """What must be remembered for it."""
        return Watched(references=((self.name, self.start_ms, self.end_ms),))


Against = OfTraining | Previous | Span

TRAINING = OfTraining()


def previous(*, windows: int) -> Previous:
    """The n windows before the one that is judged."""
    if windows < 1:
        raise InvalidPipeline(here(), f"previous(windows={windows}): at least one window is needed")
    return Previous(windows)


def span(name: str, start: str, end: str) -> Span:
    """The windows within [start, end), dates or times as ISO 8601 writes them, UTC where none is said."""
    bounds = []
    for said in (start, end):
        try:
            at = datetime.fromisoformat(said)
        except ValueError as error:
            raise InvalidPipeline(here(), f"span {name!r}: {said!r} is no date; write 2013-01-31") from error
        bounds.append(int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000))
    if bounds[0] >= bounds[1]:
        raise InvalidPipeline(here(), f"span {name!r} ends at {end}, before it begins; swap the two")
    return Span(name, bounds[0], bounds[1])
