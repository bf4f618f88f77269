"""The judgement of `tidemill bench page`; that it looks at a live page is in test_page_browser.py."""

from __future__ import annotations

import pytest

from infra.page.view import SECTIONS
from loadtest.page.hold import Growth, Sample, growth


def looked(rounds: int, *, page_mib: float = 0.0, heap_mib: float = 0.0) -> Growth | None:
    """So many rounds over all views, each round heavier by so much than the one before."""
    return growth(
        Sample(
            at_s=turn * 10.0,
            round=turn,
            view=view,
            page_mib=80.0 + turn * page_mib,
            heap_mib=2.0 + turn * heap_mib,
            nodes=500,
            listeners=40,
        )
        for turn in range(rounds)
        for view in SECTIONS
    )


def test_of_fewer_than_four_rounds_nothing_is_said() -> None:
    assert looked(0) is None
    assert looked(3) is None
    assert looked(4) is not None


@pytest.mark.parametrize(
    ("page_mib", "heap_mib", "holds"),
    [(0.0, 0.0, True), (0.1, 0.01, True), (0.5, 0.0, False), (0.0, 0.1, False)],
    ids=["steady", "settles", "the process grows", "the browser grows"],
)
def test_the_last_quarter_is_held_against_the_second(page_mib: float, heap_mib: float, holds: bool) -> None:
    grown = looked(100, page_mib=page_mib, heap_mib=heap_mib)
    assert grown is not None
    assert grown.holds() is holds
    assert grown.page_mib == pytest.approx((80 + 37 * page_mib, 80 + 87 * page_mib))
    assert grown.as_json()["holds"] is holds


def test_one_view_that_grows_is_enough() -> None:
    steady = looked(8)
    assert steady is not None
    heaps = {**steady.heap_mib, "jobs": (2.0, 5.0)}
    assert not Growth(page_mib=steady.page_mib, heap_mib=heaps).holds()
