"""Features and labels as they could be known: the one implementation of `schemas.features`.

The worker runs it live on the rows it has just committed, a trainer on a dataset version. Both get the
same numbers, because a feature at event time t reads only rows with event time in (t - horizon, t], and
no source is read before all of its rows up to t are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.dataset import META, Dataset
from infra.lookback import lookback_tags
from infra.row_order import ORDER, PLACE, in_order, order_of
from infra.span import Asked, Codes, Grouped, Ints, Layout, combined
from schemas.features import AsOf, Feature, FeatureSpec, Label, Trailing
from schemas.lookback import QUARANTINED
from schemas.window import Window

_EVENTS = ""  # no topic has that name


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
    frame = in_order(events)
    lookup = _Lookup(frame, sources)
    # The key may be a feature too; it stands once.
    own = dict.fromkeys([spec.key, "_time", "_tags", *spec.columns])
    if spec.tags:
        behind = lookback_tags(frame, sources[spec.source], spec.tags)
        frame = frame.with_columns(_tags=pl.concat_list("_tags", behind))
    return frame.select(*own).hstack([c for feature in spec.features for c in _feature(lookup, feature)])


LABEL_TIME = "_label_time"


def with_labels(
    rows: pl.DataFrame, labels: pl.DataFrame, label: Label, *, provenance: bool = False
) -> pl.DataFrame:
    """`rows` with the label's column; null where no label came within `label.within_ms`.

    With `provenance`, the label's own event time stands beside it as `_label_time`.

    The first label of a key counts, by event time: a repeat or a correction changes nothing.
    """
    first = (
        in_order(labels.select(*dict.fromkeys([*ORDER, label.key, label.column])))
        .unique(label.key, keep="first", maintain_order=True)
        .select(label.key, label.column, pl.col("_time").alias(LABEL_TIME))
    )
    in_time = pl.col(LABEL_TIME) - pl.col("_time") <= label.within_ms
    joined = rows.join(first, on=label.key, how="left", maintain_order="left").with_columns(
        pl.when(in_time).then(pl.col(label.column)).alias(label.column)
    )
    return joined if provenance else joined.drop(LABEL_TIME)


def labels_differ(rows: pl.DataFrame, labels: pl.DataFrame, label: Label) -> pl.Series:
    """Whether two labels that came within `label.within_ms` of a row's event differ: (N,), in their order."""
    came = pl.col(LABEL_TIME) - pl.col("_time")
    said = labels.select(
        pl.col(label.key), pl.col("_time").alias(LABEL_TIME), pl.col(label.column).alias("_said")
    )
    at = rows.select(label.key, "_time").with_row_index("_at")
    differing = (
        at.join(said.drop_nulls(), on=label.key, how="inner")
        .filter(came <= label.within_ms)
        .group_by("_at")
        .agg(pl.col("_said").n_unique() > 1)
        .filter("_said")
    )
    return at.get_column("_at").is_in(differing.get_column("_at").implode())


def labels_before(rows: pl.DataFrame, labels: pl.DataFrame, label: Label) -> pl.Series:
    """Whether a label of a row's key is older than its event: (N,), in their order."""
    said = labels.select(label.key, pl.col("_time").alias(LABEL_TIME), label.column).drop_nulls()
    oldest = said.group_by(label.key).agg(pl.col(LABEL_TIME).min())
    joined = rows.select(label.key, "_time").join(oldest, on=label.key, how="left", maintain_order="left")
    return joined.select((pl.col(LABEL_TIME) < pl.col("_time")).fill_null(value=False)).to_series()


