"""How good a model is on rows that it has not seen: overall and by slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from infra.measures import measures
from schemas.model import Scores

_MOST_VALUES = 50


def is_constant(chance: np.ndarray) -> bool:
    """Whether every row got the same answer: such a model has learnt nothing, or has lost it."""
    return len(chance) > 1 and float(np.ptp(chance)) <= 1e-6 * float(np.max(chance))


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
