"""The step from frames to a commit: decode, clean, tag, window, summarise. A pure function of its state.

`prepare` changes nothing: what it learns is in the `Prepared` commit, and `settle` takes it over
once the ledger holds it. So a commit that fails can be prepared again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from infra.dataset import META
from schemas.dead_letter import DeadLetter
from schemas.window import Summary
from streams import watermark
from streams.clean import Dedupe, Rule, Seen, failures
from streams.columns import schema_of
from streams.dead_letter import dead_letter
from streams.decode import Decoded, Decoder
from streams.ledger import Advance, Partition
from streams.pipeline import Pipeline, Source
from streams.refused import refuse_rows
from streams.summary import merge, summarise
from streams.tag import LATE, tags
from streams.transport.frame import Frame


@dataclass(slots=True)
class Counts:
    """What became of a source's events in one commit: events = rows + rejected + dropped."""

    events: int = 0
    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Prepared:
    """A commit that is ready to be written."""

    rows: pl.DataFrame
    by_source: dict[str, pl.DataFrame]
    dead_letters: list[DeadLetter]
    advances: dict[Partition, Advance]
    watermarks: dict[Partition, int]
    counts: dict[str, Counts]
    summaries: dict[int, Summary]

    def metadata(self, idle: Sequence[Partition] = ()) -> dict[str, Any]:
        """What the commit says of itself, beside the rows."""
        return {
            "offsets": {_name(p): [a.start, a.next] for p, a in self.advances.items()},
            "watermarks": {_name(p): ms for p, ms in self.watermarks.items()},
            "idle": [_name(p) for p in idle],
            "counts": {topic: msgspec.to_builtins(c) for topic, c in self.counts.items()},
            "summaries": {str(start): msgspec.to_builtins(s) for start, s in self.summaries.items()},
        }


