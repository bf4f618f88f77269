"""The step from frames to a commit: decode, clean, tag, window, summarise. A pure function of its state.

`sift` needs the records alone, `finish` what the ledger holds, too. Neither changes anything: what is learnt
is in the `Prepared` commit, and `settle` takes it over once the ledger holds it. So a commit that fails can
be prepared again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl

from infra.dataset import META
from schemas.dead_letter import DeadLetter
from streams import watermark
from streams.by_model import Models, by_models
from streams.clean import DEDUPE, Dedupe
from streams.dead_letter import dead_letter
from streams.decode.avro import Writers
from streams.decode.columns import schema_of
from streams.decode.records import Decoded, Decoder
from streams.dedupe import Keys, Read, Seen
from streams.keep import drop, keep
from streams.ledger.commit import Advance, Partition
from streams.locate import Now, appended, locate, newest_ms
from streams.pipeline import Pipeline, Source
from streams.sift import Tally, derived, sifted, tagged, timed
from streams.streak import Streaks
from streams.summary.account import Account
from streams.summary.summarise import summarise
from streams.tag import LATE
from streams.transport.frame import Frame
from streams.window import Pane


@dataclass(slots=True)
class Counts:
    """What became of a source's events in one commit: events = rows + rejected + dropped."""

    events: int = 0
    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Sifted:
    """One source's rows of a batch, as far as they are told by its records alone; good for one `finish`."""

    source: Source
    frames: list[Frame]
    decoded: Decoded
    rows: pl.DataFrame
    keys: Keys | None
    tally: Tally
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class SiftedBatch:
    """Consecutive frames of any sources and partitions, decoded, cleaned, derived and tagged.

    `now_ms` is the clock that event times were held against; None: each record's own time of appending.
    """

    frames: Sequence[Frame]
    now_ms: int | None
    sources: list[Sifted]
    dead_letters: list[DeadLetter]
    is_finished: bool = False


