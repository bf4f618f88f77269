"""Windows of event time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from schemas.window import Window
from streams.declared import InvalidPipeline, Place, here
from streams.duration import to_ms


def assign(event_time_ms: pl.Expr, *, size_ms: int, offset_ms: int = 0) -> pl.Expr:
    """Start of the half-open window [start, start + size_ms) that holds each event.

    Event time is epoch milliseconds, UTC. Negative times floor, so windows never straddle 1970.
    """
    return (event_time_ms - offset_ms).floordiv(size_ms) * size_ms + offset_ms


@dataclass(frozen=True)
class Tumbling:
    """Windows of one size, side by side. A window closes when the watermark passes end + lateness.

    `offset` moves the boundaries, such as "5h" for days that begin at midnight in New York's winter.
    """

    size: str
    lateness: str = "0s"
    offset: str = "0s"
    place: Place = field(default_factory=here, compare=False)
    size_ms: int = field(init=False)
    lateness_ms: int = field(init=False)
    offset_ms: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("size", "lateness", "offset"):
            text = getattr(self, name)
            span_ms = 0 if text == "0s" and name != "size" else to_ms(text)
            object.__setattr__(self, f"{name}_ms", span_ms)
        if self.lateness_ms > self.size_ms:
            raise InvalidPipeline(
                self.place,
                f"the window's lateness ({self.lateness}) is longer than the window itself ({self.size}); "
                "rows would wait for more than a window: lengthen the window or shorten the lateness",
            )

    def start(self, event_time_ms: pl.Expr) -> pl.Expr:
        """Start of each event's window."""
        return assign(event_time_ms, size_ms=self.size_ms, offset_ms=self.offset_ms)

    def window(self, start_ms: int) -> Window:
        """The window that starts there."""
        return Window(start_ms=start_ms, end_ms=start_ms + self.size_ms)

    def closes_at_ms(self, start_ms: int) -> int:
        """The watermark at which the window that starts there closes."""
        return start_ms + self.size_ms + self.lateness_ms

    def closed_by(self, starts_ms: Iterable[int], watermark_ms: int | None) -> list[int]:
        """Those of these windows that the watermark has passed, oldest first."""
        if watermark_ms is None:
            return []
        return sorted(s for s in starts_ms if self.closes_at_ms(s) <= watermark_ms)
