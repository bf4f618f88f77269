"""The demo's picture: two curves of scores by month."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from infra.demo.score import Scores

mpl.use("agg")
from matplotlib import pyplot as plt


def draw(scores: Scores, path: Path) -> Path:
    """Draw the months as two curves of scores; gives the file's path."""
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
