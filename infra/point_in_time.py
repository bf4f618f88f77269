"""Features and labels as they could be known: the one implementation of `schemas.features`.

The worker runs it live on the rows it has just committed, a trainer on a dataset version. Both get the
same numbers, because a feature at event time t reads only rows with event time in (t - horizon, t], and
no source is read before all of its rows up to t are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from infra.dataset import META, Dataset
from schemas.features import AsOf, Feature, FeatureSpec, Label, Trailing

ORDER = ("_time", "_partition", "_offset", "_row")


def compute(events: pl.DataFrame, sources: Mapping[str, pl.DataFrame], spec: FeatureSpec) -> pl.DataFrame:
    """Feature rows of `events`, one a row and in their order.

    Args:
        events: rows of `spec.source` with meta columns.
        sources: by topic, the rows a feature may look at; more than needed does no harm, rows of the
            future neither.
        spec: what to compute.

    Returns:
        The key column, `_time`, `_tags`, and `spec.names()`.
    """
    frame = events.sort(ORDER).with_row_index("_position")
    answers = [_feature(frame, sources[feature.source], feature) for feature in spec.features]
    # The key may be a feature too; it stands once.
    own = dict.fromkeys([spec.key, "_time", "_tags", *spec.columns])
    return pl.concat([frame.select(*own), *answers], how="horizontal")


def with_labels(rows: pl.DataFrame, labels: pl.DataFrame, label: Label) -> pl.DataFrame:
    """`rows` with the label's column; null where no label came within `label.within_ms`.

    The first label of a key counts, by event time: a repeat or a correction changes nothing.
    """
    first = (
        labels.sort(ORDER)
        .unique(label.key, keep="first", maintain_order=True)
        .select(label.key, label.column, _label_time="_time")
    )
    in_time = pl.col("_label_time") - pl.col("_time") <= label.within_ms
    return (
        rows.join(first, on=label.key, how="left", maintain_order="left")
        .with_columns(pl.when(in_time).then(pl.col(label.column)).alias(label.column))
        .drop("_label_time")
    )


def examples(
    dataset: Dataset,
    spec: FeatureSpec,
    *,
    version: int,
    start_ms: int,
    end_ms: int,
    label_known_by_ms: int | None = None,
) -> pl.DataFrame:
    """Examples of the events in [start_ms, end_ms) at a dataset version, sorted by event time.

    Args:
        label_known_by_ms: ignore labels with event time at or after this; None takes all that the
            version holds.

    Returns:
        Key, `_time`, `_tags`, `spec.names()` and, if the spec has one, the label's column.
    """
    names = [spec.key, *spec.columns, *(c for f in spec.features for c in f.by if _is_own(f, c, spec))]

    def read(source: str, first_ms: int, last_ms: int, columns: Sequence[str]) -> pl.DataFrame:
        return dataset.rows(source, version=version, start_ms=first_ms, end_ms=last_ms, columns=columns)

    events = read(spec.source, start_ms, end_ms, names)
    sources = {
        source: read(source, start_ms - horizon_ms, end_ms, columns)
        for source, (horizon_ms, columns) in _reads(spec.features).items()
    }
    rows = compute(events, sources, spec)
    if spec.label is None:
        return rows
    until = end_ms + spec.label.within_ms
    if label_known_by_ms is not None:
        until = min(until, label_known_by_ms)
    labels = read(spec.label.source, start_ms, until, [spec.label.key, spec.label.column])
    return with_labels(rows, labels, spec.label)


def _is_own(feature: Feature, column: str, spec: FeatureSpec) -> bool:
    return column in feature.by and column not in META and column != spec.key


def _reads(features: Sequence[Feature]) -> dict[str, tuple[int, list[str]]]:
    """By source: how far back it is read, and which columns."""
    reads: dict[str, tuple[int, list[str]]] = {}
    for feature in features:
        horizon_ms, columns = reads.get(feature.source, (0, []))
        if isinstance(feature, AsOf):
            span_ms, values = feature.max_age_ms, list(feature.columns.values())
        else:
            span_ms = feature.over_ms
            values = [column for how, column in feature.aggregates.values() if how != "count"]
        # One more millisecond, so that a half-open read holds the closed end of an as-of's age.
        reads[feature.source] = (
            max(horizon_ms, span_ms + 1),
            list(dict.fromkeys([*columns, *feature.by, *values])),
        )
    return reads


def _feature(events: pl.DataFrame, source: pl.DataFrame, feature: Feature) -> pl.DataFrame:
    known = source.drop_nulls(feature.by) if feature.by else source
    known = known.sort(ORDER)
    if isinstance(feature, AsOf):
        return _as_of(events, known, feature)
    return _trailing(events, known, feature)


def _as_of(events: pl.DataFrame, known: pl.DataFrame, feature: AsOf) -> pl.DataFrame:
    values = known.select(
        "_time",
        *feature.by,
        pl.col("_time").alias("_seen"),
        **{name: pl.col(column) for name, column in feature.columns.items() if name not in feature.by},
    )
    newest = _newest(events, values, feature.by, tolerance_ms=feature.max_age_ms)
    age = [(pl.col("_time") - pl.col("_seen")).alias(feature.age)] if feature.age else []
    return newest.select(*feature.columns, *age)


def _newest(
    events: pl.DataFrame, values: pl.DataFrame, by: Sequence[str], *, tolerance_ms: int | None = None
) -> pl.DataFrame:
    """The newest row of `values` at or before each event's `_time`; both are sorted by it."""
    # Events keep only what the join needs: a value may bear the name of an event's own column.
    left = events.select("_time", *by)
    return left.join_asof(
        values.with_columns(pl.col("_time").set_sorted()),
        on="_time",
        by=list(by) or None,
        strategy="backward",
        tolerance=tolerance_ms,
        check_sortedness=False,
    )


