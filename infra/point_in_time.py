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
    lookup = _Lookup(frame, sources)
    answers = [_feature(lookup, feature) for feature in spec.features]
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


class _Lookup:
    """The sources, made ready once for all features of one call.

    Each source is sorted once. For each way of grouping it, the row at or before a time is found once for
    each time that is asked for: the event's own, and the beginnings of the trailing spans.
    """

    def __init__(self, events: pl.DataFrame, sources: Mapping[str, pl.DataFrame]) -> None:
        self.events = events
        self._sources = sources
        self._sorted: dict[str, pl.DataFrame] = {}
        self._known: dict[tuple[str, tuple[str, ...]], pl.DataFrame] = {}
        self._at: dict[tuple[str, tuple[str, ...], int, int | None], pl.Series] = {}
        self._sums: dict[tuple[str, tuple[str, ...], str], tuple[pl.Series, pl.Series]] = {}

    def known(self, feature: Feature) -> pl.DataFrame:
        """Rows that the feature may look at, in the order of event time; a null key matches nothing."""
        key = (feature.source, feature.by)
        if key not in self._known:
            if feature.source not in self._sorted:
                self._sorted[feature.source] = self._sources[feature.source].sort(ORDER)
            rows = self._sorted[feature.source]
            self._known[key] = rows.drop_nulls(feature.by) if feature.by else rows
        return self._known[key]

    def at(self, feature: Feature, *, back_ms: int = 0, tolerance_ms: int | None = None) -> pl.Series:
        """Position in `known` of the newest row at or before each event's `_time - back_ms`, or null."""
        key = (feature.source, feature.by, back_ms, tolerance_ms)
        if key not in self._at:
            by = list(feature.by)
            rows = self.known(feature).select("_time", *by).with_row_index("_at")
            asked = self.events.select(pl.col("_time") - back_ms, *by)
            self._at[key] = asked.join_asof(
                rows.with_columns(pl.col("_time").set_sorted()),
                on="_time",
                by=by or None,
                strategy="backward",
                tolerance=tolerance_ms,
                check_sortedness=False,
            ).get_column("_at")
        return self._at[key]

    def running(self, feature: Feature, column: str) -> tuple[pl.Series, pl.Series]:
        """Running sum and running count of a column's values within its group, row by row of `known`."""
        key = (feature.source, feature.by, column)
        if key not in self._sums:
            by = list(feature.by)
            value = pl.col(column)
            parts = (value.cast(pl.Float64).fill_null(0.0), value.is_not_null().cast(pl.Int64))
            running = [p.cum_sum().over(by) if by else p.cum_sum() for p in parts]
            sums = self.known(feature).select(total=running[0], count=running[1])
            self._sums[key] = (sums.get_column("total"), sums.get_column("count"))
        return self._sums[key]


def _feature(lookup: _Lookup, feature: Feature) -> pl.DataFrame:
    return _as_of(lookup, feature) if isinstance(feature, AsOf) else _trailing(lookup, feature)


def _as_of(lookup: _Lookup, feature: AsOf) -> pl.DataFrame:
    known = lookup.known(feature)
    at = lookup.at(feature, tolerance_ms=feature.max_age_ms)
    columns = [known.get_column(column).gather(at).alias(name) for name, column in feature.columns.items()]
    if feature.age:
        age = lookup.events.get_column("_time") - known.get_column("_time").gather(at)
        columns.append(age.alias(feature.age))
    return pl.DataFrame(columns)


def _trailing(lookup: _Lookup, feature: Trailing) -> pl.DataFrame:
    columns = []
    for name, (how, column) in feature.aggregates.items():
        if how in _BY_SUMS:
            values = _by_running_sums(lookup, feature, how, column)
        else:
            values = _by_rolling(lookup.events, lookup.known(feature), feature, how, column)
        columns.append(values.alias(name))
    return pl.DataFrame(columns)


_BY_SUMS = ("mean", "sum", "count")


def _by_running_sums(lookup: _Lookup, feature: Trailing, how: str, column: str) -> pl.Series:
    """Over (t - over, t], as the difference of two running sums."""
    # (t - over, t] excludes a row at exactly t - over, so the earlier sum includes it.
    now, before = lookup.at(feature), lookup.at(feature, back_ms=feature.over_ms)

    def between(running: pl.Series) -> pl.Series:
        return running.gather(now).fill_null(0) - running.gather(before).fill_null(0)

    if how == "count":
        return between(lookup.running(feature, "_time")[1])
    running_total, running_count = lookup.running(feature, column)
    count, total = between(running_count), between(running_total)
    value = total if how == "sum" else total / count
    return pl.select(pl.when(count > 0).then(value)).to_series()


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
