"""The demo's table without a broker: the events of its first days, through what a worker does with them."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from infra.demo.flights import events
from infra.point_in_time import compute, with_labels
from streams.ingest import Ingest
from streams.pipeline import Pipeline
from streams.transport.frame import Frame

_EVENTS_A_COMMIT = 20_000


def examples(pipeline: Pipeline, *, days: int, progress: Callable[[str], object] = print) -> pl.DataFrame:
    """Labelled examples of the year's first days, cleaned, with features as of event time: what training has.

    Args:
        days: of events; flights whose label came later are left out.
        progress: told what is done.

    Returns:
        Key, `_time`, `_tags`, the features, and the label as 0 and 1.

    Raises:
        InvalidConfiguration: the demo's data are not installed.
    """
    spec = pipeline.spec()
    assert spec.label is not None
    ingest = Ingest(pipeline)
    parts: dict[str, list[pl.DataFrame]] = {topic: [] for topic in pipeline.sources()}
    ends = dict.fromkeys(parts, 0)
    flown = events(days=days)
    for chunk in flown.iter_slices(_EVENTS_A_COMMIT):
        frames = []
        for (topic,), own in chunk.group_by("topic", maintain_order=True):
            frames.append(_frame(str(topic), ends[str(topic)], own))
            ends[str(topic)] += own.height
        newest_ms = chunk.get_column("time_ms").max()
        prepared = ingest.prepare(frames, now_ms=newest_ms)  # type: ignore[arg-type]
        ingest.settle(prepared)
        for topic, rows in prepared.by_source.items():
            parts[topic].append(rows)
        progress(f"{sum(ends.values()):,} of {flown.height:,} events are rows")
    progress("features and labels")
    sources = {topic: pl.concat(rows) for topic, rows in parts.items() if rows}
    rows = compute(sources[spec.source], sources, spec)
    labelled = with_labels(rows, sources[spec.label.source], spec.label).drop_nulls(spec.label.column)
    return labelled.with_columns(pl.col(spec.label.column).cast(pl.Float64))


def _frame(topic: str, first: int, own: pl.DataFrame) -> Frame:
    values, keys = own.get_column("value").cast(pl.Binary), own.get_column("key").cast(pl.Binary)
    end = first + len(values)
    return Frame(
        topic, 0, first, end, values, keys, range(first, end), size_bytes=int(values.bin.size().sum())
    )
