"""Why a model is as it is, and why there was none: answered from the events alone.

A decision says what every condition saw, its job how the training went, the model's how the gate judged.
This reads those topics once and puts the answers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from schemas import topics
from schemas.contract import Announcement
from schemas.decision import Decision
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.errors import Rejected
from schemas.job import (
    JobAnswered,
    JobFailed,
    JobMerged,
    JobRequested,
    JobSkipped,
    JobStarted,
    JobSucceeded,
)
from schemas.model import CanaryPromoted, CurrentModel, ModelRefused, RolledBack, Scores
from schemas.window import Window

_DAY = timedelta(days=1)


class NothingKnown(Rejected):
    """The events say nothing of that model, version or date."""


JobEnd = JobSucceeded | JobFailed | JobSkipped | JobAnswered | JobMerged


@dataclass(slots=True)
class Told:
    """What the topics say, the newest last; a repeat counts once."""

    decisions: list[Decision] = field(default_factory=list)
    jobs: dict[str, JobRequested] = field(default_factory=dict)
    started: dict[str, JobStarted] = field(default_factory=dict)
    ended: dict[str, JobEnd] = field(default_factory=dict)
    published: list[CurrentModel] = field(default_factory=list)
    refused: dict[str, ModelRefused] = field(default_factory=dict)

    def take(self, said: Announcement) -> None:
        """One more announcement."""
        match said:
            case Decision():
                self.decisions.append(said)
            case JobRequested():
                self.jobs[said.job_id] = said
            case JobStarted():
                self.started[said.job_id] = said
            case JobSucceeded() | JobFailed() | JobSkipped() | JobAnswered() | JobMerged():
                self.ended[said.job_id] = said
            case CurrentModel():
                self.published.append(said)
            case ModelRefused():
                self.refused[said.job_id] = said
            case _:
                pass

    def pipeline_of(self, model: str) -> str:
        """The pipeline that trains a model of that name.

        Raises:
            NothingKnown: no event names such a model or pipeline.
        """
        by_model = {job.experiment.model: job.experiment.pipeline for job in self.jobs.values()}
        if model in by_model:
            return by_model[model]
        pipelines = {decision.pipeline for decision in self.decisions}
        if model in pipelines:
            return model
        known = ", ".join(sorted({*by_model, *pipelines})) or "none yet"
        raise NothingKnown(f"no event tells of a model {model!r}; models and pipelines known: {known}")


async def listen(connection: Connection) -> Told:
    """Read what decisions, jobs and models there have been."""
    told, seen = Told(), set()
    names = (topics.DECISIONS.name, topics.JOBS.name, topics.MODELS.name)
    async for record in read_to_end(connection, dict.fromkeys(names)):
        try:
            envelope = open_record(record.key, record.value, record.headers)
            if envelope.id in seen:
                continue
            seen.add(envelope.id)
            told.take(unwrap(envelope))
        except NotAnAnnouncement:
            continue
    return told


def why(told: Told, model: str, *, version: int | None = None) -> dict[str, Any]:
    """Where a published version of a model comes from: its decision, its training, its gate.

    Args:
        version: None asks for the newest.

    Raises:
        NothingKnown: there is no such model or version.
    """
    own = [event for event in told.published if event.name == model]
    if not own:
        pipeline = told.pipeline_of(model)
        newest = next((d for d in reversed(told.decisions) if d.pipeline == pipeline), None)
        last = f"; the newest decision is {newest.verdict}: {newest.reason}" if newest else ""
        raise NothingKnown(
            f"no model {model!r} has been published yet{last}. Ask with --not DATE for one day"
        )
    found = [event for event in own if version in (None, event.manifest.version)]
    if not found:
        versions = [event.manifest.version for event in own]
        raise NothingKnown(f"model {model!r} has versions {min(versions)} to {max(versions)}, no {version}")
    event = max(found, key=lambda each: each.manifest.version)
    manifest = event.manifest
    lineage = manifest.lineage
    decision = next((d for d in told.decisions if d.event_id() == lineage.decision_id), None)
    return {
        "model": model,
        "version": manifest.version,
        "published": when(manifest.published_ms),
        "because": event.reason
        if isinstance(event, RolledBack | CanaryPromoted)
        else _because(manifest.champion),
        "rolled_back_from": event.from_version if isinstance(event, RolledBack) else None,
        "job_id": lineage.job_id,
        "rows": lineage.rows,
        "dataset_version": lineage.dataset_version,
        "windows": lineage.window_ids,
        "challenger": msgspec.to_builtins(manifest.challenger),
        "champion": msgspec.to_builtins(manifest.champion),
        "decision": None if decision is None else _account(told, decision),
    }


def _because(champion: Scores | None) -> str:
    return "the first model of its name" if champion is None else "it held against the model that was live"


def why_not(told: Told, model: str, date: str) -> list[dict[str, Any]]:
    """What was decided on each window that a day, or an instant, of event time lies in, and what came of it.

    Args:
        date: "2013-01-08" is that day, "2013-01-08T05:00" that instant; UTC where no zone is said.

    Raises:
        NothingKnown: no such model, or no decision on a window there.
    """
    start_ms, end_ms = _span(date)
    pipeline = told.pipeline_of(model)
    own = [d for d in told.decisions if d.pipeline == pipeline]
    there = [d for d in own if d.window.start_ms < end_ms and d.window.end_ms > start_ms]
    if not there and own:
        first, last = min(d.window.start_ms for d in own), max(d.window.end_ms for d in own)
        raise NothingKnown(
            f"pipeline {pipeline} decided on no window of {date}; "
            f"its windows go from {when(first)} to {when(last)}"
        )
    if not there:
        raise NothingKnown(f"pipeline {pipeline} has decided on no window yet")
    return [_account(told, decision) for decision in sorted(there, key=lambda d: d.window)]


def _account(told: Told, decision: Decision) -> dict[str, Any]:
    return {
        "window": {"start": when(decision.window.start_ms), "end": when(decision.window.end_ms)},
        "window_id": f"{decision.pipeline}/{decision.window}",
        "verdict": decision.verdict,
        "reason": decision.reason,
        "evaluations": [msgspec.to_builtins(each) for each in decision.evaluations],
        "training": _window(decision.training),
        "job_id": decision.job_id,
        "outcome": _outcome(told, decision),
    }


def _outcome(told: Told, decision: Decision) -> str:  # noqa: PLR0911  (each way out is one outcome)
    """What came of it, in one line."""
    job_id = decision.job_id
    if job_id is None:
        return "no training was asked for"
    published = [e for e in told.published if e.manifest.lineage.job_id == job_id]
    ended = told.ended.get(job_id)
    if published:
        return f"job {job_id} became version {published[0].manifest.version} of {published[0].name}"
    if job_id in told.refused:
        return f"job {job_id} trained a model that the gate refused: {told.refused[job_id].reason}"
    match ended:
        case JobSkipped():
            return f"job {job_id} was skipped: {ended.reason}"
        case JobFailed():
            return f"job {job_id} failed: {ended.reason}"
        case JobAnswered(earlier_job_id=earlier):
            return f"job {job_id} asked for a training that job {earlier} had done already"
        case JobMerged(into_job_id=into):
            return f"job {job_id} was still waiting when job {into} asked for the same on newer data"
        case JobSucceeded():
            return f"job {job_id} has trained a model; the gate has not spoken yet"
        case _ if job_id in told.started:
            return f"job {job_id} is in training on {told.started[job_id].device}"
        case _:
            return f"job {job_id} waits for a trainer"


def _span(date: str) -> tuple[int, int]:
    try:
        at = datetime.fromisoformat(date)
    except ValueError as error:
        raise NothingKnown(f"{date!r} is no date; write 2013-01-08, or 2013-01-08T05:00") from error
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    start_ms = int(at.timestamp() * 1000)
    is_day = len(date.strip()) == len("2013-01-08")
    return start_ms, start_ms + (int(_DAY.total_seconds() * 1000) if is_day else 1)


def _window(window: Window | None) -> dict[str, str] | None:
    return None if window is None else {"start": when(window.start_ms), "end": when(window.end_ms)}


def when(time_ms: int) -> str:
    """An instant for people: ISO 8601, UTC; one that no calendar has, in milliseconds."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def one_line(evaluation: dict[str, Any]) -> Sequence[str]:
    """Cells of a table for people: condition, verdict, score, threshold, forecast, reason."""
    verdict = "yes" if evaluation["fired"] else "no" if evaluation["evaluated"] else "cannot say"
    forecast = evaluation["forecast_windows"]
    return (
        evaluation["condition"],
        verdict,
        _number(evaluation["score"]),
        _number(evaluation["threshold"]),
        "" if forecast is None or evaluation["fired"] else f"in {forecast:.0f} windows",
        evaluation["reason"],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
