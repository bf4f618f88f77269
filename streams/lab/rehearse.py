"""A pipeline over records that are there already: the worker's own turns, without a broker.

What is read comes as frames, as from the transport; what comes out is a dataset with its ledger, and the
announcements of its log. Nothing is published.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from infra.dataset import Dataset
from schemas.dead_letter import DeadLetter
from streams.announce.fold import Announced, Announcer, Commit, Progress
from streams.closing import closing
from streams.decode.avro import Writers
from streams.ingest import Counts, Ingest, Prepared, dataset_schema
from streams.ledger.commit import Advance, Ledger, Partition
from streams.live.judge import Judge, is_judged
from streams.live.tally import JUDGED, Assessment
from streams.pipeline import Pipeline
from streams.streak import Streaks
from streams.summary.profiling import beginning
from streams.transport.frame import Frame
from streams.turn import account_of, keys_of, stand_by, watermark_after

REFUSED = {
    "_source": pl.String,
    "_partition": pl.Int32,
    "_offset": pl.Int64,
    "_row": pl.Int32,
    "reason": pl.String,
    "rule": pl.String,
    "detail": pl.String,
    "value": pl.String,
}
_REFUSED = "_refused"
_VALUE_BYTES = 400


@dataclass(frozen=True, slots=True)
class Turn:
    """What one batch came to. `announced` is empty where nobody asked for announcements."""

    commit: Commit
    prepared: Prepared
    announced: Sequence[Announced]


class Rehearsal:
    """Runs one pipeline in this process, into a dataset of its own.

    What lies in the dataset already is passed over: a rehearsal that was broken off goes on where its ledger
    stands.

    Args:
        uri: folder of the dataset; made if it is not there.
        partitions: all that will be read: the watermark waits for each, until it is idle.
        announce: fold the commits into announcements, too; only from the dataset's beginning on. Then the
            live model is judged as well, where the trigger looks at it.
        streaks: makes what judges expressions that fail; as a worker's, unless said otherwise.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        uri: Path,
        partitions: Collection[Partition],
        *,
        writers: Writers | None = None,
        announce: bool = False,
        configuration_sha256: str = "",
        streaks: Callable[[], Streaks] = Streaks,
    ) -> None:
        self.pipeline, self.uri = pipeline, uri
        self.partitions = set(partitions)
        self.ledger = Ledger(uri, dataset_schema(pipeline))
        self.ingest = Ingest(pipeline, read_keys=keys_of(self.ledger), writers=writers, streaks=streaks)
        self._stand_by()
        self.ingest.recall()
        self._fold: Announcer | None = None
        if announce:
            self._fold = Announcer(
                pipeline,
                str(uri),
                Progress(closing(pipeline.window), version=0, history=beginning(pipeline)),
                read_rows=Dataset(uri).rows,
                configuration_sha256=configuration_sha256,
            )
        self._judge = Judge(pipeline, str(uri)) if announce and is_judged(pipeline) else None

    @property
    def judges(self) -> bool:
        """Whether it counts how a live model's answers fare."""
        return self._judge is not None

    def hear(self, frames: Sequence[Frame]) -> None:
        """Take in records of `FOLLOWED` topics; passed over where nobody judges."""
        if self._judge is None:
            return
        for frame in frames:
            partition = _of(frame)
            for index, (offset, key, value) in enumerate(
                zip(frame.offsets, frame.keys.to_list(), frame.values.to_list(), strict=True)
            ):
                headers = [(name, said or b"") for name, said in frame.headers.get(index, ())]
                self._judge.hear(partition, offset, key, value, headers)
            self._judge.next[partition] = frame.next

    def assess(self) -> Assessment | None:
        """Count what was answered and labelled since, as a commit without rows; None of nothing."""
        watermark_ms = self.ledger.pipeline_watermark()
        if self._judge is None or self._fold is None or watermark_ms is None:
            return None
        settled = self._judge.settle(watermark_ms)
        said = self._judge.assessment(settled)
        if said is None:
            return None
        metadata = {
            "offsets": {},
            "watermark_ms": watermark_ms,
            "committed_ms": int(time.time() * 1000),
            JUDGED: msgspec.to_builtins(said),
        }
        version = self.ledger.commit(
            self.ingest.empty(), advances={}, watermarks={}, metadata=metadata, marks=(JUDGED,)
        )
        self._fold.apply(Commit(version, metadata, {}))
        self._judge.counted(settled)
        return said

    def position(self, partition: Partition) -> int | None:
        """Next offset of a partition; None where nothing of it was read."""
        return self.ledger.position(partition)

    def take(
        self,
        frames: Sequence[Frame],
        *,
        now_ms: int | None = None,
        committed_ms: int | None = None,
        idle: Mapping[Partition, int] | None = None,
    ) -> Turn | None:
        """Commit one batch; None where all of it is in the dataset already.

        Args:
            frames: consecutive frames of each partition.
            now_ms: how late it is; None: as late as it was when each record was appended.
            committed_ms: when the commit is said to have been made; else now.
            idle: partitions that hold no window open until they move on, with their next offsets.

        Raises:
            FailsOnAll: an expression fails on every row that comes.
        """
        fresh = [frame if (at := self.position(_of(frame))) is None else frame.since(at) for frame in frames]
        fresh = [frame for frame in fresh if frame.next > frame.first]
        resting = {p: at for p, at in (idle or {}).items() if not self.ledger.is_idle(p)}
        if not fresh and not resting:
            return None
        self._stand_by()
        prepared = self.ingest.prepare(fresh, now_ms=now_ms)
        for partition, at in resting.items():
            prepared.advances.setdefault(partition, Advance(at, at))
        watermark_ms = watermark_after(self.ledger, prepared, self.partitions, resting)
        account = account_of(
            prepared,
            watermark_ms=watermark_ms,
            committed_ms=int(time.time() * 1000) if committed_ms is None else committed_ms,
            idle=resting,
        )
        if prepared.dead_letters:
            # Before the commit: whoever is killed in between writes the same file again.
            _write_refused(self.uri, self.ledger.version() + 1, prepared.dead_letters)
        version = self.ledger.commit(
            prepared.rows,
            advances=prepared.advances,
            watermarks=prepared.watermarks,
            idle=resting,
            pipeline_watermark_ms=watermark_ms,
            metadata=account,
        )
        self.ingest.settle(prepared)
        commit = Commit(version, account, prepared.by_source)
        announced = [] if self._fold is None else self._fold.apply(commit)
        if self._judge is not None:
            self._judge.take(commit)
        return Turn(commit, prepared, announced)

    def _stand_by(self) -> None:
        stand_by(self.ledger, self.ingest, self.partitions)