@dataclass(slots=True)
class Prepared:
    """A commit that is ready to be written."""

    rows: pl.DataFrame
    by_source: dict[str, pl.DataFrame]
    dead_letters: list[DeadLetter]
    advances: dict[Partition, Advance]
    watermarks: dict[Partition, int]
    counts: dict[str, Counts]
    accounts: dict[Pane, Account]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, Keys] = field(default_factory=dict)
    has_late: bool = False

    def metadata(self) -> dict[str, Any]:
        """What the commit says of itself, beside the rows."""
        return {
            "offsets": {_name(p): [a.start, a.next] for p, a in self.advances.items()},
            "watermarks": {_name(p): ms for p, ms in self.watermarks.items()},
            "counts": {topic: msgspec.to_builtins(c) for topic, c in self.counts.items()},
            "panes": {str(pane.start_ms): msgspec.to_builtins(a) for pane, a in self.accounts.items()},
            # Which version of a model gave its tag to this commit's rows.
            **({"models": self.models} if self.models else {}),
        }


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger says of time, epoch ms; and by source the keys of rows that it does not hold yet.

    Of the ledger as it is there are no such keys. As it will be once a commit on its way is made there are
    that commit's. `recalled` says how often until then was read anew what the rest of it holds.
    """

    watermarks: Mapping[Partition, int]
    pipeline_watermark_ms: int | None
    coming: Mapping[str, Keys]
    recalled: int


def _name(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"


def dataset_schema(pipeline: Pipeline) -> dict[str, pl.DataType]:
    """Columns of a pipeline's dataset, meta columns apart: the union over its sources.

    Sources may share a column's name only with the same type; `streams.check.pipeline` says so beforehand.
    """
    columns: dict[str, pl.DataType] = {}
    for source in pipeline.sources().values():
        columns |= source_schema(source)
    return columns


def source_schema(source: Source) -> dict[str, pl.DataType]:
    """Columns of one source's rows: the contract's and those derived."""
    empty = pl.DataFrame(schema=schema_of(source.schema))
    return dict(empty.with_columns(**source.derive).schema)


class Ingest:
    """One worker's cleaning of a pipeline's sources, and what it must remember between chunks.

    Args:
        read_keys: by source, what its dedupe reads of the dataset; None remembers only.
        writers: finds the schemas that Avro records were written with.
        streaks: makes what judges a source's expressions that fail.
        models: those that tag rows; None has none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        read_keys: Callable[[str, str], Read] | None = None,
        writers: Writers | None = None,
        streaks: Callable[[], Streaks] = Streaks,
        models: Models | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.schema = pl.Schema({**META, **dataset_schema(pipeline)})
        self.watermarks: dict[Partition, int] = {}
        self.pipeline_watermark_ms: int | None = None
        self._recalled = 0
        self._decoders = {
            topic: Decoder(s.schema, writers=writers, unmarked=s.content_type)
            for topic, s in pipeline.sources().items()
        }
        self._models = models
        self._streaks = {topic: streaks() for topic in pipeline.sources()}
        self.seen: dict[str, Seen] = {}
        for topic, source in pipeline.sources().items():
            for each in pipeline.rules(topic):
                if isinstance(each, Dedupe):
                    read = read_keys(topic, source.key) if read_keys else None
                    self.seen[topic] = Seen(source.key, each.within_ms, read)

    def empty(self) -> pl.DataFrame:
        """A commit's rows when there are none."""
        return pl.DataFrame(schema=self.schema)

    def recall(self) -> None:
        """What a dedupe remembers is read anew from the dataset."""
        self._recalled += 1
        for topic, seen in self.seen.items():
            seen.recall(self._forget_before(topic))

    def prepare(self, frames: Sequence[Frame], *, now_ms: int | None) -> Prepared:
        """Turn consecutive frames of any sources and partitions into one commit; see `sift` for the clock.

        Raises:
            Retryable: the schema of an Avro record cannot be asked for now; nothing is changed.
        """
        return self.finish(self.sift(frames, now_ms=now_ms))

    def sift(self, frames: Sequence[Frame], *, now_ms: int | None) -> SiftedBatch:
        """All that needs nothing but the records: it may run ahead, while the batch before is committed.

        Args:
            now_ms: how late it is, for event times that lie in the future. None: as late as it was when each
                record was appended, so that a replay refuses what was refused live, and no far-future time
                carries the watermark further than it could then.

        Raises:
            Retryable: the schema of an Avro record cannot be asked for now.
        """
        by_topic: dict[str, list[Frame]] = {}
        for frame in frames:
            by_topic.setdefault(frame.topic, []).append(frame)
        sources = [self._sift(topic, own, now_ms) for topic, own in by_topic.items()]
        refused = (each for source in sources for each in source.tally.refused)
        letters = [dead_letter(self.pipeline.name, each) for each in refused]
        return SiftedBatch(frames, now_ms, sources, letters)

    def _sift(self, topic: str, frames: list[Frame], now_ms: int | None) -> Sifted:
        source = self.pipeline.sources()[topic]
        is_main = topic == self.pipeline.source.topic
        decoded = self._decoders[topic].decode(frames)
        tally = Tally(frames, self._pane_start() if self._accounts(topic) else None, self._streaks[topic])
        tally.refused += decoded.refused
        rows = locate(frames, decoded.rows, event_time=source.event_time)
        now = Now.at(now_ms) if now_ms is not None else appended(frames)
        rows = timed(source, rows, now, tally)
        rows = sifted(self.pipeline.rules(topic), rows, tally)
        rows = derived(source.derive, rows, tally, source.place)
        rows = tagged(self.pipeline.tag if is_main else (), rows, tally)
        rows, models = by_models(self.pipeline.tag if is_main else (), rows, self._models)
        keys = self.seen[topic].keys(rows) if topic in self.seen else None
        return Sifted(source, frames, decoded, rows, keys, tally, models)

    def _accounts(self, topic: str) -> bool:
        """Whether commits account for the source's rows by pane.

        Of sessions by key there may be as many in a commit as rows: the rows themselves account for them.
        """
        return topic == self.pipeline.source.topic and self.pipeline.window.by is None

    def _pane_start(self) -> pl.Expr:
        return self.pipeline.window.start(pl.col("_time"))

    def after(self, prepared: Prepared, pipeline_watermark_ms: int | None) -> Standing:
        """Where the ledger will stand once it holds that commit, which carries the watermark so far."""
        return Standing(
            self.watermarks | prepared.watermarks, pipeline_watermark_ms, prepared.keys, self._recalled
        )

    def finish(self, batch: SiftedBatch, standing: Standing | None = None) -> Prepared:
        """The rest, which asks what the ledger holds by now: repeats, late rows, accounts, watermarks.

        To be done once with a batch, as it counts up what the batch holds.

        Args:
            standing: where the ledger will stand then, if not as it does: see `after` and `came_true`.
        """
        if standing is None:
            standing = Standing(self.watermarks, self.pipeline_watermark_ms, {}, self._recalled)
        batch.is_finished = True
        advances: dict[Partition, Advance] = {}
        for frame in batch.frames:
            partition = (frame.topic, frame.partition)
            start = advances[partition].start if partition in advances else frame.first
            advances[partition] = Advance(start, frame.next)
        prepared = Prepared(self.empty(), {}, batch.dead_letters, advances, {}, {}, {})
        for each in batch.sources:
            self._finish(each, batch.now_ms, prepared, standing)
        if prepared.by_source:
            prepared.rows = pl.concat([_padded(rows, self.schema) for rows in prepared.by_source.values()])
        return prepared

    def _finish(self, sifted: Sifted, now_ms: int | None, prepared: Prepared, standing: Standing) -> None:
        topic, rows, tally = sifted.source.topic, sifted.rows, sifted.tally
        prepared.models |= sifted.models
        if (keys := sifted.keys) is not None:
            repeats = self.seen[topic].repeats(keys, standing.coming.get(topic))
            if repeats.any():
                # Which window a repeat belongs to is all that is said of it.
                tally.drop(keep(rows.select("_time"), pl.Series(repeats)), DEDUPE)
                rows, keys = keep(rows, pl.Series(~repeats)), keys.where(~repeats)
            prepared.keys[topic] = keys
        if topic == self.pipeline.source.topic:
            in_time, rows = rows, self._late(rows, standing.pipeline_watermark_ms)
            prepared.has_late = rows is not in_time
        if self._accounts(topic):
            prepared.accounts = tally.accounts
            for pane, account in summarise(rows, start=self._pane_start()).items():
                tally.add(pane, account)
        # Their source last: what is the same for all rows need not be sorted out with them.
        prepared.by_source[topic] = drop(rows, ("_frame", "_index")).with_columns(_source=pl.lit(topic))
        prepared.counts[topic] = Counts(
            events=sifted.decoded.events,
            rows=rows.height,
            rejected=dict(Counter(r.rule for r in tally.refused)),
            dropped=tally.dropped,
        )
        prepared.watermarks |= _advanced(sifted, rows, standing.watermarks, now_ms)

    def _late(self, rows: pl.DataFrame, mark_ms: int | None) -> pl.DataFrame:
        """Tag rows whose window had closed when they came: kept, and announced as an amendment."""
        is_late = self.pipeline.window.is_late
        if mark_ms is None or not self._may_be_late(rows, mark_ms):
            return rows  # nearly always; making lists anew is slow
        with_it = pl.concat_list("_tags", pl.lit(LATE))
        late = is_late(pl.col("_time"), mark_ms)
        return rows.with_columns(_tags=pl.when(late).then(with_it).otherwise(pl.col("_tags")))

    def _may_be_late(self, rows: pl.DataFrame, mark_ms: int) -> bool:
        if rows.is_empty():
            return False
        earliest = pl.lit(rows.get_column("_time").min(), dtype=pl.Int64)
        return pl.select(self.pipeline.window.is_late(earliest, mark_ms)).item()

    def came_true(self, prepared: Prepared, standing: Standing) -> bool:
        """Whether a commit that was finished against that standing is what it would be against the ledger's.

        Its partitions stand where they were to, and what is remembered was not read anew. The pipeline's
        watermark may be another, as long as no other rows are late.
        """
        marks = self.watermarks
        return (
            self._recalled == standing.recalled
            and all(marks.get(p) == standing.watermarks.get(p) for p in prepared.advances)
            and (
                self.pipeline_watermark_ms == standing.pipeline_watermark_ms
                or self.still_holds(prepared, self.pipeline_watermark_ms)
            )
        )

    def still_holds(self, prepared: Prepared, pipeline_watermark_ms: int | None) -> bool:
        """Whether preparing it at that watermark would give the same: no other rows are late."""
        rows = prepared.by_source.get(self.pipeline.source.topic)
        if rows is None or pipeline_watermark_ms is None:
            return True
        if not prepared.has_late and not self._may_be_late(rows, pipeline_watermark_ms):
            return True
        tagged = pl.col("_tags").list.contains(LATE)
        is_late = self.pipeline.window.is_late(pl.col("_time"), pipeline_watermark_ms)
        return bool(rows.select((is_late == tagged).all()).item())

    def settle(self, prepared: Prepared) -> None:
        """The ledger holds the commit: remember what the next one must know."""
        self.watermarks |= prepared.watermarks
        for topic, keys in prepared.keys.items():
            self.seen[topic].remember(keys, forget_before_ms=self._forget_before(topic))

    def _forget_before(self, topic: str) -> int | None:
        """Event time behind which few rows still come; the dataset is read for those that do."""
        return min((w for (t, _), w in self.watermarks.items() if t == topic), default=None)


