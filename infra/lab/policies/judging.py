"""How the models of a walk fare as labels come: what a worker would have counted of their answers by then."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl

from infra.lab.policies.recorded import Recorded
from infra.point_in_time import LABEL_TIME
from streams.live.tally import JUDGED, Assessment, tallied
from streams.live.track import Live
from streams.trigger import Condition, watched_by

_EVER_MS = 2**62


class Judging:
    """Folds answers and labels in the order of event time, a window after the other.

    A label is known once its own event time has passed, an answer once its event's has. Where the trigger
    looks at no answers, nothing is counted.

    Args:
        scores, versions: (N,) of the recorded rows, filled in by whoever answers them; 0: not answered.
    """

    def __init__(
        self, recorded: Recorded, trigger: Condition | None, scores: np.ndarray, versions: np.ndarray
    ) -> None:
        watched = watched_by(trigger)
        self._wanted = watched.answers and recorded.rows.height > 0
        self._scores, self._versions = scores, versions
        self._recorded = recorded
        self._slices = tuple(sorted(c for c in watched.errors if c in recorded.rows.columns))
        self._measured: list[tuple[int, float]] = []
        self._live = Live()
        self._until, self._now_ms = 0, -_EVER_MS
        if self._wanted:
            rows = recorded.rows
            known = pl.when(pl.col(recorded.label).cast(pl.Float64).is_in([0.0, 1.0])).then(
                pl.col(LABEL_TIME)
            )
            self._times_ms = rows.get_column("_time").to_numpy()
            self._labelled_ms = rows.select(known.fill_null(_EVER_MS)).to_series().to_numpy()

    def measured(self, seconds: float, *, ended_ms: int) -> None:
        """A training that ends at a time, in event time, and how long it took."""
        self._measured.append((ended_ms, seconds))

    def at(self, now_ms: int) -> Live:
        """What is known at a time; times only go on. Rows up to then must have been answered."""
        if not self._wanted:
            return self._live
        until = int(np.searchsorted(self._times_ms, now_ms, side="left"))
        number = np.arange(until)
        answered = self._versions[:until] > 0
        fresh = answered & (number >= self._until)
        labelled = self._labelled_ms[:until]
        came = (labelled < now_ms) & (fresh | (labelled >= self._now_ms))
        said = Assessment(
            model=self._recorded.pipeline.name,
            dataset_version=self._recorded.version,
            watermark_ms=now_ms,
            readings=(),
            panes=tallied(
                self._rows(number[fresh]),
                self._rows(number[answered & came]),
                pane=self._recorded.pipeline.window.start(pl.col("_time")),
                slices=self._slices,
            ),
            trainings_s=tuple(s for ended_ms, s in self._measured if ended_ms <= now_ms),
        )
        self._measured = [each for each in self._measured if each[0] > now_ms]
        self._live = self._live.after({JUDGED: msgspec.to_builtins(said)})
        self._until, self._now_ms = until, now_ms
        return self._live

    def _rows(self, numbers: np.ndarray) -> pl.DataFrame:
        recorded = self._recorded
        key = recorded.pipeline.source.key
        return recorded.rows[numbers].select(
            pl.col(key).cast(pl.String).alias("key"),
            "_time",
            pl.col(recorded.label).cast(pl.Float64).alias("label"),
            *(pl.col(column).cast(pl.String) for column in self._slices),
            score=pl.Series(self._scores[numbers]),
            version=pl.Series(self._versions[numbers]),
        )
