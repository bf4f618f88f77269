"""What only trying shows: expressions and features are run on frames of no rows, or of a few made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from polars.exceptions import PanicException, PolarsError

from infra.dataset import META
from infra.point_in_time import compute, with_labels
from schemas.features import FeatureSpec

Schema = Mapping[str, Any]

_VALUES: Mapping[Any, tuple[Any, ...]] = {
    pl.Int64(): (3, -7, 1_000),
    pl.Float64(): (0.5, 12.0, -3.25),
    pl.String(): ("a", "bb", "7"),
    pl.Boolean(): (True, False, True),
}


def type_of(expression: pl.Expr, schema: Schema) -> Any:
    """What it gives on these columns.

    Raises:
        PolarsError: it cannot be computed on them.
    """
    return pl.DataFrame(schema=dict(schema)).select(expression.alias("out")).schema["out"]


def looks_at_other_rows(expression: pl.Expr, schema: Schema) -> bool:
    """Whether it gives a row another value beside other rows than alone.

    Rows come in batches that nobody chooses: a mean or a rank over one would be another in the next.
    """
    rows = pl.DataFrame({name: _VALUES[dtype] for name, dtype in schema.items() if dtype in _VALUES})
    try:
        together = rows.select(expression.alias("out")).get_column("out").to_list()
        alone = [
            rows[i].select(expression.alias("out")).get_column("out").to_list() for i in range(rows.height)
        ]
    except (PolarsError, PanicException):
        return False  # it fails on a made-up value, as it may on a real one: that row's own affair
    if not expression.meta.root_names():
        return False  # the same for all
    return [[value] for value in together] != alone


def of_features(spec: FeatureSpec, schemas: Mapping[str, Schema]) -> str | None:
    """What goes wrong when features and labels are computed of no rows; None if nothing does."""
    none = {topic: pl.DataFrame(schema={**schema, **META}) for topic, schema in schemas.items()}
    try:
        rows = compute(none[spec.source], none, spec)
        if spec.label is not None:
            with_labels(rows, none[spec.label.source], spec.label)
    except (PolarsError, PanicException) as error:
        return str(error).partition("\n")[0]
    return None
