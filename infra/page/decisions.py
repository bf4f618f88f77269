"""Every evaluation of the triggers, with the scores that led to it, by window."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from infra.page.recent import Recent
from schemas.decision import Decision, Evaluation
from schemas.window import Window

_PIPELINES = 50
_KEPT = 400
_SHOWN = 120
_SCORES = 8


@dataclass(slots=True)
class _Pipeline:
    verdicts: Counter[str] = field(default_factory=Counter)
    decisions: Recent[Window, Decision] = field(default_factory=lambda: Recent(_KEPT))


class Decisions:
    """The newest decisions of each pipeline, and how many there were."""

    def __init__(self) -> None:
        self._pipelines: Recent[str, _Pipeline] = Recent(_PIPELINES)

    def note(self, event: Decision) -> None:
        """Take in one decision, each once."""
        own = self._pipelines.get(event.pipeline)
        if own is None:
            own = self._pipelines[event.pipeline] = _Pipeline()
        own.verdicts[event.verdict] += 1
        own.decisions[event.window] = msgspec.structs.replace(
            event, evaluations=[_lean(each) for each in event.evaluations]
        )

    def as_json(self) -> dict[str, Any]:
        """For the page and for programs: newest first, each with the score of every condition."""
        return {"pipelines": [_pipeline(name, self._pipelines[name]) for name in sorted(self._pipelines)]}

    def one(self, pipeline: str, window: str) -> dict[str, Any] | None:
        """One decision in full; None if it is not among the newest."""
        own = self._pipelines.get(pipeline)
        found = next((d for w, d in own.decisions.items() if str(w) == window), None) if own else None
        return None if found is None else msgspec.to_builtins(found)


def _lean(evaluation: Evaluation) -> Evaluation:
    """Without what only the next window asks for, and of many scores the worst."""
    scores = dict(list(evaluation.scores.items())[:_SCORES])
    return msgspec.structs.replace(evaluation, state="", scores=scores)


def _pipeline(name: str, own: _Pipeline) -> dict[str, Any]:
    shown = sorted(own.decisions.values(), key=lambda each: each.window)[-_SHOWN:][::-1]
    conditions = list(dict.fromkeys(e.condition for d in shown for e in d.evaluations))
    return {
        "name": name,
        "verdicts": {verdict: own.verdicts[verdict] for verdict in ("yes", "no", "not_evaluated")},
        "decisions": [
            {
                "window": str(each.window),
                "start_ms": each.window.start_ms,
                "end_ms": each.window.end_ms,
                "verdict": each.verdict,
                "reason": each.reason,
                "job_id": each.job_id,
            }
            for each in shown
        ],
        "start_ms": [each.window.start_ms for each in reversed(shown)],
        "conditions": [
            {
                "condition": condition,
                "scores": [_of(condition, each, "score") for each in reversed(shown)],
                "thresholds": [_of(condition, each, "threshold") for each in reversed(shown)],
            }
            for condition in conditions[:20]
        ],
    }


def _of(condition: str, decision: Decision, what: str) -> float | None:
    found = next((e for e in decision.evaluations if e.condition == condition), None)
    return None if found is None else getattr(found, what)
