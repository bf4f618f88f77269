"""What is heard of one pipeline's live model, and counted: whoever reads the topics tells it of records.

The worker's assessor does while the topics grow, the lab over what is there already; both count by this.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from infra.dataset import Dataset
from schemas import topics
from schemas.contract import Announcement, type_of
from schemas.envelope import NotAnAnnouncement, open_record, unwrap
from schemas.job import JobAnswered, JobFailed, JobMerged, JobRequested, JobSkipped, JobSucceeded
from schemas.prediction import Predictions
from streams.announce.fold import EVER_MS, Commit
from streams.ledger.commit import Partition
from streams.live.pending import Pending, Settled
from streams.live.tally import Assessment, Reading, tallied
from streams.pipeline import Pipeline
from streams.trigger import watched_by

FOLLOWED = (topics.PREDICTIONS.name, topics.JOBS.name)
"""What services answer, and how long trainings took."""

_OVER = (JobAnswered, JobFailed, JobMerged, JobSkipped)
_TOLD = {type_of(each) for each in (Predictions, JobRequested, JobSucceeded, *_OVER)}


def is_judged(pipeline: Pipeline) -> bool:
    """Whether the pipeline's trigger looks at answers, and there are labels to hold them against."""
    return pipeline.spec().label is not None and watched_by(pipeline.train_when).answers


class Judge:
    """Counts one pipeline's answers. `next` is how far each partition was read, kept by whoever reads.

    Attributes:
        version: of the dataset whose labels are known.
        watermark_ms: what is not awaited any more by then is forgotten; it never goes back.
        trainings_s: measured seconds of trainings that no assessment has told of.
    """

    def __init__(self, pipeline: Pipeline, uri: str, *, version: int = -1) -> None:
        label = pipeline.spec().label
        assert label is not None
        self.pipeline, self.uri, self.label = pipeline, uri, label
        self.version, self.watermark_ms = version, EVER_MS
        self.next: dict[Partition, int] = {}
        self.trainings_s: list[float] = []
        self._model = (pipeline.train.model if pipeline.train else "") or pipeline.name
        self.pending = Pending(label, self._model)
        self._slices = tuple(sorted(watched_by(pipeline.train_when).errors))
        self._open_jobs: dict[str, int] = {}

    def hear(
        self,
        partition: Partition,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]],
    ) -> None:
        """Take one record of `FOLLOWED` in; of others' it is passed over."""
        try:
            envelope = open_record(key, value, headers)
            if envelope.type not in _TOLD:
                return
            event: Announcement = unwrap(envelope)
        except NotAnAnnouncement:
            return  # whoever wrote it is told by his own reader
        match event:
            case Predictions():
                self.pending.answer(event, partition=partition[1], offset=offset)
            case JobRequested(experiment=asked):
                if asked.pipeline == self.pipeline.name and asked.purpose == "challenger":
                    self._open_jobs.setdefault(event.job_id, offset)
            case JobSucceeded() if self._open_jobs.pop(event.job_id, None) is not None:
                self.trainings_s.append(event.train_s)
            case JobAnswered() | JobFailed() | JobMerged() | JobSkipped():
                self._open_jobs.pop(event.job_id, None)
            case _:
                pass

    def take(self, commit: Commit) -> None:
        """A commit's labels, in the order of the log."""
        self.version = max(self.version, commit.version)
        rows = commit.by_source.get(self.label.source)
        if rows is not None:
            self.pending.labels(rows)

    def settle(self, watermark_ms: int) -> Settled:
        """What is to be counted by now."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        return self.pending.settle(self.watermark_ms)

    def assessment(self, settled: Settled) -> Assessment | None:
        """What a commit says of that; None where there is nothing to say."""
        if not settled and not self.trainings_s:
            return None
        paired = settled.paired
        if self._slices and paired.height:
            paired = paired.join(self._events(paired), on=["key", "_time"], how="left")
        since = self.pending.since()
        jobs_since = min(self._open_jobs.values(), default=None)
        readings = []
        for (topic, number), after in sorted(self.next.items()):
            first = since.get(number) if topic == topics.PREDICTIONS.name else jobs_since
            readings.append(
                Reading(topic=topic, partition=number, since=after if first is None else first, next=after)
            )
        return Assessment(
            model=self._model,
            dataset_version=self.version,
            watermark_ms=self.watermark_ms,
            readings=tuple(readings),
            panes=tallied(
                settled.asked,
                paired,
                pane=self.pipeline.window.start(pl.col("_time")),
                slices=self._slices,
            ),
            trainings_s=tuple(self.trainings_s),
        )

    def counted(self, settled: Settled) -> None:
        """The assessment of that is committed."""
        self.pending.count(settled)
        self.trainings_s.clear()

    def _events(self, paired: pl.DataFrame) -> pl.DataFrame:
        """Slices of the events that were answered, once for each key and time."""
        times, key = paired.get_column("_time"), self.pipeline.source.key
        rows = Dataset(self.uri).rows(
            self.pipeline.source.topic,
            version=self.version,
            start_ms=int(times.min()),  # type: ignore[arg-type]
            end_ms=int(times.max()) + 1,  # type: ignore[arg-type]
            columns=[key, *self._slices],
        )
        return rows.select(
            pl.col(key).cast(pl.String).alias("key"),
            "_time",
            *(pl.col(column).cast(pl.String) for column in self._slices if column != key),
        ).unique(["key", "_time"], keep="first", maintain_order=True)
