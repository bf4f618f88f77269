"""Windows of event time: what an engineer declares. Which of them close is told by `streams.closing`.

All kinds stand on panes: spans of event time, side by side, each row in exactly one by its time alone. A
commit accounts for its rows by pane, and a window is a run of panes: of one (tumbling), of some (sliding),
or of as many as its rows reach over without a gap (session). So whatever the order, the batches and the
workers, rows of one event time share their fate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl

from schemas.window import Window
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms

# A row is in size / every windows, and a late one amends all of them that have closed.
_MOST_PANES = 200


class Pane(NamedTuple):
    """A span of event time that starts there; for sessions by key, of the rows of that key."""

    start_ms: int
    key: str = ""


def assign(event_time_ms: pl.Expr, *, size_ms: int, offset_ms: int = 0) -> pl.Expr:
    """Start of the half-open span [start, start + size_ms) that holds each event.

    Event time is epoch milliseconds, UTC. Negative times floor, so spans never straddle 1970.
    """
    return (event_time_ms - offset_ms).floordiv(size_ms) * size_ms + offset_ms


class Windowing:
    """What ingest, check and announcements ask of every kind of window.

    `by` is the column whose values have sessions of their own; None: all rows share their windows.
    """

    lateness_ms: int
    pane_ms: int
    offset_ms: int = 0
    by: str | None = None
    place: Place

    def start(self, event_time_ms: pl.Expr) -> pl.Expr:
        """Start of each event's pane."""
        return assign(event_time_ms, size_ms=self.pane_ms, offset_ms=self.offset_ms)

    def late_from_ms(self, pane_start_ms: int) -> int:
        """The watermark from which on a pane's rows are late: a window that holds them may have closed."""
        return pane_start_ms + self.pane_ms + self.lateness_ms

    def is_late(self, event_time_ms: pl.Expr, watermark_ms: int) -> pl.Expr:
        """Whether each event comes late at that watermark."""
        return self.start(event_time_ms) + (self.pane_ms + self.lateness_ms) <= watermark_ms

    def _read_spans(self, **spans: str) -> None:
        for name, text in spans.items():
            span_ms = 0 if text == "0s" and name in ("lateness", "offset") else to_ms(text)
            object.__setattr__(self, f"{name}_ms", span_ms)


@dataclass(frozen=True)
class Sliding(Windowing):
    """Windows of one size that begin one `every` after the other: each row is in size / every of them.

    `size` is a multiple of `every`. A window closes when the watermark passes end + lateness. `offset`
    moves the boundaries, such as "5h" for days that begin at midnight in New York's winter.
    """

    size: str
    every: str
    lateness: str = "0s"
    offset: str = "0s"
    place: Place = field(default_factory=here, compare=False)
    size_ms: int = field(init=False)
    pane_ms: int = field(init=False)
    lateness_ms: int = field(init=False)
    offset_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self._read_spans(size=self.size, pane=self.every, lateness=self.lateness, offset=self.offset)
        if self.lateness_ms > self.size_ms:
            raise InvalidPipeline(
                self.place,
                f"the window's lateness ({self.lateness}) is longer than the window itself ({self.size}); "
                "rows would wait for more than a window: lengthen the window or shorten the lateness",
            )
        if self.size_ms % self.pane_ms:
            raise InvalidPipeline(
                self.place,
                f"the window's size ({self.size}) is no multiple of every ({self.every}); "
                "choose an every that divides the size",
            )
        if self.size_ms > _MOST_PANES * self.pane_ms:
            raise InvalidPipeline(
                self.place,
                f"each row would be in {self.size_ms // self.pane_ms} windows (size {self.size}, every "
                f"{self.every}); at most {_MOST_PANES} are allowed: lengthen every or shorten the size",
            )

    def window(self, start_ms: int) -> Window:
        """The window that starts there."""
        return Window(start_ms=start_ms, end_ms=start_ms + self.size_ms)

    def closes_at_ms(self, start_ms: int) -> int:
        """The watermark at which the window that starts there closes."""
        return start_ms + self.size_ms + self.lateness_ms

    def starts_over(
        self, pane_start_ms: int, *, closing_after_ms: int | None, closing_by_ms: int
    ) -> Iterable[int]:
        """Starts of the windows that hold a pane and close in (closing_after, closing_by], oldest first."""
        first_ms = pane_start_ms + self.pane_ms - self.size_ms
        if closing_after_ms is not None:
            # The first boundary whose window closes later than that.
            passed = (closing_after_ms - self.closes_at_ms(first_ms)) // self.pane_ms + 1
            first_ms += max(passed, 0) * self.pane_ms
        last_ms = min(pane_start_ms, closing_by_ms - self.size_ms - self.lateness_ms)
        return range(first_ms, last_ms + 1, self.pane_ms)


class Tumbling(Sliding):
    """Windows of one size, side by side. A window closes when the watermark passes end + lateness.

    `offset` moves the boundaries, such as "5h" for days that begin at midnight in New York's winter.
    """

    def __init__(
        self, size: str, lateness: str = "0s", offset: str = "0s", *, place: Place | None = None
    ) -> None:
        super().__init__(size, size, lateness, offset, place or here())


@dataclass(frozen=True)
class Session(Windowing):
    """Rows that follow each other with less than `gap` between them: the window [first, last + gap).

    With `by`, each value of that column has sessions of its own; a null counts as the empty value. A session
    closes when the watermark is so far that no row that is in time can still lengthen or join it: lateness
    and at most two gaps after its last row. One that goes on for `longest` is cut there, so that a stream
    that never rests has windows, too.

    Panes are as long as the gap: two rows of one pane are always of one session, those of two panes with an
    empty one between never. So first and last row of each pane are all that need be known.
    """

    gap: str
    by: str | None = None
    lateness: str = "0s"
    longest: str = "1d"
    place: Place = field(default_factory=here, compare=False)
    pane_ms: int = field(init=False)
    lateness_ms: int = field(init=False)
    longest_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self._read_spans(pane=self.gap, lateness=self.lateness, longest=self.longest)
        if self.longest_ms < self.pane_ms:
            raise InvalidPipeline(
                self.place,
                f"a session is cut after {self.longest}, which is shorter than its gap ({self.gap}); "
                "lengthen longest",
            )

    @property
    def most_panes(self) -> int:
        """Of how many panes the longest session is."""
        return -(-self.longest_ms // self.pane_ms)
