"""Delayed labels: how many of a window's events have theirs, how late they come, where they contradict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from infra.dataset import Dataset
from infra.row_order import in_order
from schemas.features import FeatureSpec
from schemas.window import Window

_FOR_EVER_MS = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The labels of one window's events. Counts of events; delays in ms of event time.

    Attributes:
        labelled: their label came within the time that labels are awaited.
        too_late: theirs came after it, and counts for nothing.
        awaited: theirs may still come: the watermark has not passed their time yet.
        conflicting: different labels came for the same key; the first counts.
        delay_p50_ms, delay_p99_ms: from an event to its label; None where none has come.
    """

    events: int
    labelled: int = 0
    too_late: int = 0
    awaited: int = 0
    conflicting: int = 0
    delay_p50_ms: float | None = None
    delay_p99_ms: float | None = None

    @property
    def share(self) -> float:
        """Of the events, those that have their label, 0 to 1."""
        return self.labelled / self.events if self.events else 0.0

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "share": self.share}


def coverage(
    uri: str,
    spec: FeatureSpec,
    spans: Sequence[Window],
    *,
    version: int,
    watermark_ms: int | None,
    key: pl.Expr | None = None,
) -> list[Coverage]:
    """The labels of the events of each span, as a version holds them; nothing where none are declared.

    Args:
        watermark_ms: of the pipeline at that version: what is behind it does not come any more.
        key: whose windows an event belongs to, for sessions by key.

    Raises:
        DatasetUnreadable: no dataset, or no such version.
    """
    label = spec.label
    if label is None or not spans:
        return []
    dataset = Dataset(uri)
    first_ms, end_ms = min(s.start_ms for s in spans), max(s.end_ms for s in spans)
    columns = [label.key, *(key.meta.root_names() if key is not None else [])]
    events = dataset.rows(spec.source, version=version, start_ms=first_ms, end_ms=end_ms, columns=columns)
    # Too late is counted too, so the labels are read up to the newest.
    labels = dataset.rows(
        label.source,
        version=version,
        start_ms=first_ms,
        end_ms=_FOR_EVER_MS,
        columns=[label.key, label.column],
    )
    joined = events.with_columns(
        _whose=pl.lit("") if key is None else key,
    ).join(_by_key(labels, label.key, label.column), on=label.key, how="left")
    came = pl.col("_came") - pl.col("_time")
    in_time = (came <= label.within_ms).fill_null(value=False)
    passed = pl.lit(value=False)
    if watermark_ms is not None:
        passed = pl.col("_time") + label.within_ms < watermark_ms
    joined = joined.with_columns(
        _labelled=in_time & pl.col("_known"),
        _late=~in_time & pl.col("_came").is_not_null(),
        _awaited=pl.col("_came").is_null() & ~passed,
        _delay=pl.when(in_time).then(came),
    )
    return [_of(joined, span) for span in spans]


def _by_key(labels: pl.DataFrame, key: str, column: str) -> pl.DataFrame:
    """By key when the first label came, whether it says anything, and whether all say the same."""
    return (
        in_order(labels)
        .group_by(key, maintain_order=True)
        .agg(
            _came=pl.col("_time").first(),
            _known=pl.col(column).first().is_not_null(),
            _conflict=pl.col(column).drop_nulls().n_unique() > 1,
        )
        .drop_nulls(key)
    )


def _of(joined: pl.DataFrame, span: Window) -> Coverage:
    own = joined.filter(
        pl.col("_time").is_between(span.start_ms, span.end_ms, closed="left"), pl.col("_whose") == span.key
    )
    counts = own.select(pl.col("_labelled", "_late", "_awaited", "_conflict").sum()).row(0)
    delays = own.get_column("_delay").drop_nulls()
    return Coverage(
        events=own.height,
        labelled=counts[0],
        too_late=counts[1],
        awaited=counts[2],
        conflicting=counts[3],
        delay_p50_ms=delays.quantile(0.5),
        delay_p99_ms=delays.quantile(0.99),
    )
