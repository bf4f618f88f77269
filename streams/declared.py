"""Where in its file an engineer wrote a declaration, so that an error can name the line."""

from __future__ import annotations

import sys
from dataclasses import dataclass

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
