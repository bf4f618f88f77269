"""How good a model is on rows that it has not seen: overall, by slice and by tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from infra.measures import measures
from schemas.model import Scores

_MOST_VALUES = 50


def is_constant(chance: np.ndarray) -> bool:
    """Whether every row got the same answer: such a model has learnt nothing, or has lost it."""
    return len(chance) > 1 and float(np.ptp(chance)) <= 1e-6 * float(np.max(chance))


def slice_masks(
    rows: pl.DataFrame, columns: Sequence[str] = (), *, tags: bool = False
) -> dict[str, np.ndarray]:
    """Rows (N,) of each slice by name: the 50 most frequent values of each column, and of the tags.

    Null is no slice. A tag's name is `tag=name`; a row may be in several.
    """
    masks: dict[str, np.ndarray] = {}
    for column in columns:
        values = rows.get_column(column)
        for value in _most_frequent(values):
            masks[f"{column}={value}"] = (values == value).fill_null(value=False).to_numpy()
    if tags and "_tags" in rows.columns:
        named = rows.get_column("_tags")
        for tag in _most_frequent(named.explode(empty_as_null=True)):
            masks[f"tag={tag}"] = named.list.contains(tag).fill_null(value=False).to_numpy()
    return masks


def _most_frequent(values: pl.Series) -> list[Any]:
    counts = values.drop_nulls().alias("value").value_counts(name="rows")
    # Ties by value: which slices there are must not hang on the order of rows.
    return (
        counts.sort(["rows", "value"], descending=[True, False])
        .get_column("value")
        .head(_MOST_VALUES)
        .to_list()
    )


def score(
    rows: pl.DataFrame, label: str, chance: np.ndarray, *, slices: Mapping[str, np.ndarray] | None = None
) -> Scores:
    """Scores on labelled rows, and on each slice given as a mask (N,)."""
    truth = rows.get_column(label).cast(pl.Float64).to_numpy()
    by_slice: dict[str, dict[str, float | None]] = {
        name: {"rows": float(mine.sum()), **measures(truth[mine], chance[mine])}
        for name, mine in (slices or {}).items()
    }
    return Scores(rows=len(truth), slices=by_slice, **measures(truth, chance))
