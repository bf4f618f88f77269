"""Measures of a binary forecast: what the gate compares, and what the demo reports."""

from __future__ import annotations

import numpy as np
import polars as pl

_TINY = 1e-7


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
    return float(np.mean(log_losses(truth, chance))) if len(truth) else None


def log_losses(truth: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (N,) of each row, chances held off 0 and 1 by 1e-7."""
    sure = np.clip(chance, _TINY, 1 - _TINY)
    return -(truth * np.log(sure) + (1 - truth) * np.log(1 - sure))


def accuracy(truth: np.ndarray, chance: np.ndarray) -> float | None:
    """Share of rows on the right side of one half. None without rows."""
    return float(np.mean((chance >= 0.5) == (truth == 1))) if len(truth) else None


def measures(truth: np.ndarray, chance: np.ndarray) -> dict[str, float | None]:
    """All measures by name."""
    return {
        "auc": auc(truth, chance),
        "log_loss": log_loss(truth, chance),
        "accuracy": accuracy(truth, chance),
    }
