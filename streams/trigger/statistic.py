"""The statistics behind the triggers: how far two samples are apart, and how often chance alone does that.

Every p-value is the chance of at least so large a distance between two samples of one distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from streams.summary.sketch import Points

Tested = tuple[float, float]
"""Distance and p-value."""

_BINS = 10
_LEAST_EXPECTED = 5.0


def kolmogorov_smirnov(reference: Points, sample: Points) -> Tested:
    """Largest distance of the two distribution functions.

    Kolmogorov (1933) and Smirnov (1948); p by the asymptotic series at Stephens' corrected argument (1970).
    The sketches' rank errors are taken off the distance before p is computed, and ties only lower it: p is
    too large rather than too small.
    """
    at = np.union1d(reference.values, sample.values)
    apart = float(np.abs(reference.ranks(at) - sample.ranks(at)).max())
    sure = max(0.0, apart - reference.rank_error - sample.rank_error)
    n, m = reference.count, sample.count
    root = math.sqrt(n * m / (n + m))
    return apart, _kolmogorov_tail((root + 0.12 + 0.11 / root) * sure)


def population_stability(reference: Points, sample: Points, missing: tuple[int, int] = (0, 0)) -> Tested:
    """PSI over ten bins of the reference's deciles, and one of the rows without a value.

    Siddiqi, "Credit Risk Scorecards" (2006): below .1 nothing, above .25 a shift. Under no drift
    PSI / (1/n + 1/m) is chi-squared with one degree less than bins (Yurdakul, 2018): that gives p.

    Args:
        missing: rows without a value in the reference and in the sample.
    """
    edges = np.unique(reference.quantiles([i / _BINS for i in range(1, _BINS)]))
    counts = [
        np.append(np.diff(np.concatenate(([0.0], p.ranks(edges), [1.0]))) * p.count, absent)
        for p, absent in zip((reference, sample), missing, strict=True)
    ]
    return _psi(*counts)


def category_stability(reference: Mapping[str, int], sample: Mapping[str, int]) -> Tested:
    """PSI over values; those that the reference expects fewer than five of count as one."""
    return _psi(*_side_by_side(reference, sample))


def _psi(reference: np.ndarray, sample: np.ndarray) -> Tested:
    n, m = reference.sum(), sample.sum()
    used = (reference + sample) > 0
    # Half a row instead of none: the logarithm of an empty bin is no number.
    p = np.maximum(reference[used], 0.5) / n
    q = np.maximum(sample[used], 0.5) / m
    psi = float(((q - p) * np.log(q / p)).sum())
    return psi, chi_squared_tail(psi / (1 / n + 1 / m), int(used.sum()) - 1)


def hellinger(reference: Mapping[str, int], sample: Mapping[str, int]) -> Tested:
    """Hellinger distance of two distributions of categories, 0 to 1 (Hellinger, 1909); p by chi-squared."""
    p, q = _side_by_side(reference, sample)
    apart = math.sqrt(max(0.0, 1 - float(np.sqrt(p / p.sum() * q / q.sum()).sum())))
    return apart, _homogeneity(p, q)


def jensen_shannon(reference: Mapping[str, int], sample: Mapping[str, int]) -> Tested:
    """Jensen-Shannon distance with base 2, 0 to 1 (Endres and Schindelin, 2003); p by chi-squared."""
    counts = _side_by_side(reference, sample)
    p, q = (each / each.sum() for each in counts)
    middle = (p + q) / 2

    def divergence(each: np.ndarray) -> float:
        some = each > 0
        return float((each[some] * np.log2(each[some] / middle[some])).sum())

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2)), _homogeneity(*counts)


def _side_by_side(reference: Mapping[str, int], sample: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the same categories (C,) each; rare ones, in either, are one."""
    names = sorted({*reference, *sample})
    p = np.array([reference.get(name, 0) for name in names], dtype=np.float64)
    q = np.array([sample.get(name, 0) for name in names], dtype=np.float64)
    n, m = p.sum(), q.sum()
    rare = (p + q) * min(n, m) / (n + m) < _LEAST_EXPECTED
    if rare.any():
        p = np.append(p[~rare], p[rare].sum())
        q = np.append(q[~rare], q[rare].sum())
    return p, q


def _homogeneity(p: np.ndarray, q: np.ndarray) -> float:
    """p-value of Pearson's chi-squared test that both are of one distribution (1900)."""
    n, m = p.sum(), q.sum()
    both = p + q
    some = both > 0
    if some.sum() < 2:
        return 1.0
    expected = both[some] / (n + m)
    statistic = ((p[some] - n * expected) ** 2 / (n * expected)).sum()
    statistic += ((q[some] - m * expected) ** 2 / (m * expected)).sum()
    return chi_squared_tail(float(statistic), int(some.sum()) - 1)


def two_shares(of: tuple[float, float], among: tuple[float, float]) -> Tested:
    """Difference of two shares, the second less the first; p by the pooled two-proportion z-test.

    Args:
        of, among: counts in the reference and in the sample.
    """
    if min(among) <= 0:
        return 0.0, 1.0
    share = of[1] / among[1] - of[0] / among[0]
    pooled = (of[0] + of[1]) / (among[0] + among[1])
    variance = pooled * (1 - pooled) * (1 / among[0] + 1 / among[1])
    return share, normal_tail(share / math.sqrt(variance)) if variance > 0 else 1.0


def normal_tail(z: float) -> float:
    """Chance that a standard normal lies further from 0 than z."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_squared_tail(statistic: float, degrees: int) -> float:
    """Chance that chi-squared of so many degrees exceeds it: the upper incomplete gamma by recurrence."""
    if degrees < 1 or statistic <= 0:
        return 1.0
    x = statistic / 2
    a, tail = (0.5, math.erfc(math.sqrt(x))) if degrees % 2 else (1.0, math.exp(-x))
    while a < degrees / 2:
        tail += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return min(1.0, tail)


def _kolmogorov_tail(argument: float) -> float:
    if argument < 0.2:
        return 1.0  # to fifteen digits; the series needs many terms there
    terms = ((-1) ** (j - 1) * math.exp(-2 * j * j * argument * argument) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def holm(chances: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold the chance of any false alarm (Holm, 1979), whatever their dependence."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    adjusted, largest = [1.0] * len(chances), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[i]))
        adjusted[i] = largest
    return adjusted


def benjamini_hochberg(chances: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold the share of false ones among the alarms (Benjamini and Hochberg, 1995)."""
    order = sorted(range(len(chances)), key=lambda i: chances[i], reverse=True)
    adjusted, smallest = [1.0] * len(chances), 1.0
    for rank, i in enumerate(order):
        smallest = min(smallest, chances[i] * len(chances) / (len(chances) - rank))
        adjusted[i] = smallest
    return adjusted


CORRECTIONS: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "holm": holm,
    "benjamini-hochberg": benjamini_hochberg,
    "none": list,
}
"""How p-values of many columns are corrected, by name."""
