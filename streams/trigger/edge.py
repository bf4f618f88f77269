"""Conditions on edge cases: rows of a kind that the live model has seen too few of."""

from __future__ import annotations

from dataclasses import dataclass

from streams.declared import InvalidPipeline, here
from streams.trigger.condition import Condition, Look, Watched
from streams.trigger.pace import Threshold


@dataclass(frozen=True, kw_only=True)
class EdgeCases(Threshold):
    """Rows with a tag since the last yes."""

    tag: str

    def watched(self) -> Watched:
        return Watched(profiles=True)  # tags that look back are counted there

    def score(self, look: Look) -> float:
        before = look.history.tags_since_yes.get(self.tag, 0)
        return float(before + look.window.summary.tags.get(self.tag, 0) + look.profile.tags.get(self.tag, 0))

    def pace(self, look: Look) -> float:
        return self.score(look) / (look.history.windows_since_yes + 1)


def edge_cases(tag: str, *, rows: int) -> Condition:
    """Once the windows closed since the last training hold n rows with that tag.

    The statistic is a plain count of the windows' summaries: rows that came too late are in none of them.
    """
    if rows < 1:
        raise InvalidPipeline(here(), f"edge_cases({tag!r}, rows={rows}) would always fire; write at least 1")
    return EdgeCases(f"edge_cases({tag!r}, rows={rows})", rows, f"rows tagged {tag}", tag=tag)
