"""Answers that wait for their labels, and labels that wait for their answers."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from infra.row_order import in_order
from schemas.features import Label
from schemas.prediction import Predictions

_ANSWERS = pl.Schema(
    {
        "partition": pl.Int32,
        "offset": pl.Int64,
        "version": pl.Int64,
        "key": pl.String,
        "_time": pl.Int64,
        "score": pl.Float64,
        "asked": pl.Boolean,
        "judged": pl.Boolean,
    }
)
_LABELS = pl.Schema({"key": pl.String, "label_time": pl.Int64, "label": pl.Float64})
_SAME = ["version", "key", "_time"]


@dataclass(frozen=True, slots=True)
class Settled:
    """What one turn has to count: answers that are new, and those that have their label now."""

    asked: pl.DataFrame
    paired: pl.DataFrame

    def __bool__(self) -> bool:
        return bool(self.asked.height or self.paired.height)


class Pending:
    """Answers of one model, each counted once and held until its label is not awaited any more.

    An answer is one model version's to one event: a repeat of it, or another service's, does not count again.
    It has its label once the dataset holds one for its key that says 0 or 1 and came at the event's time or
    within the label's `within_ms` after it; of several the first by event time counts.
    """

    def __init__(self, label: Label, model: str) -> None:
        self.label, self.model = label, model
        self._answers = pl.DataFrame(schema=_ANSWERS)
        self._labels = pl.DataFrame(schema=_LABELS)
        self._fresh: list[pl.DataFrame] = []

    def answer(self, said: Predictions, *, partition: int, offset: int) -> None:
        """Take one record of answers in; of another model, or of its canary, it is passed over."""
        if said.name != self.model or said.canary or not said.keys:
            return
        rows = pl.DataFrame(
            {"key": said.keys, "_time": said.times_ms, "score": said.scores},
            schema={"key": pl.String, "_time": pl.Int64, "score": pl.Float64},
        )
        self._fresh.append(
            rows.filter(pl.col("score").is_between(0, 1)).select(
                pl.lit(partition, pl.Int32).alias("partition"),
                pl.lit(offset, pl.Int64).alias("offset"),
                pl.lit(said.version, pl.Int64).alias("version"),
                "key",
                "_time",
                "score",
                asked=pl.lit(value=False),
                judged=pl.lit(value=False),
            )
        )

    def labels(self, rows: pl.DataFrame) -> None:
        """Take rows of the label's source in: with meta columns, key and label."""
        label = self.label
        fresh = (
            in_order(rows)
            .select(
                pl.col(label.key).cast(pl.String).alias("key"),
                pl.col("_time").alias("label_time"),
                pl.col(label.column).cast(pl.Float64).alias("label"),
            )
            .drop_nulls()
            .filter(pl.col("label").is_in([0.0, 1.0]))
        )
        if fresh.height:
            self._labels = pl.concat([self._labels, fresh])

    def settle(self, watermark_ms: int) -> Settled:
        """What is to be counted as of a watermark; counted only once `count` is told of it."""
        self._take_in(watermark_ms)
        waiting = self._answers.filter(~pl.col("judged"))
        return Settled(waiting.filter(~pl.col("asked")), self._paired(waiting))

    def count(self, settled: Settled) -> None:
        """These are counted now, in a commit."""
        asked = settled.asked.select(*_SAME, was_asked=pl.lit(value=True))
        judged = settled.paired.select(*_SAME, was_judged=pl.lit(value=True))
        self._answers = (
            self._answers.join(asked, on=_SAME, how="left", maintain_order="left")
            .join(judged, on=_SAME, how="left", maintain_order="left")
            .with_columns(
                asked=pl.col("asked") | pl.col("was_asked").fill_null(value=False),
                judged=pl.col("judged") | pl.col("was_judged").fill_null(value=False),
            )
            .select(*_ANSWERS)
        )

    def since(self) -> dict[int, int]:
        """By partition, the first offset that holds an answer whose label may still come."""
        first = self._answers.group_by("partition").agg(pl.col("offset").min())
        return dict(first.iter_rows())

    def _take_in(self, watermark_ms: int) -> None:
        """New answers beside the known; what is not awaited any more is forgotten."""
        known = pl.concat([self._answers, *self._fresh])
        self._fresh.clear()
        awaited_from_ms = watermark_ms - self.label.within_ms
        self._answers = known.filter(pl.col("_time") >= awaited_from_ms).unique(
            _SAME, keep="first", maintain_order=True
        )
        self._labels = self._labels.filter(pl.col("label_time") >= awaited_from_ms)

    def _paired(self, waiting: pl.DataFrame) -> pl.DataFrame:
        """Of those answers the ones whose label is there, with it."""
        came = pl.col("label_time") - pl.col("_time")
        return (
            waiting.join(self._labels, on="key", how="inner", maintain_order="left_right")
            .filter(came >= 0, came <= self.label.within_ms)
            .sort("label_time", maintain_order=True)
            .unique(_SAME, keep="first", maintain_order=True)
        )
