"""Models for the page: versions, champion against challenger by slice, and who adopted what."""

from __future__ import annotations

from typing import Any

import msgspec

from infra.model_board import Models
from infra.page.recent import Recent
from schemas.model import (
    AdoptionRefused,
    Comparison,
    CurrentModel,
    Manifest,
    ModelAdopted,
    ModelEvent,
    ModelFresh,
    ModelRefused,
    ModelStale,
    Scores,
)

_VERSIONS = 100
_REFUSED = 50
_ADOPTIONS = 300
_WITH_SLICES = 25


class ModelNews:
    """The fold of `tidemill models`, kept to the newest, and what the page draws beside it."""

    def __init__(self) -> None:
        self.board = Models()
        self._refused: Recent[str, ModelRefused] = Recent(_REFUSED)
        self._adoptions: Recent[str, dict[str, Any]] = Recent(_ADOPTIONS)

    def note(self, event: ModelEvent, *, trusted: bool) -> None:
        """Take in one event, each once."""
        self.board.note(event, trusted=trusted)
        match event:
            case CurrentModel():
                self.board.forget(_VERSIONS)
            case ModelRefused():
                self._refused[event.event_id()] = event
            case ModelAdopted():
                self._say(event, "adopted", event.adopted_ms)
            case AdoptionRefused():
                self._say(event, "refused", event.refused_ms, event.reason)
            case ModelStale():
                self._say(event, "stale", event.noted_ms, event.why)
            case ModelFresh():
                self._say(event, "fresh", event.fresh_ms)
            case _:
                pass

    def _say(self, event: ModelEvent, what: str, at_ms: int, reason: str = "") -> None:
        said = {**msgspec.to_builtins(event), "what": what, "at_ms": at_ms, "reason": reason}
        self._adoptions[event.event_id()] = said

    def as_json(self) -> dict[str, Any]:
        """For the page and for programs; `models` is what `tidemill models --json` says."""
        rows = self.board.rows()
        return {
            "models": rows,
            "slices": {
                f"{row['name']}/{row['version']}": slices(m.champion, m.challenger, m.comparison)
                for row in rows[:_WITH_SLICES]
                if (m := self.manifest(row["name"], row["version"])) is not None
            },
            "refused": [
                {
                    "name": each.name,
                    "job_id": each.job_id,
                    "reason": each.reason,
                    "refused_ms": each.refused_ms,
                    "slices": slices(each.champion, each.challenger, each.comparison),
                }
                for each in self._refused.newest(_REFUSED)
            ],
        }

    def adoptions(self) -> dict[str, Any]:
        """Which service answers with which version, whether it is stale there, and how it came to that."""
        rows = self.board.rows()
        live = {row["name"]: row["version"] for row in rows if row["live"]}
        now = [
            {
                "service": service,
                "name": row["name"],
                "version": row["version"],
                "adopted_ms": adopted_ms,
                "live": live.get(row["name"]),
                "stale": row["stale_at"].get(service, ""),
            }
            for row in rows
            for service, adopted_ms in row["adopted_by"].items()
        ]
        return {
            "now": sorted(now, key=lambda each: (each["service"], each["name"])),
            "history": self._adoptions.newest(_ADOPTIONS),
        }

    def manifest(self, name: str, version: int) -> Manifest | None:
        """That version's manifest, of a trusted event if there is one; None if it is not among the newest."""
        return self.board.manifest(name, version)


def slices(
    champion: Scores | None, challenger: Scores | None, comparison: Comparison | None
) -> list[dict[str, Any]]:
    """Overall and slice by slice: both models' scores, and the difference with its bounds where known."""
    metric = comparison.metric if comparison else "auc"
    sides = {"champion": champion, "challenger": challenger}
    names = sorted({name for side in sides.values() if side for name in side.slices})
    found = [
        {
            "slice": "overall",
            **{name: side and getattr(side, metric) for name, side in sides.items()},
            "difference": comparison and msgspec.to_builtins(comparison.overall),
        }
    ]
    for name in names[:100]:
        difference = comparison.slices.get(name) if comparison else None
        found.append(
            {
                "slice": name,
                **{
                    which: side.slices.get(name, {}).get(metric) if side else None
                    for which, side in sides.items()
                },
                "difference": difference and msgspec.to_builtins(difference),
            }
        )
    return [{"metric": metric, **each} for each in found]