def _name(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"


def dataset_schema(pipeline: Pipeline) -> dict[str, pl.DataType]:
    """Columns of a pipeline's dataset, meta columns apart: the union over its sources.

    Sources may share a column's name only with the same type; `streams.check` says so beforehand.
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
    """One worker's cleaning of a pipeline's sources, and what it must remember between chunks."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.schema = pl.Schema({**META, **dataset_schema(pipeline)})
        self.watermarks: dict[Partition, int] = {}
        self.pipeline_watermark_ms: int | None = None
        self._decoders = {topic: Decoder(s.schema) for topic, s in pipeline.sources().items()}
        self.seen: dict[str, Seen] = {}
        for topic, source in pipeline.sources().items():
            for each in pipeline.rules(topic):
                if isinstance(each, Dedupe):
                    self.seen[topic] = Seen(source.key, each.within_ms)

    def empty(self) -> pl.DataFrame:
        """A commit's rows when there are none."""
        return pl.DataFrame(schema=self.schema)

    def prepare(self, frames: Sequence[Frame], *, now_ms: int) -> Prepared:
        """Turn consecutive frames of any sources and partitions into one commit."""
        by_topic: dict[str, list[Frame]] = {}
        advances: dict[Partition, Advance] = {}
        for frame in frames:
            by_topic.setdefault(frame.topic, []).append(frame)
            partition = (frame.topic, frame.partition)
            start = advances[partition].start if partition in advances else frame.first
            advances[partition] = Advance(start, frame.next)
        prepared = Prepared(self.empty(), {}, [], advances, {}, {}, {})
        for topic, own in by_topic.items():
            self._one_source(topic, own, now_ms, prepared)
        if prepared.by_source:
            prepared.rows = pl.concat(
                [rows.select(_padded(rows, self.schema)) for rows in prepared.by_source.values()]
            )
        return prepared

    def _one_source(self, topic: str, frames: list[Frame], now_ms: int, prepared: Prepared) -> None:
        source = self.pipeline.sources()[topic]
        is_main = topic == self.pipeline.source.topic
        decoded = self._decoders[topic].decode(frames)
        counts = Counts(events=decoded.events)
        rejected: Counter[str] = Counter(r.rule for r in decoded.refused)
        refused = list(decoded.refused)
        rows = self._located(frames, decoded.rows, source)

        rules = [_no_future(source, now_ms), *(r for r in self.pipeline.rules(topic) if isinstance(r, Rule))]
        failed = failures(rows, rules)
        summaries: dict[int, Summary] = {}
        for index in failed.drop_nulls().unique().sort():
            each = rules[index]
            bad = rows.filter(failed == index)
            rejected[each.name] += bad.height
            refused += refuse_rows(frames, bad, each.reason, each.name, each.detail)
            if is_main and each.reason != "future_event_time":
                self._count_by_window(summaries, bad, rejected=each.name)
        rows = rows.filter(failed.is_null())

        if topic in self.seen:
            repeats = self.seen[topic].repeats(rows)
            if repeats.any():
                counts.dropped[Dedupe(within_ms=0).name] = int(repeats.sum())
                if is_main:
                    self._count_by_window(summaries, rows.filter(repeats), dropped="dedupe")
                rows = rows.filter(~repeats)

        rows = rows.with_columns(**source.derive)
        tagging = self.pipeline.tag if is_main else ()
        rows = rows.with_columns(tags(tagging).alias("_tags"))
        if is_main:
            rows = self._late(rows)
            for start_ms, summary in summarise(
                rows, start=self.pipeline.window.start(pl.col("_time"))
            ).items():
                summaries[start_ms] = merge(summaries.get(start_ms, Summary()), summary)
            prepared.summaries = summaries
        rows = rows.drop("_frame", "_index")
        counts.rows, counts.rejected = rows.height, dict(rejected)
        prepared.counts[topic] = counts
        prepared.by_source[topic] = rows
        prepared.dead_letters += [dead_letter(self.pipeline.name, r) for r in refused]
        self._advance_watermarks(source, frames, rows, decoded, prepared, now_ms)

    def _located(self, frames: list[Frame], rows: pl.DataFrame, source: Source) -> pl.DataFrame:
        """Rows with their identity and event time."""
        origin = pl.DataFrame(
            {
                "_frame": range(len(frames)),
                "_partition": [f.partition for f in frames],
                "_dense_from": [
                    f.offsets[0] if isinstance(f.offsets, range) and f.offsets else None for f in frames
                ],
            },
            schema={"_frame": pl.Int32, "_partition": pl.Int32, "_dense_from": pl.Int64},
        )
        rows = rows.join(origin, on="_frame", how="left", maintain_order="left")
        offset = pl.col("_dense_from") + pl.col("_index")
        sparse = [i for i, f in enumerate(frames) if not isinstance(f.offsets, range)]
        if sparse:
            looked_up = pl.DataFrame(
                {
                    "_frame": [i for i in sparse for _ in frames[i].offsets],
                    "_index": [k for i in sparse for k in range(len(frames[i].offsets))],
                    "_sparse": [o for i in sparse for o in frames[i].offsets],
                },
                schema={"_frame": pl.Int32, "_index": pl.Int32, "_sparse": pl.Int64},
            )
            rows = rows.join(looked_up, on=["_frame", "_index"], how="left", maintain_order="left")
            offset = pl.coalesce(offset, pl.col("_sparse"))
        return rows.with_columns(
            _source=pl.lit(source.topic), _offset=offset, _time=pl.col(source.event_time).cast(pl.Int64)
        ).drop("_dense_from", *(["_sparse"] if sparse else []))

    def _count_by_window(
        self,
        summaries: dict[int, Summary],
        rows: pl.DataFrame,
        *,
        rejected: str | None = None,
        dropped: str | None = None,
    ) -> None:
        starts = rows.select(self.pipeline.window.start(pl.col("_time")).alias("start")).drop_nulls()
        for start_ms, count in starts.group_by("start").len().sort("start").iter_rows():
            more = Summary(
                rejected={rejected: count} if rejected else {}, dropped={dropped: count} if dropped else {}
            )
            summaries[start_ms] = merge(summaries.get(start_ms, Summary()), more)

    def _late(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Tag rows whose window had closed when they came: kept, and announced as an amendment."""
        if self.pipeline_watermark_ms is None:
            return rows
        window = self.pipeline.window
        closes_at = window.start(pl.col("_time")) + window.size_ms + window.lateness_ms
        late = closes_at <= self.pipeline_watermark_ms
        return rows.with_columns(
            _tags=pl.when(late).then(pl.concat_list("_tags", pl.lit(LATE))).otherwise(pl.col("_tags"))
        )

    def _advance_watermarks(
        self,
        source: Source,
        frames: list[Frame],
        rows: pl.DataFrame,
        decoded: Decoded,
        prepared: Prepared,
        now_ms: int,
    ) -> None:
        newest = dict(rows.group_by("_partition").agg(pl.col("_time").max()).iter_rows())
        for number in {f.partition for f in frames}:
            partition = (source.topic, number)
            heartbeat = decoded.heartbeats.get(number)
            if heartbeat is not None:
                # A wrong clock may not push the watermark further than an event could.
                heartbeat = min(heartbeat, now_ms + source.future_ms)
            mark = watermark.advance(
                self.watermarks.get(partition),
                newest_event_ms=newest.get(number),
                heartbeat_ms=heartbeat,
                disorder_ms=source.disorder_ms,
            )
            if mark is not None:
                prepared.watermarks[partition] = mark

    def settle(self, prepared: Prepared) -> None:
        """The ledger holds the commit: remember what the next one must know."""
        self.watermarks |= prepared.watermarks
        for topic, seen in self.seen.items():
            rows = prepared.by_source.get(topic)
            if rows is not None:
                seen.remember(rows, forget_before_ms=self._oldest_watermark(topic))

    def _oldest_watermark(self, topic: str) -> int | None:
        return min((w for (t, _), w in self.watermarks.items() if t == topic), default=None)


def _no_future(source: Source, now_ms: int) -> Rule:
    limit_ms = now_ms + source.future_ms
    return Rule(
        name=f"not_in_the_future({source.event_time})",
        keep=pl.col("_time") <= limit_ms,
        reason="future_event_time",
        detail=f"{source.event_time} lies more than {source.future} ahead of the clock",
        place=source.place,
    )


def _padded(rows: pl.DataFrame, schema: Mapping[str, Any]) -> list[pl.Expr]:
    """The dataset's columns, null where this source has none of that name."""
    return [
        pl.col(name) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in schema.items()
    ]
