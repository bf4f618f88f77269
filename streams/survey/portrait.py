"""A window's rows column by column, at any version: the statistics of the trigger, over all there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.dataset import Dataset
from schemas.profile import ColumnProfile, Profile
from schemas.window import Window
from streams.announce.fold import columns_to_remember, key_of
from streams.ingest import source_schema
from streams.pipeline import Pipeline
from streams.summary.profiling import Profiling
from streams.summary.sketch import unpack
from streams.tag import OfLabels, Slice

_SHARES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
_NAMES = ("min", "p1", "p25", "median", "p75", "p99", "max")
_SHOWN_CATEGORIES = 10


def portraits(pipeline: Pipeline, uri: str, spans: Sequence[Window], *, version: int) -> list[Profile]:
    """The profile of each span at a version: every column of the events, every feature, slices, labels.

    Raises:
        DatasetUnreadable: no dataset, or no such version.
    """
    spec, main = pipeline.spec(), pipeline.source.topic
    own = tuple(c for c in source_schema(pipeline.source) if c != pipeline.source.key)
    computed = [name for feature in spec.features for name in feature.names()]
    asked = Profiling(
        wanted=True,
        own=own,
        computed=tuple(c for c in computed if c not in own),
        slices=tuple(t.column for t in pipeline.tag if isinstance(t, Slice)),
        spec=spec,
        of_labels=tuple(t for t in pipeline.tag if isinstance(t, OfLabels)),
    )
    dataset, horizon_ms = Dataset(uri), pipeline.horizon_ms()
    within_ms = spec.label.within_ms if spec.label else 0
    profiles = []
    for span in spans:
        sources = {
            topic: dataset.rows(
                topic,
                version=version,
                start_ms=span.start_ms - horizon_ms,
                end_ms=span.end_ms + within_ms,
                columns=list(
                    source_schema(source) if topic == main else columns_to_remember(pipeline)[topic]
                ),
            )
            for topic, source in pipeline.sources().items()
        }
        profiles += asked.profiles([span], sources[main], sources, key=key_of(pipeline))
    return profiles


def described(column: ColumnProfile) -> dict[str, Any]:
    """A column's profile in numbers that people read: quantiles, or the most frequent values."""
    said: dict[str, Any] = {"rows": column.rows, "missing": column.missing}
    if column.kll:
        points = unpack(column.kll, column.rank_error)
        quantiles = points.quantiles(_SHARES).tolist()
        mean = float((points.values * points.weights).sum() / points.weights.sum())
        said |= {"kind": "numbers", **dict(zip(_NAMES, quantiles, strict=True)), "mean": mean}
    else:
        shown = dict(list(column.categories.items())[:_SHOWN_CATEGORIES])
        rest = sum(column.categories.values()) - sum(shown.values()) + column.other
        said |= {"kind": "values", "values": shown, "other": rest, "distinct": len(column.categories)}
    return said
