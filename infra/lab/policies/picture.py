"""The lab's picture: score against trainings and against seconds, the frontier, and when models went live."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from infra.lab.policies.result import Result, Standing
from schemas.errors import InvalidConfiguration

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_BEST, _EFFICIENT, _OTHER = "#0b6e4f", "#2f6db5", "#9a9a9a"


def draw(result: Result, path: Path) -> Path:
    """Draw into a PNG or SVG file; gives its path.

    Raises:
        InvalidConfiguration: the file cannot be written, or is of no kind that can be drawn.
    """
    on_gpu = any(each.gpu_s for each in result.standings)
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", sharey=True)
    _scatter(axes[0], result, "trainings", [float(each.trainings) for each in result.standings])
    seconds = [each.gpu_s if on_gpu else each.cpu_s for each in result.standings]
    _scatter(axes[1], result, f"{'GPU' if on_gpu else 'CPU'}-seconds of its trainings", seconds)
    axes[0].set_ylabel(f"{result.measure} of the models live at each instant")
    if result.measure == "log_loss":
        axes[0].invert_yaxis()
    figure.suptitle(
        f"{len(result.standings)} policies on {result.rows:,} rows; {result.best} is the one to take"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"cannot draw into {path}: {error}") from error
    finally:
        plt.close(figure)
    return path


def _scatter(axis: Axes, result: Result, name: str, costs: list[float]) -> None:
    scores = [each.measures[result.measure] or 0.0 for each in result.standings]
    # Policies that trained the same are one point, with all their names.
    points: dict[tuple[float, float], list[Standing]] = {}
    for each, cost, score in zip(result.standings, costs, scores, strict=True):
        points.setdefault((cost, score), []).append(each)
    for (cost, score), those in points.items():
        each = next((s for s in those if s.policy.name == result.best), those[0])
        axis.plot(cost, score, "o", ms=8 if each.efficient else 5, color=_colour(each, result))
        axis.annotate(
            ", ".join(s.policy.name for s in those), (cost, score), xytext=(5, -9),
            textcoords="offset points", fontsize=7, color=_colour(each, result),
        )  # fmt: skip
    front = sorted((c, s) for e, c, s in zip(result.standings, costs, scores, strict=True) if e.efficient)
    axis.plot(*zip(*front, strict=True), "-", lw=1, color=_EFFICIENT, alpha=0.6, label="efficient", zorder=0)
    level = result.of(result.reference).measures[result.measure] or 0.0
    worse = level + result.within if result.measure == "log_loss" else level - result.within
    axis.axhspan(min(level, worse), max(level, worse), color=_BEST, alpha=0.08, lw=0)
    axis.axhline(
        level, ls=":", lw=1, color=_BEST, label=f"{result.reference}; the band is {result.within:g} wide"
    )
    axis.set_xlabel(name)
    axis.grid(alpha=0.25)
    axis.margins(x=0.2)
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="lower right")


def _colour(each: Standing, result: Result) -> str:
    if each.policy.name == result.best:
        return _BEST
    return _EFFICIENT if each.efficient else _OTHER
