"""Mistakes in a pipeline's features and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from schemas.features import AsOf, Feature
from streams.check import trial
from streams.declared import InvalidPipeline, Problem, nearest
from streams.duration import to_ms
from streams.pipeline import Pipeline

Schema = Mapping[str, Any]


def features(pipeline: Pipeline, schemas: Mapping[str, Schema]) -> Iterator[Problem]:
    """Mistakes in what a model is to see."""
    main = schemas[pipeline.source.topic]
    for column in pipeline.columns:
        if main and column not in main:
            yield Problem(
                pipeline.place, f"columns name {column!r}, which is not there{nearest(column, main)}"
            )
    names: set[str] = set()
    label = pipeline.labels.column if pipeline.labels else ""
    for feature in pipeline.features:
        for name in feature.names():
            if name in names or name in pipeline.columns:
                yield Problem(pipeline.place, f"two features are called {name!r}; rename one")
            if name.startswith("_") or name in (pipeline.source.key, label):
                text = f"feature {name!r} has the name of a key, a label or a meta column; rename it"
                yield Problem(pipeline.place, text)
            names.add(name)
        yield from _feature(pipeline, feature, main, schemas)
    if all(schemas.values()) and (wrong := _failing(pipeline, schemas)):
        yield Problem(pipeline.place, wrong)


def _feature(
    pipeline: Pipeline, feature: Feature, main: Schema, schemas: Mapping[str, Schema]
) -> Iterator[Problem]:
    what = f"feature {feature.names()[0]!r}" if feature.names() else "a feature"
    schema = schemas.get(feature.source)
    if schema is None:
        yield Problem(
            pipeline.place,
            f"{what} looks at {feature.source!r}, which is no source of the pipeline; add it to context",
        )
        return
    if isinstance(feature, AsOf):
        reads = list(feature.columns.values())
    else:
        reads = [column for how, column in feature.aggregates.values() if how != "count"]
        for column in reads:
            dtype = schema.get(column)
            if dtype is not None and not dtype.is_numeric():
                yield Problem(
                    pipeline.place, f"{what}: {column!r} is {dtype}; only numbers can be aggregated"
                )
    for column in (*feature.by, *reads):
        if schema and column not in schema:
            yield Problem(
                pipeline.place, f"{what}: {feature.source} has no column {column!r}{nearest(column, schema)}"
            )
    for column in feature.by:
        if main and column not in main:
            yield Problem(
                pipeline.place, f"{what}: {pipeline.source.topic} has no column {column!r} to join by"
            )


def _failing(pipeline: Pipeline, schemas: Mapping[str, Schema]) -> str | None:
    try:
        spec = pipeline.spec()
    except InvalidPipeline:
        return None  # said already
    if not all(feature.source in schemas for feature in spec.features):
        return None  # said already
    wrong = trial.of_features(spec, schemas)
    if wrong is None:
        return None
    return f"the features cannot be computed: {wrong}; the two sides of a join need one type"


def labels(pipeline: Pipeline, schemas: Mapping[str, Schema]) -> Iterator[Problem]:
    """Mistakes in where the truth comes from."""
    declared = pipeline.labels
    if declared is None:
        return
    schema = schemas[declared.source.topic]
    for what, column in (("label", declared.column), ("key", pipeline.source.key)):
        if schema and column not in schema:
            yield Problem(
                declared.place,
                f"{what} column {column!r} is not in {declared.source.topic}{nearest(column, schema)}",
            )
    try:
        to_ms(declared.within)
    except InvalidPipeline as error:
        yield Problem(declared.place, f"within: {error.problem}")
    dtype = schema.get(declared.column)
    if dtype is not None and not (dtype.is_numeric() or dtype == pl.Boolean()):
        yield Problem(
            declared.place,
            f"label {declared.column!r} is {dtype}; derive one that is 1 and 0, or true and false",
        )
