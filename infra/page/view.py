"""All that the page shows: one fold over the announcements, of bounded size, whatever comes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

import msgspec

from infra.job_board import OVER, Board, Job
from infra.model_board import signed
from infra.page.decisions import Decisions
from infra.page.letters import Letters
from infra.page.models import ModelNews
from infra.page.recent import Recent
from infra.page.road import Road
from infra.page.windows import Windows
from schemas.alert import AlertRaised
from schemas.dead_letter import DeadLetter, RecordRedriven
from schemas.decision import Decision
from schemas.envelope import Envelope, unwrap
from schemas.job import JobEvent
from schemas.model import (
    CanaryPublished,
    ModelEvent,
    ModelPublished,
    ModelRefused,
    SignedModel,
)
from schemas.signature import TrustedKeys, schema_of
from schemas.standing import PipelineStands
from schemas.window import WindowStatement

Section = Literal["road", "windows", "rules", "letters", "decisions", "jobs", "models", "lineage", "adoption"]
SECTIONS: tuple[Section, ...] = get_args(Section)

# A repeat is dropped by its id as long as it comes within so many events: a restarted announcer repeats at
# most what one version says.
_IDS = 20_000
_JOBS = 200
_SHOWN_JOBS = 60
_CURVES = 20
_POINTS = 120


class View:
    """Folds events; `as_json(section)` is what a view of the page shows, `revision` counts its changes."""

    def __init__(
        self,
        *,
        trusted: Callable[[], TrustedKeys | None] = lambda: None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.road, self.windows, self.letters = Road(), Windows(), Letters()
        self.decisions, self.models = Decisions(), ModelNews()
        self.jobs = Board(most=_JOBS)
        self.ended: Counter[str] = Counter()
        self.requested = 0
        self.revision: Counter[Section] = Counter()
        self._trusted, self._now_ms = trusted, now_ms
        self._ids: Recent[str, None] = Recent(_IDS)

    def note(self, envelope: Envelope, *, written_ms: int, offset: int) -> None:
        """Take in one announcement; a repeat changes nothing.

        Args:
            written_ms: the record's own timestamp.
            offset: of the record on its topic.

        Raises:
            NotAnAnnouncement: it breaks its contract.
        """
        if envelope.id in self._ids:
            return
        event = unwrap(envelope)
        self._ids[envelope.id] = None
        match event:
            case PipelineStands():
                self.road.note(event)
                self.windows.note(event, written_ms)
                self._changed("road", "windows")
            case AlertRaised():
                self.road.note(event)
                self._changed("road")
            case WindowStatement():
                self.windows.note(event, written_ms)
                self._changed("windows", "rules")
            case DeadLetter() | RecordRedriven():
                self.letters.note(event, offset=offset)
                self._changed("letters")
            case Decision():
                self.decisions.note(event)
                self._changed("decisions")
            case JobEvent():
                self._job(envelope.id, event, written_ms)
            case ModelEvent():
                if isinstance(event, ModelPublished | ModelRefused | CanaryPublished):
                    self._job(envelope.id, event, written_ms)
                is_ours = isinstance(event, SignedModel) and signed(
                    envelope.data, self._trusted(), schema_of(event)
                )
                self.models.note(event, trusted=is_ours)
                self._changed("models", "lineage", "adoption")
            case _:
                pass

    def _job(self, event_id: str, event: JobEvent | SignedModel | ModelRefused, written_ms: int) -> None:
        job_id = event.manifest.lineage.job_id if isinstance(event, SignedModel) else event.job_id
        before = self.jobs.jobs.get(job_id)
        was = before.state if before is not None else None
        self.requested += before is None
        self.jobs.note(event_id, event, written_ms)
        now = self.jobs.jobs[job_id].state
        if now != was:
            self.ended[now] += now in OVER
            if was in OVER:
                self.ended[was] -= 1
        self.jobs.forget()
        self._changed("jobs")

    def ends_are(self, ends: dict[tuple[str, int], int]) -> None:
        """Where the raw topics end now."""
        if ends != self.road.ends:
            self.road.ends = ends
            self._changed("road")

    def _changed(self, *sections: Section) -> None:
        self.revision.update(sections)

    def as_json(self, section: Section) -> dict[str, Any]:
        """A section for the page and for programs. Times are epoch ms."""
        sections: dict[Section, Callable[[], dict[str, Any]]] = {
            "road": lambda: self.road.as_json(self._now_ms()),
            "windows": self.windows.as_json,
            "rules": self.windows.rules,
            "letters": self.letters.as_json,
            "decisions": self.decisions.as_json,
            "jobs": self._jobs,
            "models": self.models.as_json,
            "lineage": self._versions,
            "adoption": self.models.adoptions,
        }
        return sections[section]()

    def _versions(self) -> dict[str, Any]:
        return {"models": [_named(row) for row in self.models.board.rows()]}

    def _jobs(self) -> dict[str, Any]:
        now_ms, known = self._now_ms(), list(self.jobs.jobs.values())
        waiting = [job for job in known if not job.is_over]
        over = [job for job in known if job.is_over][::-1]
        shown = [*waiting[:_SHOWN_JOBS], *over[: max(10, _SHOWN_JOBS - len(waiting))]]
        return {
            "requested": self.requested,
            "states": dict(Counter(job.state for job in waiting) + self.ended),
            "jobs": [_job(job, now_ms, with_curve=number < _CURVES) for number, job in enumerate(shown)],
        }

    def lineage(self, name: str, version: int) -> dict[str, Any] | None:
        """A model's manifest, as `tidemill lineage --json` prints it; None if it is not among the newest."""
        manifest = self.models.manifest(name, version)
        return None if manifest is None else msgspec.to_builtins(manifest)


def _job(job: Job, now_ms: int, *, with_curve: bool) -> dict[str, Any]:
    said = job.as_json(now_ms, with_curve=False)
    said["params"] = {name: str(value)[:200] for name, value in list(job.params.items())[:20]}
    curve = job.curve[:: max(1, len(job.curve) // _POINTS)] if with_curve else []
    if curve and curve[-1] is not job.curve[-1]:
        curve.append(job.curve[-1])
    names = list(dict.fromkeys(name for point in curve for name in point.metrics))[:6]
    said["curve"] = {
        "step": [point.step for point in curve],
        "attempt": [point.attempt for point in curve],
        "metrics": {name: [point.metrics.get(name) for point in curve] for name in names},
    }
    return said


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("name", "version", "live", "sha256", "published_ms")}