def examples(
    dataset: Dataset,
    spec: FeatureSpec,
    *,
    version: int,
    start_ms: int,
    end_ms: int,
    label_known_by_ms: int | None = None,
    provenance: bool = False,
    excluded: Sequence[Window] = (),
) -> pl.DataFrame:
    """Examples of the events in [start_ms, end_ms) at a dataset version, sorted by event time.

    Events that a tag has quarantined are left out.

    Args:
        excluded: no examples are made of events within these spans. Features of other events still look at
            them, as the service's did.
        label_known_by_ms: ignore labels with event time at or after this; None takes all that the
            version holds.
        provenance: keep what no model may see: each event's `_partition`, `_offset` and `_row`, and the
            label's own event time `_label_time`.

    Returns:
        Key, `_time`, `_tags`, `spec.names()` and, if the spec has one, the label's column.
    """
    names = [spec.key, *spec.columns, *(c for f in spec.features for c in f.by if _is_own(f, c, spec))]
    names += [c for tag in spec.tags for c in tag.reads()]
    asked = spans(spec, start_ms=start_ms, end_ms=end_ms, label_known_by_ms=label_known_by_ms)

    def read(source: str, columns: Sequence[str], span: tuple[int, int]) -> pl.DataFrame:
        return dataset.rows(source, version=version, start_ms=span[0], end_ms=span[1], columns=columns)

    events = read(spec.source, names, asked.events)
    sources = {
        source: read(source, columns, asked.features[source])
        for source, (_, columns) in _all_reads(spec).items()
    }
    rows = compute(events, sources, spec)
    if provenance:
        rows = rows.with_columns(in_order(events).select(PLACE))
    # In the dataset, but nothing learns from it and nothing is judged by it.
    rows = rows.filter(~pl.col("_tags").list.contains(QUARANTINED))
    for span in excluded:
        rows = rows.filter(~pl.col("_time").is_between(span.start_ms, span.end_ms, closed="left"))
    if spec.label is None:
        return rows
    labels = read(spec.label.source, [spec.label.key, spec.label.column], asked.labels)
    return with_labels(rows, labels, spec.label, provenance=provenance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Which event times are read for a range's examples: of events, of each feature's source, of labels."""

    events: tuple[int, int]
    features: dict[str, tuple[int, int]]
    labels: tuple[int, int]


def spans(spec: FeatureSpec, *, start_ms: int, end_ms: int, label_known_by_ms: int | None = None) -> Spans:
    """What `examples` reads, each span half-open in epoch ms."""
    horizons = {source: horizon_ms for source, (horizon_ms, _) in _all_reads(spec).items()}
    until = end_ms + (spec.label.within_ms if spec.label else 0)
    if label_known_by_ms is not None:
        until = min(until, label_known_by_ms)
    return Spans(
        events=(start_ms, end_ms),
        features={source: (start_ms - horizon_ms, end_ms) for source, horizon_ms in horizons.items()},
        labels=(start_ms, until),
    )


def _is_own(feature: Feature, column: str, spec: FeatureSpec) -> bool:
    return column in feature.by and column not in META and column != spec.key


def _all_reads(spec: FeatureSpec) -> dict[str, tuple[int, list[str]]]:
    """What features and tags read, by source: how far back, and which columns."""
    reads = _reads(spec.features)
    for tag in spec.tags:
        horizon_ms, columns = reads.get(spec.source, (0, []))
        reads[spec.source] = (
            max(horizon_ms, tag.horizon_ms()),
            list(dict.fromkeys([*columns, *tag.reads()])),
        )
    return reads


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

    Each source's order is found once, and it is laid out once for each way of grouping it. How many of
    its rows are known at a time is found once for each time that is asked for: the event's own, and the
    beginnings of the trailing spans.
    """

    def __init__(self, events: pl.DataFrame, sources: Mapping[str, pl.DataFrame]) -> None:
        self.events = events
        self._times_ms = events.get_column("_time").to_numpy()
        self._sources = sources
        self._codes: dict[str, Codes] = {}
        self._coded: dict[tuple[str, str], Ints] = {}
        self._asked: dict[tuple[str, ...], Asked] = {}
        self._orders: dict[str, Ints] = {}
        self._times: dict[str, Ints] = {}
        self._layouts: dict[tuple[str, tuple[str, ...]], Layout] = {}
        self._ranks: dict[tuple[str, int], Ints] = {}
        self._ends: dict[tuple[str, tuple[str, ...], int], Ints] = {}

    def layout(self, feature: Feature) -> Layout:
        """Rows of the feature's source by its groups; a null key matches nothing."""
        key = (feature.source, feature.by)
        if key not in self._layouts:
            rows, order = self._sources[feature.source], self._order(feature.source)
            self._layouts[key] = self._grouped(rows, order, feature) if feature.by else Layout(rows, order)
        return self._layouts[key]

    def _grouped(self, rows: pl.DataFrame, order: Ints, feature: Feature) -> Grouped:
        if feature.by not in self._asked:
            self._asked[feature.by] = Asked(self._groups(_EVENTS, self.events, feature.by))
        groups = self._groups(feature.source, rows, feature.by)[order]
        return Grouped(rows, order, groups, self._asked[feature.by])

    def span(self, feature: Feature, back_ms: int) -> tuple[Ints, Ints]:
        """For each event the slice [low, high) of the layout with event time in (t - back_ms, t]."""
        return self._end(feature, back_ms), self._end(feature, 0)

    def _end(self, feature: Feature, back_ms: int) -> Ints:
        key = (feature.source, feature.by, back_ms)
        if key not in self._ends:
            self._ends[key] = self.layout(feature).before(self._rank(feature.source, back_ms))
        return self._ends[key]

    def _rank(self, source: str, back_ms: int) -> Ints:
        """How many rows of a source have event time at or before t - back_ms."""
        if (source, back_ms) not in self._ranks:
            known_ms = self._known_ms(source)
            self._ranks[source, back_ms] = np.searchsorted(known_ms, self._times_ms - back_ms, side="right")
        return self._ranks[source, back_ms]

    def _order(self, source: str) -> Ints:
        """Numbers of a source's rows in their order. Rows are not moved: each value is fetched once."""
        if source not in self._orders:
            rows = self._sources[source]
            order = order_of(rows)
            self._orders[source] = np.arange(rows.height) if order is None else order
        return self._orders[source]

    def _known_ms(self, source: str) -> Ints:
        if source not in self._times:
            self._times[source] = self._sources[source].get_column("_time").to_numpy()[self._order(source)]
        return self._times[source]

    def _groups(self, name: str, rows: pl.DataFrame, by: Sequence[str]) -> Ints:
        """Group of each row by the events' numbering; -1 where no event asks for it."""
        for column in by:
            if column not in self._codes:
                self._codes[column] = Codes(self.events.get_column(column))
            if (name, column) not in self._coded:
                self._coded[name, column] = self._codes[column].of(rows.get_column(column))
        counts = [self._codes[column].count for column in by]
        return combined([self._coded[name, column] for column in by], counts, rows.height)


def _feature(lookup: _Lookup, feature: Feature) -> list[pl.Series]:
    return _as_of(lookup, feature) if isinstance(feature, AsOf) else _trailing(lookup, feature)


def _as_of(lookup: _Lookup, feature: AsOf) -> list[pl.Series]:
    layout = lookup.layout(feature)
    # A row that is exactly as old as allowed counts.
    low, high = lookup.span(feature, feature.max_age_ms + 1)
    names = {name: pl.col(column) for name, column in feature.columns.items()}
    found = layout.newest(low, high, {**names, **({feature.age: pl.col("_time")} if feature.age else {})})
    if feature.age:
        age = lookup.events.get_column("_time") - found.get_column(feature.age)
        found = found.with_columns(age.alias(feature.age))
    return found.get_columns()


def _trailing(lookup: _Lookup, feature: Trailing) -> list[pl.Series]:
    layout = lookup.layout(feature)
    low, high = lookup.span(feature, feature.over_ms)

    def aggregate(how: str, column: str) -> pl.Series:
        return pl.Series(high - low) if how == "count" else getattr(layout.column(column), how)(low, high)

    return [aggregate(*of).alias(name) for name, of in feature.aggregates.items()]