def _advanced(
    sifted: Sifted, rows: pl.DataFrame, before: Mapping[Partition, int], now_ms: int | None
) -> dict[Partition, int]:
    """Watermarks of the partitions that these frames are of."""
    source = sifted.source
    newest = _newest_by_partition(sifted.frames, rows)
    marks: dict[Partition, int] = {}
    for number in {f.partition for f in sifted.frames}:
        partition = (source.topic, number)
        heartbeat = sifted.decoded.heartbeats.get(number)
        if heartbeat is not None:
            # A wrong clock may not push the watermark further than an event could.
            latest_ms = newest_ms(sifted.frames, number) if now_ms is None else now_ms
            heartbeat = min(heartbeat, latest_ms + source.future_ms)
        mark = watermark.advance(
            before.get(partition),
            newest_event_ms=newest.get(number),
            heartbeat_ms=heartbeat,
            disorder_ms=source.disorder_ms,
        )
        if mark is not None:
            marks[partition] = mark
    return marks


def _newest_by_partition(frames: Sequence[Frame], rows: pl.DataFrame) -> dict[int, int]:
    """The latest event time of each partition's rows."""
    newest: dict[int, int] = {}
    if rows.height:
        # A frame's rows stand together.
        of_frame, times_ms = rows.get_column("_frame").to_numpy(), rows.get_column("_time").to_numpy()
        begins = np.flatnonzero(np.append(True, of_frame[1:] != of_frame[:-1]))
        latest = np.maximum.reduceat(times_ms, begins)
        for frame, time_ms in zip(of_frame[begins].tolist(), latest.tolist(), strict=True):
            number = frames[frame].partition
            newest[number] = max(newest.get(number, time_ms), time_ms)
    return newest


def _padded(rows: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """Rows in the dataset's columns, null where this source has none of that name."""
    own = set(rows.columns)
    return pl.DataFrame(
        [
            rows.get_column(name)
            if name in own
            else pl.Series(name, [None], dtype).new_from_index(0, rows.height)
            for name, dtype in schema.items()
        ]
    )
