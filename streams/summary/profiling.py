"""Which columns of a pipeline its windows are profiled by, and the profiles of windows as they close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from infra.lookback import lookback_tags
from infra.point_in_time import compute, with_labels
from infra.row_order import in_order
from schemas.features import FeatureSpec
from schemas.profile import Profile
from schemas.window import Window
from streams.pipeline import Pipeline
from streams.summary.profile import profile_of
from streams.tag import OfLabels, Slice
from streams.trigger import History, watched_by

_BEHIND = "_behind"


@dataclass(frozen=True, slots=True)
class Profiling:
    """What is profiled of the main source: own columns, computed features, slices, and the label.

    `wanted`: whether anybody reads profiles; where nobody does, none is made. `of_labels`: tags that
    only labels tell.
    """

    wanted: bool
    own: tuple[str, ...]
    computed: tuple[str, ...]
    slices: tuple[str, ...]
    spec: FeatureSpec
    of_labels: tuple[OfLabels, ...] = ()

    @property
    def columns(self) -> set[str]:
        """Columns of the main source that it reads."""
        return {*self.own, *self.slices} if self else set()

    def __bool__(self) -> bool:
        return self.wanted and bool(
            self.own or self.computed or self.slices or self.spec.label or self.spec.tags
        )

    def profiles(
        self,
        windows: Sequence[Window],
        rows: pl.DataFrame,
        sources: Mapping[str, pl.DataFrame],
        *,
        key: pl.Expr,
    ) -> list[Profile]:
        """The profile of each window.

        Args:
            rows: of the main source, with meta columns; all that lie in these windows, and perhaps others.
            sources: by topic, rows that features and labels look at.
            key: whose windows a row belongs to.
        """
        if not self or not windows:
            return [Profile() for _ in windows]
        first_ms, end_ms = min(w.start_ms for w in windows), max(w.end_ms for w in windows)
        known, rows = rows, rows.filter(pl.col("_time") >= first_ms, pl.col("_time") < end_ms)
        label = self.spec.label
        told: list[pl.Expr] = []
        if label is not None and label.source in sources:
            if self.of_labels:
                rows = in_order(rows)
                labels, nothing = sources[label.source], pl.lit([], pl.List(pl.String))
                told = [
                    pl.when(pl.lit(tag.of(rows, labels, label))).then(pl.lit([tag.name])).otherwise(nothing)
                    for tag in self.of_labels
                ]
            # The label's column may have the name of one of these, which is null here.
            rows = with_labels(rows.drop(label.column, strict=False), sources[label.source], label)
        rows = in_order(rows)
        if self.computed:
            features = compute(rows, sources, self.spec).select(self.computed)
            rows = pl.concat([rows.drop(self.computed, strict=False), features], how="horizontal")
        behind = lookback_tags(rows, known, self.spec.tags).alias(_BEHIND)
        rows = rows.with_columns(behind)
        if told:
            rows = rows.with_columns(pl.concat_list(_BEHIND, *told))
        times = rows.get_column("_time").to_numpy()
        starts = times.searchsorted([w.start_ms for w in windows])
        ends = times.searchsorted([w.end_ms for w in windows])
        return [
            profile_of(
                rows[int(start) : int(end)].filter(key == window.key),
                (*self.own, *self.computed),
                label=label.column if label is not None and label.column in rows.columns else None,
                slices=self.slices,
                tags=_BEHIND,
            )
            for window, start, end in zip(windows, starts, ends, strict=True)
        ]


def profiling(pipeline: Pipeline, columns: Sequence[str]) -> Profiling:
    """What a pipeline's windows are profiled by: its features' own columns, and what its trigger watches.

    A trigger that only counts reads no profile: then none is made, which would be a third of announcing.
    Features that are computed from other sources are profiled only where the trigger watches them: that costs
    their computation once more.

    Args:
        columns: those of the main source.
    """
    spec, watched = pipeline.spec(), watched_by(pipeline.train_when)
    named = {t.column for t in pipeline.tag if isinstance(t, Slice)} | watched.slices
    computed = [name for feature in spec.features for name in feature.names()]
    return Profiling(
        wanted=watched.profiles,
        own=tuple(c for c in columns if c in {*spec.columns, *watched.columns}),
        computed=tuple(c for c in computed if watched.features or c in watched.columns),
        slices=tuple(c for c in columns if c in named),
        spec=spec,
        of_labels=tuple(t for t in pipeline.tag if isinstance(t, OfLabels)),
    )


def beginning(pipeline: Pipeline) -> History:
    """The history before any window: empty, and told what to remember."""
    watched = watched_by(pipeline.train_when)
    windows = watched.windows
    if pipeline.train is not None and watched.profiles:
        windows = max(windows, (pipeline.train.data.windows or 0) + pipeline.publish_when.windows)
    return History(keep=windows, spans=watched.references)
