"""Where in its file an engineer wrote a declaration, so that an error can name the line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from schemas.errors import InvalidConfiguration

_OURS = ("streams.", "dataclasses")
_THEIRS = "streams.pipelines."


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a pipeline's file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class InvalidPipeline(InvalidConfiguration):
    """A pipeline's declaration cannot run as it is written."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place, self.problem = place, problem


def here() -> Place:
    """The line outside Tidemill's own modules from which we were called."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        generated = frame.f_code.co_filename.startswith("<")
        if not generated and (module.startswith(_THEIRS) or not module.startswith(_OURS)):
            break
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, where it stands, and what would be right."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the name that may have been meant, to stand behind an error."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known)[:12])}"
