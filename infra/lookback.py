"""Tags that look back (`schemas.lookback`): the one implementation, live, in training and in tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from infra.row_order import PLACE, in_order
from schemas.lookback import Crowding, Isolated, Lookback, Outlier, Rare, Shifted

_SAMPLE = 256
# Of normal numbers: standard deviation by median and by mean absolute deviation.
_BY_MEDIAN, _BY_MEAN = 1.4826, 1.253314


def lookback_tags(events: pl.DataFrame, known: pl.DataFrame, tags: Sequence[Lookback]) -> pl.Series:
    """For each event the names of these tags that it has.

    Args:
        events: rows of the source, with meta columns, in any order.
        known: rows of the same source: all from the earliest event's time less the tags' horizons up to the
            latest event's; more, and rows of the future, do no harm.

    Returns:
        List of text, one for each event in its order.
    """
    known = in_order(known)
    has: list[pl.Series] = []
    for tag in tags:
        found = np.zeros(events.height, dtype=bool)
        for positions, baseline, block_ms in _blocks(events, known, tag):
            if baseline.height >= tag.minimum_rows:
                found[positions] = _judge(tag, events[positions], baseline, known, block_ms)
        has.append(pl.Series(tag.name, found))
    if not has:
        return pl.Series([[]] * events.height, dtype=pl.List(pl.String))
    names = [pl.when(series.name).then(pl.lit(series.name)) for series in has]
    return pl.DataFrame(has).select(pl.concat_list(names).list.drop_nulls()).to_series()


def _blocks(
    events: pl.DataFrame, known: pl.DataFrame, tag: Lookback
) -> Iterator[tuple[np.ndarray, pl.DataFrame, int]]:
    """Positions of each block's events, the baseline that they are judged by, and where the block starts."""
    block = (events.get_column("_time") // tag.every_ms * tag.every_ms).to_numpy()
    times = known.get_column("_time").to_numpy()
    for start_ms in np.unique(block).tolist():
        first, end = np.searchsorted(times, [start_ms - tag.over_ms, start_ms])
        yield np.flatnonzero(block == start_ms), known[int(first) : int(end)], start_ms


def _judge(
    tag: Lookback, events: pl.DataFrame, baseline: pl.DataFrame, known: pl.DataFrame, block_ms: int
) -> np.ndarray:
    match tag:
        case Outlier():
            return _outliers(tag, events, baseline)
        case Rare():
            return _rare(tag, events, baseline)
        case Isolated():
            return _isolated(tag, events, baseline)
        case Shifted():
            return np.full(events.height, _has_shifted(tag, baseline, block_ms))
        case Crowding():
            return _crowding(tag, events, baseline, known, block_ms)


def _outliers(tag: Outlier, events: pl.DataFrame, baseline: pl.DataFrame) -> np.ndarray:
    phase = pl.lit(0)
    if tag.season_ms is not None:
        phase = (pl.col("_time") % tag.season_ms) * tag.phases // tag.season_ms
    keys = [phase.alias("_phase"), *(pl.col(column).alias(f"_by_{column}") for column in tag.by)]
    names = ["_phase", *(f"_by_{column}" for column in tag.by)]
    value = pl.col(tag.column).cast(pl.Float64)
    there = baseline.select(*keys, value.alias("_value")).filter(pl.col("_value").is_finite())
    middle = there.group_by(names).agg(
        _rows=pl.len(),
        _middle=pl.col("_value").median(),
        _low=pl.col("_value").quantile(0.25, "linear"),
        _high=pl.col("_value").quantile(0.75, "linear"),
    )
    off = (pl.col("_value") - pl.col("_middle")).abs()
    spread = (
        there.join(middle, on=names, nulls_equal=True)
        .sort("_value")
        .group_by(names, maintain_order=True)
        .agg(_mad=off.median(), _mean_off=off.mean())
    )
    asked = (
        events.select(*keys, value.alias("_value"))
        .join(middle, on=names, how="left", nulls_equal=True, maintain_order="left")
        .join(spread, on=names, how="left", nulls_equal=True, maintain_order="left")
    )
    if tag.method == "iqr":
        reach = tag.reach * (pl.col("_high") - pl.col("_low"))
        outside = (pl.col("_value") < pl.col("_low") - reach) | (pl.col("_value") > pl.col("_high") + reach)
    else:
        # More than half of the numbers equal: their median deviation is none, the mean one says more.
        sigma = (
            pl.when(pl.col("_mad") > 0)
            .then(_BY_MEDIAN * pl.col("_mad"))
            .otherwise(_BY_MEAN * pl.col("_mean_off"))
        )
        outside = off > tag.reach * sigma
    judged = (pl.col("_rows") >= tag.minimum_rows) & pl.col("_value").is_finite() & outside
    return asked.select(judged.fill_null(value=False)).to_series().to_numpy()


def _rare(tag: Rare, events: pl.DataFrame, baseline: pl.DataFrame) -> np.ndarray:
    counts = baseline.select(pl.col(tag.column).alias("_value")).drop_nulls().group_by("_value").len("_rows")
    total = float(counts.get_column("_rows").sum())
    asked = events.select(pl.col(tag.column).alias("_value"))
    rows = asked.join(counts, on="_value", how="left", maintain_order="left").select(
        pl.col("_value").is_not_null(), pl.col("_rows").fill_null(0)
    )
    few = rows.get_column("_rows") < max(1.0, tag.share * total)
    return (rows.get_column("_value") & few).to_numpy()


def _has_shifted(tag: Shifted, baseline: pl.DataFrame, block_ms: int) -> bool:
    value = baseline.get_column(tag.column).cast(pl.Float64)
    is_last = (baseline.get_column("_time") >= block_ms - tag.every_ms) & value.is_finite()
    last = value.filter(is_last).to_numpy()
    before = value.filter(~is_last & value.is_finite()).to_numpy()
    if min(len(last), len(before)) < tag.minimum_rows:
        return False
    apart = abs(float(np.sort(last).mean() - np.sort(before).mean()))
    sigma = float(np.sort(before).std())
    return apart > max(tag.reach * sigma * math.sqrt(1 / len(last) + 1 / len(before)), sigma / 2)


def _crowding(
    tag: Crowding, events: pl.DataFrame, baseline: pl.DataFrame, known: pl.DataFrame, block_ms: int
) -> np.ndarray:
    # Of the blocks that have rows: at the beginning, and around a pause, the baseline is not full.
    blocks = (baseline.get_column("_time") // tag.every_ms).n_unique()
    most = tag.share * baseline.height / blocks
    of_block = known.filter(
        pl.col("_time") >= block_ms,
        pl.col("_time") < block_ms + tag.every_ms,
        pl.col(tag.column).is_not_null(),
    )
    nth = of_block.select(*PLACE, pl.int_range(1, pl.len() + 1).over(tag.column).alias("_nth"))
    asked = events.select(PLACE).join(nth, on=PLACE, how="left", maintain_order="left")
    return asked.select((pl.col("_nth") > most).fill_null(value=False)).to_series().to_numpy()


def _isolated(tag: Isolated, events: pl.DataFrame, baseline: pl.DataFrame) -> np.ndarray:
    """Scores by trees of random cuts; every `_SAMPLE`-th row of the baseline, and the same cuts each time."""
    there = _numbers(baseline, tag.columns)
    there = there[np.isfinite(there).all(axis=1)]
    if len(there) < tag.minimum_rows:
        return np.zeros(events.height, dtype=bool)
    asked = _numbers(events, tag.columns)
    whole = np.isfinite(asked).all(axis=1)
    rng = np.random.default_rng(0)
    size = min(_SAMPLE, len(there))
    depth = np.zeros(int(whole.sum()))
    for _ in range(tag.trees):
        sample = there[rng.choice(len(there), size, replace=False)]
        depth += _depths(sample, asked[whole], rng, math.ceil(math.log2(size)))
    score = np.zeros(events.height)
    score[whole] = 2.0 ** (-depth / tag.trees / _expected(size))
    return score >= tag.score


def _depths(sample: np.ndarray, asked: np.ndarray, rng: np.random.Generator, left: int) -> np.ndarray:
    """After how many cuts each of `asked` (A, C) is alone among `sample` (S, C)."""
    spread = np.ptp(sample, axis=0) if len(sample) else np.zeros(sample.shape[1])
    if left == 0 or len(sample) <= 1 or not spread.any():
        return np.full(len(asked), _expected(len(sample)))
    column = rng.choice(np.flatnonzero(spread))
    cut = rng.uniform(sample[:, column].min(), sample[:, column].max())
    below, asked_below = sample[:, column] < cut, asked[:, column] < cut
    depths = np.empty(len(asked))
    # Both sides are cut, also where nobody asks: the cuts must not depend on who does.
    depths[asked_below] = _depths(sample[below], asked[asked_below], rng, left - 1)
    depths[~asked_below] = _depths(sample[~below], asked[~asked_below], rng, left - 1)
    return depths + 1


def _expected(rows: int) -> float:
    """Mean depth of an unsuccessful search among so many rows: what a leaf still stands for."""
    return 0.0 if rows < 2 else 2 * (math.log(rows - 1) + 0.5772156649) - 2 * (rows - 1) / rows


def _numbers(rows: pl.DataFrame, columns: Sequence[str]) -> np.ndarray:
    return rows.select(pl.col(columns).cast(pl.Float64)).to_numpy()
