"""What the demo says at its end: the counts and latencies, a table, one JSON object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from infra.dataset import Dataset
from infra.demo.observer import Seen
from infra.demo.score import Scores


@dataclass(kw_only=True, slots=True)
class Report:
    """The demo's result, as `--json` prints it."""

    days: int
    events_in: int
    rows_committed: int
    dead_lettered: dict[str, int]
    dropped: int
    windows_closed: int
    windows_amended: int
    decisions: dict[str, int]
    jobs: dict[str, int]
    models: dict[str, int]
    auc: float | None
    log_loss: float | None
    accuracy: float | None
    static_auc: float | None
    static_log_loss: float | None
    persistence_auc: float | None
    persistence_log_loss: float | None
    scored: int
    unanswered: int
    dishonest: int
    close_to_training_ms: dict[str, float | None] = field(default_factory=dict)
    trained_to_adopted_ms: dict[str, float | None] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    wall_s: float
    dataset: str
    artifacts: str
    picture: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain data; NaN never appears, what cannot be told is null."""
        return asdict(self)


def table(scores: Scores) -> Table:
    """Month by month: the live models beside the January model and persistence."""
    shown = Table(title="Was the flight more than 15 minutes late? Asked at its scheduled departure, 2013")
    shown.add_column("month")
    shown.add_column("flights", justify="right")
    for said in ("live", "January's", "persistence"):
        shown.add_column(f"AUC {said}", justify="right", style="bold" if said == "live" else "")
    for said in ("live", "January's", "persistence"):
        shown.add_column(f"log-loss {said}", justify="right", style="bold" if said == "live" else "")
    for month, by in [*scores.by_month.items(), ("all", scores.total)]:
        each = [by["live"], by["static"], by["persistence"]]
        shown.add_row(
            month,
            f"{by['live'].rows:,}",
            *(f"{s.auc:.3f}" for s in each),
            *(f"{s.log_loss:.3f}" for s in each),
            end_section=month != "all" and month == list(scores.by_month)[-1],
        )
    return shown


def summarise(
    seen: Seen,
    scores: Scores,
    dataset: Dataset,
    *,
    days: int,
    events_in: int,
    restarts: Mapping[str, int],
    wall_s: float,
    artifacts: Path,
    picture: Path | None,
) -> Report:
    """Everything that was announced, committed and scored, in one report."""
    rows, dropped = _counted(dataset)
    live, static, persistence = (scores.total[n] for n in ("live", "static", "persistence"))
    return Report(
        days=days,
        events_in=events_in,
        rows_committed=rows,
        dead_lettered=dict(seen.dead_letters),
        dropped=dropped,
        windows_closed=len(seen.windows),
        windows_amended=seen.amended,
        decisions=dict(Counter(d.verdict for d in seen.decisions.values())),
        jobs={"succeeded": len(seen.succeeded), "failed": len(seen.failed), "skipped": len(seen.skipped)},
        models={
            "published": len(seen.published),
            "refused": len(seen.refused),
            "adopted": len(seen.adopted),
        },
        auc=_told(live.auc),
        log_loss=_told(live.log_loss),
        accuracy=_told(live.accuracy),
        static_auc=_told(static.auc),
        static_log_loss=_told(static.log_loss),
        persistence_auc=_told(persistence.auc),
        persistence_log_loss=_told(persistence.log_loss),
        scored=live.rows,
        unanswered=scores.unanswered,
        dishonest=scores.dishonest,
        close_to_training_ms=_spread(_close_to_training(seen)),
        trained_to_adopted_ms=_spread(_trained_to_adopted(seen)),
        restarts=dict(restarts),
        wall_s=round(wall_s, 1),
        dataset=dataset.uri,
        artifacts=str(artifacts),
        picture=str(picture) if picture else None,
    )


def _counted(dataset: Dataset) -> tuple[int, int]:
    """Rows that the dataset holds, and repeats that its commits dropped."""
    rows = pl.scan_delta(dataset.uri).select(pl.len()).collect().item()
    dropped = sum(
        sum(counts["dropped"].values())
        for record in dataset.commits()
        for counts in record.metadata.get("counts", {}).values()
    )
    return rows, dropped


def _told(value: float) -> float | None:
    return None if value != value else round(value, 5)  # noqa: PLR0124  (NaN is not itself)


def _spread(values_ms: list[float]) -> dict[str, float | None]:
    """Median and maximum."""
    ordered = sorted(values_ms)
    if not ordered:
        return {"median": None, "max": None}
    return {"median": ordered[len(ordered) // 2], "max": ordered[-1]}


def _close_to_training(seen: Seen) -> list[float]:
    """From the commit that closed a window to the start of its job's process."""
    return [
        float(event.started_ms - seen.requested[job_id].requested_ms)
        for job_id, event in seen.started.items()
        if job_id in seen.requested
    ]


def _trained_to_adopted(seen: Seen) -> list[float]:
    """From the end of training to the service's adoption."""
    spans = []
    for key, event in seen.adopted.items():
        published = seen.published.get(key)
        done = published and seen.succeeded.get(published.manifest.lineage.job_id)
        if done:
            spans.append(float(event.adopted_ms - done.finished_ms))
    return spans


def show(report: Report, scores: Scores, console: Console, *, as_json: bool) -> None:
    """Print the table and the counts, or one JSON object on standard output."""
    if as_json:
        print(json.dumps(report.as_json()))
        return
    if scores.by_month:
        console.print(table(scores))
    dead = sum(report.dead_lettered.values())
    console.print(
        f"{report.events_in:,} events in = {report.rows_committed:,} rows + {dead:,} dead letters + "
        f"{report.dropped:,} repeats; {report.windows_closed} windows; {report.jobs['succeeded']} trainings; "
        f"{report.models['published']} models published, {report.models['refused']} refused, "
        f"{report.models['adopted']} adopted; {report.wall_s:.0f} s"
    )
    console.print(f"dataset {report.dataset}\nmodels  {report.artifacts}")
    if report.picture:
        console.print(f"picture {report.picture}")
