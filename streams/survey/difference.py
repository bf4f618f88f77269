"""What differs between two windows, or between a window then and now: rows, tags, drops, distributions.

Distributions are held against each other by the statistics of `streams.trigger.drift`, at its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from schemas.profile import Profile
from schemas.window import Summary, Window, WindowClosed
from streams.trigger import History
from streams.trigger.condition import Look
from streams.trigger.drift import Drift, drift, label_drift
from streams.trigger.history import Reference
from streams.trigger.statistic import CORRECTIONS, Tested


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: which window, at which version, and what is known of it."""

    window: Window
    version: int
    summary: Summary
    profile: Profile


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A column held against its other self.

    Attributes:
        distance: by the statistic of its kind, 0 to 1; None where it could not be judged.
        p: corrected for the number of columns.
        moved: by more than chance makes it, and by enough to matter.
        why: why it could not be judged.
    """

    column: str
    distance: float | None = None
    p: float | None = None
    moved: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """From the first to the second. Counts by name are pairs, the first's before the second's."""

    rows: tuple[int, int]
    tags: dict[str, tuple[int, int]]
    rejected: dict[str, tuple[int, int]]
    dropped: dict[str, tuple[int, int]]
    columns: list[Moved]


def difference(first: Side, second: Side) -> Difference:
    """What differs between two windows' rows, the most moved columns first."""
    return Difference(
        rows=(first.summary.rows, second.summary.rows),
        tags=_pairs(
            {**first.summary.tags, **first.profile.tags}, {**second.summary.tags, **second.profile.tags}
        ),
        rejected=_pairs(first.summary.rejected, second.summary.rejected),
        dropped=_pairs(first.summary.dropped, second.summary.dropped),
        columns=_moved(first, second),
    )


def _pairs(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (first.get(name, 0), second.get(name, 0)) for name in sorted({*first, *second})}


def _moved(first: Side, second: Side) -> list[Moved]:
    closed = WindowClosed(
        pipeline="",
        window=second.window,
        summary=second.summary,
        labelled=0,
        watermark_ms=second.window.end_ms,
        dataset_uri="",
        dataset_version=second.version,
    )
    look, reference = Look(closed, History(), second.profile), Reference(name="", profile=first.profile)
    judged = cast("Drift", drift())
    found: dict[str, Tested | str] = {}
    found.update(judged.compare(look, reference))
    if first.profile.label is not None and second.profile.label is not None:
        found.update(cast("Drift", label_drift()).compare(look, reference))
    tested = {name: each for name, each in found.items() if not isinstance(each, str)}
    chances = CORRECTIONS[judged.correction]([p for _, p in tested.values()])
    moved = [
        Moved(
            column=name,
            distance=abs(distance),
            p=p,
            moved=p <= judged.alpha and abs(distance) >= judged.least,
        )
        for (name, (distance, _)), p in zip(tested.items(), chances, strict=True)
    ]
    moved.sort(key=lambda each: (not each.moved, -(each.distance or 0.0), each.column))
    return moved + [Moved(column=n, why=each) for n, each in found.items() if isinstance(each, str)]
