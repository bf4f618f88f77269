"""Does it grow? A browser goes from view to view of a live page, again and again; both sides are weighed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import psutil

from infra.page.view import SECTIONS
from loadtest.page.browser import Browser

_MIB = 2**20
# What is weighed is bounded, not constant: tables fill to the bounds of the fold, and allocators keep slack.
MOST_PAGE = 1.15
MOST_HEAP = 1.2
_HEAP_SLACK_MIB = 2.0
_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Both sides at one instant, after a collection of the browser's garbage."""

    at_s: float
    round: int
    """How often all views had been looked at by then."""
    view: str
    page_mib: float
    """Resident memory of the page's process."""
    heap_mib: float
    """Used JavaScript heap of the browser's page."""
    nodes: int
    listeners: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The last quarter of the time against the second; the first is left out, in which all of it fills."""

    page_mib: tuple[float, float]
    heap_mib: dict[str, tuple[float, float]]
    """By view: what a view holds depends on its tables."""

    @property
    def page(self) -> float:
        """The page's process: how many times as much."""
        return self.page_mib[1] / self.page_mib[0]

    @property
    def heap(self) -> float:
        """The browser's heap in the view that grew most: how many times as much."""
        return max(after / before for before, after in self.heap_mib.values())

    def holds(self) -> bool:
        """Whether neither side grew by more than what fills and settles."""
        heaps = self.heap_mib.values()
        return self.page <= MOST_PAGE and all(
            after <= before * MOST_HEAP + _HEAP_SLACK_MIB for before, after in heaps
        )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "page": self.page, "heap": self.heap, "holds": self.holds()}


async def watch(
    browser: Browser,
    page: psutil.Process,
    *,
    seconds: float,
    stay_s: float,
    seen: Callable[[Sample], None],
    rounds: int | None = None,
) -> None:
    """Look at every view for `stay_s` seconds, again and again until `seconds` have passed; weigh after each.

    Args:
        browser: has the page open.
        page: the process that serves it.
        seen: is told each sample.
        rounds: end after so many, if that is sooner.

    Raises:
        NotSeen: a view shows nothing.
        psutil.NoSuchProcess: the page's process has ended.
    """
    await browser.command("HeapProfiler.enable")
    await browser.command("Performance.enable")
    began_s, turn = time.monotonic(), 0
    while time.monotonic() - began_s < seconds and (rounds is None or turn < rounds):
        for view in SECTIONS:
            await browser.js(f"location.hash = '{view}'")
            shown = "document.getElementById('main').dataset"
            await browser.wait(f"{shown}.view === '{view}' && Number({shown}.updates) > 0")
            await asyncio.sleep(stay_s)
            seen(await _weigh(browser, page, at_s=time.monotonic() - began_s, turn=turn, view=view))
        turn += 1


async def _weigh(browser: Browser, page: psutil.Process, *, at_s: float, turn: int, view: str) -> Sample:
    await browser.command("HeapProfiler.collectGarbage")
    metrics = (await browser.command("Performance.getMetrics"))["metrics"]
    by_name = {metric["name"]: metric["value"] for metric in metrics}
    return Sample(
        at_s=round(at_s, 1),
        round=turn,
        view=view,
        page_mib=page.memory_info().rss / _MIB,
        heap_mib=by_name["JSHeapUsedSize"] / _MIB,
        nodes=int(by_name["Nodes"]),
        listeners=int(by_name["JSEventListeners"]),
    )


def growth(samples: Iterable[Sample]) -> Growth | None:
    """How much both sides grew; None of fewer than four rounds, of which nothing can be said."""
    known = list(samples)
    rounds = 1 + max((sample.round for sample in known), default=-1)
    if rounds < _QUARTERS:
        return None
    second = [s for s in known if rounds <= s.round * _QUARTERS < 2 * rounds]
    last = [s for s in known if s.round * _QUARTERS >= (_QUARTERS - 1) * rounds]
    views = [view for view in SECTIONS if any(s.view == view for s in last)]
    return Growth(
        page_mib=(median(s.page_mib for s in second), median(s.page_mib for s in last)),
        heap_mib={
            view: (
                median(s.heap_mib for s in second if s.view == view),
                median(s.heap_mib for s in last if s.view == view),
            )
            for view in views
        },
    )