def _trailing(events: pl.DataFrame, known: pl.DataFrame, feature: Trailing) -> pl.DataFrame:
    sums = {name: how_column for name, how_column in feature.aggregates.items() if how_column[0] in _BY_SUMS}
    extremes = {name: rest for name, rest in feature.aggregates.items() if rest[0] not in _BY_SUMS}
    columns: dict[str, pl.Series] = {}
    if sums:
        columns |= _by_running_sums(events, known, feature, sums)
    for name, (how, column) in extremes.items():
        columns[name] = _by_rolling(events, known, feature, how, column)
    return pl.DataFrame({name: columns[name].alias(name) for name in feature.aggregates})


_BY_SUMS = ("mean", "sum", "count")


def _by_running_sums(
    events: pl.DataFrame, known: pl.DataFrame, feature: Trailing, wanted: Mapping[str, tuple[str, str]]
) -> dict[str, pl.Series]:
    """Sums over (t - over, t] as the difference of two running sums, found by two as-of joins."""
    by = list(feature.by)
    value_columns = list(dict.fromkeys(column for how, column in wanted.values() if how != "count"))

    def running(expression: pl.Expr) -> pl.Expr:
        total = expression.cum_sum()
        return total.over(by) if by else total

    totals = known.select(
        "_time",
        *by,
        running(pl.col("_time").is_not_null().cast(pl.Int64)).alias("_rows"),
        *(running(pl.col(c).cast(pl.Float64).fill_null(0.0)).alias(f"_sum:{c}") for c in value_columns),
        *(running(pl.col(c).is_not_null().cast(pl.Int64)).alias(f"_count:{c}") for c in value_columns),
    )
    now = _newest(events, totals, by)
    # (t - over, t] excludes a row at exactly t - over, so the earlier sum includes it.
    before = _newest(events.with_columns(pl.col("_time") - feature.over_ms), totals, by)

    def between(column: str) -> pl.Series:
        return now.get_column(column).fill_null(0) - before.get_column(column).fill_null(0)

    results: dict[str, pl.Series] = {}
    for name, (how, column) in wanted.items():
        if how == "count":
            results[name] = between("_rows")
            continue
        count, total = between(f"_count:{column}"), between(f"_sum:{column}")
        value = total if how == "sum" else total / count
        results[name] = pl.select(pl.when(count > 0).then(value)).to_series()
    return results


def _by_rolling(
    events: pl.DataFrame, known: pl.DataFrame, feature: Trailing, how: str, column: str
) -> pl.Series:
    """Minimum or maximum over (t - over, t]: events ride along as rows without a value."""
    by = list(feature.by)
    value = pl.col(column).alias("_value")
    rows = known.select("_time", *by, value, pl.lit(None, dtype=pl.UInt32).alias("_position"))
    asked = events.select(
        "_time", *by, pl.lit(None, dtype=rows.schema["_value"]).alias("_value"), "_position"
    )
    rolling = pl.Expr.rolling_min_by if how == "min" else pl.Expr.rolling_max_by
    extreme = rolling(pl.col("_value"), "_time", window_size=f"{feature.over_ms}i", closed="right")
    return (
        pl.concat([rows, asked])
        .sort("_time", maintain_order=True)
        .with_columns(extreme.over(by) if by else extreme)
        .drop_nulls("_position")
        .sort("_position")
        .get_column("_value")
    )
