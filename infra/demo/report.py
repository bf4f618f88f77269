"""What the demo shows at its end: a table, a picture, and one JSON object."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

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


def picture(scores: Scores, path: Path) -> Path:
    """Draw the months as two curves of scores; gives the file's path."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    months = list(scores.by_month)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    styles = {
        "live": ("#0b6e4f", "live: retrained as the stream says", "-", 2.4),
        "static": ("#c8553d", "trained once, on January", "--", 1.8),
        "persistence": ("#7a7a7a", "persistence: late share of the last 3 h", ":", 1.8),
    }
    for axis, measure, better in ((axes[0], "auc", "higher"), (axes[1], "log_loss", "lower")):
        for said, (colour, label, line, width) in styles.items():
            values = [getattr(scores.by_month[m][said], measure) for m in months]
            whole = getattr(scores.total[said], measure)
            axis.plot(
                [m[-2:] for m in months], values, line, color=colour, lw=width, marker="o", ms=4,
                label=f"{label} ({whole:.3f})",
            )  # fmt: skip
        axis.set_title(f"{'AUC' if measure == 'auc' else 'Log-loss'} by month ({better} is better)")
        axis.set_xlabel("month of 2013")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].legend(fontsize=8, frameon=False)
    if scores.by_month:
        low = max(s.log_loss for by in scores.by_month.values() for n, s in by.items() if n != "persistence")
        axes[1].set_ylim(top=max(low * 1.15, 0.6))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
