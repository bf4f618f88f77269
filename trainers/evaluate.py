"""How good a model is on rows that it has not seen: overall and by slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from schemas.model import Scores

_TINY = 1e-7
_MOST_VALUES = 50


def auc(truth: np.ndarray, chance: np.ndarray) -> float | None:
    """Area under the ROC curve by ranks, ties counted half (Mann and Whitney, 1947).

    Args:
        truth: (N,) of 0 and 1.
        chance: (N,) scores; only their order counts.

    Returns:
        None where one of the classes is absent.
    """
    positive = int(truth.sum())
    negative = len(truth) - positive
    if positive == 0 or negative == 0:
        return None
    ranks = pl.Series(chance).rank("average").to_numpy()
    return float((ranks[truth == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def log_loss(truth: np.ndarray, chance: np.ndarray) -> float | None:
    """Mean negative log-likelihood, chances held off 0 and 1 by 1e-7. None without rows."""
    if len(truth) == 0:
        return None
    sure = np.clip(chance, _TINY, 1 - _TINY)
    return float(-np.mean(truth * np.log(sure) + (1 - truth) * np.log(1 - sure)))


def accuracy(truth: np.ndarray, chance: np.ndarray) -> float | None:
    """Share of rows on the right side of one half. None without rows."""
    return float(np.mean((chance >= 0.5) == (truth == 1))) if len(truth) else None


def is_constant(chance: np.ndarray) -> bool:
    """Whether every row got the same answer: such a model has learnt nothing, or has lost it."""
    return len(chance) > 1 and float(np.ptp(chance)) <= 1e-6 * float(np.max(chance))


def measures(truth: np.ndarray, chance: np.ndarray) -> dict[str, float | None]:
    """All measures by name."""
    return {
        "auc": auc(truth, chance),
        "log_loss": log_loss(truth, chance),
        "accuracy": accuracy(truth, chance),
    }


def score(rows: pl.DataFrame, label: str, chance: np.ndarray, *, slices: Sequence[str] = ()) -> Scores:
    """Scores on labelled rows, and by the most frequent values of each slice column."""
    truth = rows.get_column(label).cast(pl.Float64).to_numpy()
    by_slice: dict[str, dict[str, float | None]] = {}
    for column in slices:
        values = rows.get_column(column)
        for value in values.value_counts(sort=True).get_column(column).head(_MOST_VALUES).drop_nulls():
            mine = (values == value).fill_null(value=False).to_numpy()
            by_slice[f"{column}={value}"] = {"rows": float(mine.sum()), **measures(truth[mine], chance[mine])}
    return Scores(rows=len(truth), slices=by_slice, **measures(truth, chance))