def _of(frame: Frame) -> Partition:
    return frame.topic, frame.partition


def _write_refused(uri: Path, version: int, letters: Sequence[DeadLetter]) -> None:
    """Delta passes over what begins with an underscore."""
    folder = uri / _REFUSED
    folder.mkdir(exist_ok=True)
    rows = [
        (
            letter.topic,
            letter.partition,
            letter.offset,
            letter.row,
            letter.reason,
            letter.rule,
            letter.detail,
            (letter.record_value or b"")[:_VALUE_BYTES].decode("utf-8", "replace"),
        )
        for letter in letters
    ]
    pl.DataFrame(rows, schema=REFUSED, orient="row").write_parquet(folder / f"{version:020d}.parquet")


def refused(uri: Path) -> pl.DataFrame:
    """What a rehearsal refused, by its origin: a row each, with reason, rule and the value's beginning.

    Returns:
        A frame of the schema `REFUSED`; empty for a dataset that no rehearsal made.
    """
    version = Dataset(uri).newest_version()
    files = sorted(f for f in (uri / _REFUSED).glob("*.parquet") if int(f.stem) <= version)
    return pl.concat([pl.read_parquet(f) for f in files]) if files else pl.DataFrame(schema=REFUSED)


def counts_of(uri: Path) -> dict[str, Counts]:
    """What became of each source's events in all commits together."""
    totals: dict[str, Counts] = {}
    for record in _accounts(uri):
        for topic, said in record.get("counts", {}).items():
            total = totals.setdefault(topic, Counts())
            total.events += said["events"]
            total.rows += said["rows"]
            total.rejected = dict(Counter(total.rejected) + Counter(said["rejected"]))
            total.dropped = dict(Counter(total.dropped) + Counter(said["dropped"]))
    return totals


def offsets_of(uri: Path) -> dict[Partition, tuple[int, int]]:
    """First and next offset of each partition that the dataset has read."""
    spans: dict[Partition, tuple[int, int]] = {}
    for record in _accounts(uri):
        for name, (start, end) in record["offsets"].items():
            topic, _, number = name.rpartition("/")
            first, last = spans.get((topic, int(number)), (start, end))
            spans[topic, int(number)] = min(first, start), max(last, end)
    return spans


def _accounts(uri: Path) -> Iterator[dict]:
    return (r.metadata for r in Dataset(uri).commits() if "offsets" in r.metadata)
