"""What is counted of labelled answers, and what one commit says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct, field

from infra.measures import log_losses

JUDGED = "judged"
"""Under which name a commit's metadata holds an `Assessment`, and the table's transactions its version."""

BINS = 50


class Tally(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of answers: how many there are, how many have their label, and of those the sums.

    Attributes:
        loss, squares: sum of the log losses, and of their squares.
        wrong: answers on the wrong side of one half.
        negatives, positives: by label, how many scores lie in each of `BINS` even bins; () of a slice.
    """

    answers: int = 0
    labelled: int = 0
    loss: float = 0.0
    squares: float = 0.0
    wrong: int = 0
    negatives: tuple[int, ...] = ()
    positives: tuple[int, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            answers=self.answers + other.answers,
            labelled=self.labelled + other.labelled,
            loss=self.loss + other.loss,
            squares=self.squares + other.squares,
            wrong=self.wrong + other.wrong,
            negatives=_added(self.negatives, other.negatives),
            positives=_added(self.positives, other.positives),
        )

    @property
    def mean_loss(self) -> float:
        """Of the labelled answers; there must be one."""
        return self.loss / self.labelled

    @property
    def loss_variance(self) -> float:
        """Variance of one answer's loss; there must be two."""
        mean = self.mean_loss
        return max(0.0, self.squares - self.labelled * mean * mean) / (self.labelled - 1)


def _added(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    if not one or not other:
        return tuple(one or other)
    return tuple(a + b for a, b in zip(one, other, strict=True))


class PaneTally(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answers of one model version to the events of one pane, `slices` by column and value."""

    version: int
    start_ms: int
    whole: Tally
    slices: dict[str, dict[str, Tally]] = field(default_factory=dict)

    def __add__(self, other: PaneTally) -> PaneTally:
        slices = {column: dict(own) for column, own in self.slices.items()}
        for column, theirs in other.slices.items():
            own = slices.setdefault(column, {})
            for value, tally in theirs.items():
                own[value] = own[value] + tally if value in own else tally
        return PaneTally(
            version=self.version, start_ms=self.start_ms, whole=self.whole + other.whole, slices=slices
        )


class Reading(Struct, frozen=True, kw_only=True):
    """How far a partition was read: `next` is what comes next, from `since` on a restart must read again."""

    topic: str
    partition: int
    since: int
    next: int


class Assessment(Struct, frozen=True, kw_only=True):
    """What one commit says of the live model: what has been counted since the commit before.

    Attributes:
        dataset_version: labels are those of the rows up to it.
        watermark_ms: answers whose labels are not awaited any more by then are forgotten.
        trainings_s: measured seconds of the pipeline's trainings that have ended since.
    """

    model: str
    dataset_version: int
    watermark_ms: int
    readings: tuple[Reading, ...]
    panes: tuple[PaneTally, ...] = ()
    trainings_s: tuple[float, ...] = ()


def assessment_of(metadata: Mapping[str, Any]) -> Assessment | None:
    """What a commit says of the live model; None where it is any other commit."""
    said = metadata.get(JUDGED)
    return None if said is None else msgspec.convert(said, Assessment)


def tallied(
    asked: pl.DataFrame, paired: pl.DataFrame, *, pane: pl.Expr, slices: Sequence[str] = ()
) -> tuple[PaneTally, ...]:
    """Counts of answers, in the order of version and time.

    Args:
        asked: answers that are new, (N,) with `version` and `_time`.
        paired: answers that have their label now, (M,) with `version`, `_time`, `score` (a chance), `label`
            (0 or 1) and the slice columns.
        pane: start of a row's pane, of `_time`.
        slices: columns whose values part the labelled answers.
    """
    found: dict[tuple[int, int], PaneTally] = {}
    at = ["version", "_start"]
    for version, start_ms, count in asked.with_columns(pane.alias("_start")).group_by(at).len().iter_rows():
        found[version, start_ms] = PaneTally(version=version, start_ms=start_ms, whole=Tally(answers=count))
    for (version, start_ms), rows in (
        paired.with_columns(pane.alias("_start")).sort("key", "_time").partition_by(at, as_dict=True).items()
    ):
        own = PaneTally(
            version=version,
            start_ms=start_ms,
            whole=_of(rows, bins=True),
            slices={column: _by_value(rows, column) for column in slices},
        )
        known = found.get((version, start_ms))
        found[version, start_ms] = own if known is None else known + own
    return tuple(found[each] for each in sorted(found))


def _by_value(rows: pl.DataFrame, column: str) -> dict[str, Tally]:
    parts = rows.drop_nulls(column).partition_by(column, as_dict=True)
    return {str(value): _of(own, bins=False) for (value,), own in sorted(parts.items())}


def _of(rows: pl.DataFrame, *, bins: bool) -> Tally:
    score, label = rows.get_column("score").to_numpy(), rows.get_column("label").to_numpy()
    losses = log_losses(label, score)
    at = np.clip((score * BINS).astype(np.intp), 0, BINS - 1)
    negatives, positives = (
        tuple(np.bincount(at[label == truth], minlength=BINS).tolist()) if bins else () for truth in (0, 1)
    )
    return Tally(
        labelled=rows.height,
        loss=float(losses.sum()),
        squares=float((losses * losses).sum()),
        wrong=int(((score >= 0.5) != (label == 1)).sum()),
        negatives=negatives,
        positives=positives,
    )
