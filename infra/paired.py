"""How much better one forecast is than another on the same rows, and how sure one may be of it.

Of AUC: the variance of the difference of two correlated areas by their placements (DeLong, DeLong and
Clarke-Pearson, 1988), found from mid-ranks (Sun and Xu, 2014), without resampling. Of log-loss and accuracy,
which are means over rows: the paired bootstrap (Efron and Tibshirani, 1993), resampling rows with both
forecasts' losses on them; above 20,000 rows the normal limit of the mean, which it no longer differs from.

Differences are turned so that more is better. Bounds are one-sided: each holds at the confidence asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import polars as pl

from infra.measures import log_losses
from schemas.model import Comparison, Difference

REPLICATES = 2_000
_MOST_BOOTSTRAPPED = 20_000
_CHUNK = 2**21


def compare(
    truth: np.ndarray,
    champion: np.ndarray,
    challenger: np.ndarray,
    *,
    metric: str,
    confidence: float,
    slices: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Comparison | None:
    """The difference with its bounds, overall and by slice.

    Args:
        truth: (N,) of 0 and 1.
        champion, challenger: (N,) probabilities.
        metric: "auc", "log_loss" or "accuracy".
        confidence: of the overall bounds; slices share 1 - confidence between them (Bonferroni).
        slices: (N,) masks by name; a slice where the metric does not exist is left out.
        seed: of the resampling. Neither the order of rows nor that of slices changes a bound.

    Returns:
        None where the metric does not exist: fewer than two rows, or of AUC one class only.
    """
    slices = slices or {}
    apart = 1 - (1 - confidence) / max(1, len(slices))
    overall = difference(truth, champion, challenger, metric=metric, confidence=confidence, seed=seed)
    if overall is None:
        return None
    by_slice = {
        name: difference(truth[m], champion[m], challenger[m], metric=metric, confidence=apart, seed=seed)
        for name, m in slices.items()
    }
    return Comparison(
        metric=metric,
        method=method(metric, len(truth)),
        confidence=confidence,
        slice_confidence=apart,
        seed=seed,
        overall=overall,
        slices={name: found for name, found in by_slice.items() if found is not None},
    )


def method(metric: str, rows: int) -> str:
    """Name of how the overall bounds are found."""
    if metric == "auc":
        return "DeLong 1988"
    return "paired bootstrap" if rows <= _MOST_BOOTSTRAPPED else "normal limit of the paired mean"


def difference(
    truth: np.ndarray,
    champion: np.ndarray,
    challenger: np.ndarray,
    *,
    metric: str,
    confidence: float,
    seed: int = 0,
) -> Difference | None:
    """Challenger less champion; None where the metric does not exist.

    Raises:
        ValueError: no such metric.
    """
    if metric == "auc":
        return _of_auc(truth == 1, champion, challenger, confidence)
    if metric == "log_loss":
        gains = log_losses(truth, champion) - log_losses(truth, challenger)
    elif metric == "accuracy":
        right = truth == 1
        gains = ((challenger >= 0.5) == right).astype(float) - ((champion >= 0.5) == right)
    else:
        raise ValueError(f"no metric is called {metric!r}; there are auc, log_loss and accuracy")
    return _of_mean(gains, confidence, seed)


def _of_auc(
    late: np.ndarray, champion: np.ndarray, challenger: np.ndarray, confidence: float
) -> Difference | None:
    positive = int(late.sum())
    negative = len(late) - positive
    if positive == 0 or negative == 0:
        return None
    wins = np.empty((2, positive))  # share of the negatives that each positive stands above
    losses = np.empty((2, negative))  # share of the positives that stand above each negative
    for i, chance in enumerate((champion, challenger)):
        among_all = _midranks(chance)
        wins[i] = (among_all[late] - _midranks(chance[late])) / negative
        losses[i] = 1.0 - (among_all[~late] - _midranks(chance[~late])) / positive
    value = float(wins[1].mean() - wins[0].mean())
    variance = 0.0
    for placements in (wins, losses):
        apart = placements[1] - placements[0]
        if len(apart) > 1:
            variance += float(apart.var(ddof=1)) / len(apart)
        else:
            variance += 1.0  # of a single row nothing is known: an area lies between 0 and 1
    wide = NormalDist().inv_cdf(confidence) * variance**0.5
    return Difference(rows=len(late), value=value, low=value - wide, high=value + wide)


def _midranks(values: np.ndarray) -> np.ndarray:
    return pl.Series(values).rank("average").to_numpy()


def _of_mean(gains: np.ndarray, confidence: float, seed: int) -> Difference | None:
    rows = len(gains)
    if rows < 2:
        return None
    value = float(gains.mean())
    if rows > _MOST_BOOTSTRAPPED:
        wide = NormalDist().inv_cdf(confidence) * float(gains.std(ddof=1)) / rows**0.5
        return Difference(rows=rows, value=value, low=value - wide, high=value + wide)
    gains = np.sort(gains)
    random = np.random.default_rng(seed)
    means = np.empty(REPLICATES)
    step = max(1, _CHUNK // rows)
    for at in range(0, REPLICATES, step):
        drawn = random.integers(0, rows, size=(min(step, REPLICATES - at), rows), dtype=np.uint16)
        means[at : at + len(drawn)] = gains[drawn].mean(axis=1)
    low, high = np.quantile(means, [1 - confidence, confidence])
    return Difference(rows=rows, value=value, low=float(low), high=float(high))
