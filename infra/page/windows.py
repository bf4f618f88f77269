"""Windows as they fill, close and are amended; drops by rule and tags by share over the newest of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from infra.page.recent import Recent
from schemas.standing import OpenWindow, PipelineStands
from schemas.window import Summary, Window, WindowAmended, WindowClosed, WindowStatement

_PIPELINES = 50
_KEPT = 400
_SHOWN = 120


@dataclass(slots=True)
class _Row:
    said: WindowStatement
    at_ms: int
    amended: int = 0
    late_rows: int = 0


@dataclass(slots=True)
class _Pipeline:
    closed: int = 0
    amended: int = 0
    late_rows: int = 0
    filling: list[OpenWindow] = field(default_factory=list)
    open_windows: int = 0
    dataset_version: int = -1
    rows: Recent[Window, _Row] = field(default_factory=lambda: Recent(_KEPT))


class Windows:
    """The newest windows of each pipeline, and how many there were."""

    def __init__(self) -> None:
        self._pipelines: Recent[str, _Pipeline] = Recent(_PIPELINES)

    def note(self, event: WindowStatement | PipelineStands, at_ms: int) -> None:
        """Take in one event, each once."""
        own = self._pipelines.get(event.pipeline)
        if own is None:
            own = self._pipelines[event.pipeline] = _Pipeline()
        match event:
            case PipelineStands():
                if event.dataset_version >= own.dataset_version:
                    own.dataset_version = event.dataset_version
                    own.filling, own.open_windows = event.filling, event.open_windows
            case WindowClosed():
                own.closed += 1
                own.filling = [each for each in own.filling if each.window != event.window]
                own.rows[event.window] = _Row(event, at_ms)
            case WindowAmended():
                own.amended += 1
                own.late_rows += event.late_rows
                row = own.rows.get(event.window)
                if row is None:
                    row = own.rows[event.window] = _Row(event, at_ms)
                # Of rows that late ones joined the newest account is the whole one.
                row.said, row.amended = event, row.amended + 1
                row.late_rows += event.late_rows
            case _:
                pass

    def as_json(self) -> dict[str, Any]:
        """For the page and for programs."""
        return {"pipelines": [_windows(n, self._pipelines[n]) for n in sorted(self._pipelines)]}

    def rules(self) -> dict[str, Any]:
        """Drops by rule and tags by share, over the newest windows."""
        return {"pipelines": [_rules(n, self._pipelines[n]) for n in sorted(self._pipelines)]}


def _newest(own: _Pipeline) -> list[_Row]:
    return sorted(own.rows.values(), key=lambda row: row.said.window)[-_SHOWN:]


def _windows(name: str, own: _Pipeline) -> dict[str, Any]:
    return {
        "name": name,
        "closed": own.closed,
        "amended": own.amended,
        "late_rows": own.late_rows,
        "open_windows": own.open_windows,
        "filling": [
            {**_span(each.window), "rows": each.rows, "closes_at_ms": each.closes_at_ms}
            for each in own.filling
        ],
        "windows": [
            {
                **_span(row.said.window),
                "rows": row.said.summary.rows,
                "labelled": row.said.labelled,
                "rejected": sum(row.said.summary.rejected.values()),
                "dropped": sum(row.said.summary.dropped.values()),
                "amended": row.amended,
                "late_rows": row.late_rows,
                "dataset_version": row.said.dataset_version,
                "closed_ms": row.at_ms,
            }
            for row in reversed(_newest(own))
        ],
    }


def _rules(name: str, own: _Pipeline) -> dict[str, Any]:
    rows = _newest(own)
    summaries = [row.said.summary for row in rows]
    kept = sum(summary.rows for summary in summaries)
    tags = _total(summaries, "tags")
    return {
        "name": name,
        "windows": len(rows),
        "rows": kept,
        "dropped": _total(summaries, "dropped"),
        "rejected": _total(summaries, "rejected"),
        "tags": {tag: {"rows": n, "share": n / kept if kept else 0.0} for tag, n in tags.items()},
        "start_ms": [row.said.window.start_ms for row in rows],
        "shares": {tag: [_share(s.tags.get(tag, 0), s.rows) for s in summaries] for tag in list(tags)[:8]},
        "refused": [sum(s.dropped.values()) + sum(s.rejected.values()) for s in summaries],
    }


def _total(summaries: list[Summary], what: str) -> dict[str, int]:
    """Counts by name, the most frequent first."""
    total: Counter[str] = Counter()
    for summary in summaries:
        total.update(getattr(summary, what))
    return dict(total.most_common(100))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _span(window: Window) -> dict[str, Any]:
    return {
        "id": str(window),
        "start_ms": window.start_ms,
        "end_ms": window.end_ms,
        "key": window.key,
    }
