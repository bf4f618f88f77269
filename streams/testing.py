"""Pipelines tested by plain pytest: events in; rows, dead letters, windows and decisions out, and no broker.

    from streams.testing import run

    def test_a_negative_amount_is_refused():
        ran = run(pipeline, {"shop.visits": [{"id": "a", "at": 1_700_000_000_000, "amount": -1.0}]})
        assert ran.refused("between(amount)") == 1

It is the code that runs live: the decoder, the rules, the ledger on a disk, the fold of its log. A model's
training is tested by `trainers.testing`.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import polars as pl

from infra.dataset import Dataset
from infra.point_in_time import examples
from schemas.contract import Announcement
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.envelope import unwrap
from schemas.job import JobRequested
from schemas.profile import WindowProfiled
from schemas.topics import FEATURES, WATERMARK_HEADER
from schemas.window import WindowAmended, WindowClosed
from streams.announce.fold import EVER_MS
from streams.check.pipeline import refuse_mistakes
from streams.declared import nearest
from streams.ingest import Counts, source_schema
from streams.lab.rehearse import Rehearsal
from streams.pipeline import Pipeline, Source
from streams.streak import Streaks
from streams.transport.frame import Frame, Headers, column
from streams.window import Session, Sliding

__all__ = ["Events", "Ran", "Record", "run"]

A = TypeVar("A", bound=Announcement)


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it stands on the topic, for what a row cannot say: other bytes, a key, headers."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


Events = pl.DataFrame | Iterable[Mapping[str, Any] | msgspec.Struct | bytes | Record]
"""Rows of a frame, or one by one: fields, a struct of the contract, a record's bytes, a whole record."""


@dataclass(kw_only=True)
class Ran:
    """All that came of the events.

    Attributes:
        dataset: folder of the dataset; it is deleted with this object unless `home` was given.
        counts: by source, what became of its events: events = rows + rejected + dropped.
        announced: everything announced but the feature rows, in its order.
        features: the feature rows that went out: key, `_time`, and the features.
    """

    pipeline: Pipeline
    dataset: Path
    counts: dict[str, Counts] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    announced: list[Announcement] = field(default_factory=list)
    features: pl.DataFrame = field(default_factory=pl.DataFrame)

    def rows(self, source: str | None = None) -> pl.DataFrame:
        """Rows of a source that are in the dataset, by event time, `_tags` among their columns.

        Args:
            source: a topic; else the main one.
        """
        read = Dataset(self.dataset)
        topic = self.pipeline.source.topic if source is None else source
        found = read.rows(topic, version=read.newest_version(), start_ms=EVER_MS, end_ms=-EVER_MS)
        # The dataset holds the columns of all sources.
        own = [c for c in found.columns if c.startswith("_") or c in _columns(self.pipeline, topic)]
        return found.select(own)

    def examples(self) -> pl.DataFrame:
        """Rows of the main source with features and labels, as a training reads them."""
        read = Dataset(self.dataset)
        version = read.newest_version()
        return examples(read, self.pipeline.spec(), version=version, start_ms=EVER_MS, end_ms=-EVER_MS)

    def refused(self, rule: str | None = None) -> int:
        """How many events became dead letters, or did by that rule."""
        return sum(rule in (None, letter.rule) for letter in self.dead_letters)

    def tagged(self, tag: str) -> pl.DataFrame:
        """Rows of the main source with that tag."""
        return self.rows().filter(pl.col("_tags").list.contains(tag))

    @property
    def windows(self) -> list[WindowClosed]:
        """Windows in the order in which they closed."""
        return self._of(WindowClosed)

    @property
    def amended(self) -> list[WindowAmended]:
        """Windows that late rows came for."""
        return self._of(WindowAmended)

    @property
    def profiles(self) -> list[WindowProfiled]:
        """Profiles of windows, where the trigger reads them."""
        return self._of(WindowProfiled)

    @property
    def decisions(self) -> list[Decision]:
        """The trigger's answers, window by window."""
        return self._of(Decision)

    @property
    def jobs(self) -> list[JobRequested]:
        """Trainings that were asked for; `trainers.testing.train` does one."""
        return self._of(JobRequested)

    def _of(self, kind: type[A]) -> list[A]:
        return [each for each in self.announced if isinstance(each, kind)]


def run(
    pipeline: Pipeline,
    events: Mapping[str, Events],
    *,
    now_ms: int | None = None,
    close: bool = True,
    batch_rows: int = 200,
    home: Path | None = None,
) -> Ran:
    """Run a pipeline over events, as a worker would that meets them in the order of their event times.

    Each source's own order is kept, so an event that lies behind one of an earlier time comes late.

    Args:
        events: by topic; see `Events`. Sources that are left out are silent.
        now_ms: the worker's clock, epoch ms; else the real one. An event too far ahead of it is refused.
        close: go on until the last window has closed, as if the stream went on.
        batch_rows: so many events are in a commit.
        home: a folder for the dataset, which then stays; it must be empty.

    Raises:
        InvalidConfiguration: the pipeline has mistakes, or no such source.
        FailsOnAll: an expression fails on a hundred rows on end: here that is no lone producer's fault.
    """
    refuse_mistakes(pipeline)
    for topic in events:
        if topic not in pipeline.sources():
            known = nearest(topic, pipeline.sources())
            raise ValueError(f"pipeline {pipeline.name} has no source {topic!r}{known}")
    folder = Path(tempfile.mkdtemp(prefix="tidemill-test-")) if home is None else home
    ran = Ran(pipeline=pipeline, dataset=folder / pipeline.name)
    if home is None:
        weakref.finalize(ran, shutil.rmtree, folder, ignore_errors=True)
    clock_ms = int(time.time() * 1000) if now_ms is None else now_ms
    timed = {topic: _timed(pipeline.sources()[topic], each) for topic, each in events.items()}
    spoken = [topic for topic, records in timed.items() if records]
    rehearsal = Rehearsal(
        pipeline, ran.dataset, {(topic, 0) for topic in spoken}, announce=True, streaks=_strict
    )
    line = sorted(
        ((at, topic, record) for topic in spoken for at, record in timed[topic]), key=lambda each: each[0]
    )
    next_offset = dict.fromkeys(spoken, 0)
    features: list[pl.DataFrame] = []
    for at in range(0, len(line), batch_rows):
        by_topic: dict[str, list[Record]] = {}
        for _, topic, record in line[at : at + batch_rows]:
            by_topic.setdefault(topic, []).append(record)
        _take(rehearsal, by_topic, next_offset, clock_ms, ran, features)
    if close and line and (until_ms := _closed_by_ms(ran)) is not None:
        said = ((WATERMARK_HEADER, str(until_ms).encode()),)
        beats = {topic: [Record(None, headers=said)] for topic in spoken}
        # By then it is so late.
        _take(rehearsal, beats, next_offset, max(clock_ms, until_ms), ran, features)
    ran.features = pl.concat(features, how="diagonal_relaxed") if features else pl.DataFrame()
    return ran


def _strict() -> Streaks:
    return Streaks(rows=100, frames=1)


def _timed(source: Source, events: Events) -> list[tuple[int, Record]]:
    """Records, each with the newest event time of its source so far."""
    rows = events.iter_rows(named=True) if isinstance(events, pl.DataFrame) else events
    found: list[tuple[int, Record]] = []
    newest = EVER_MS
    for row in rows:
        record, at = _record(source, row)
        newest = max(newest, EVER_MS if at is None or abs(at) > 2**53 else at)
        found.append((newest, record))
    return found


def _record(source: Source, row: Any) -> tuple[Record, int | None]:
    if isinstance(row, Record):
        record = row
    else:
        value = row if isinstance(row, bytes) else msgspec.json.encode(row)
        record = Record(value)
    try:
        said = msgspec.json.decode(record.value or b"")
        at = said.get(source.event_time) if isinstance(said, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        at = None
    return record, at if isinstance(at, int) else None


def _take(
    rehearsal: Rehearsal,
    by_topic: Mapping[str, Sequence[Record]],
    next_offset: dict[str, int],
    clock_ms: int,
    ran: Ran,
    features: list[pl.DataFrame],
) -> None:
    frames = []
    for topic, records in by_topic.items():
        first = next_offset[topic]
        next_offset[topic] += len(records)
        frames.append(
            Frame(
                topic,
                0,
                first,
                next_offset[topic],
                column(r.value for r in records),
                column(r.key for r in records),
                range(first, next_offset[topic]),
                headers={i: r.headers for i, r in enumerate(records) if r.headers},
                stamps=[(0, clock_ms)],
                size_bytes=sum(len(r.value or b"") for r in records),
            )
        )
    turn = rehearsal.take(frames, now_ms=clock_ms, committed_ms=clock_ms)
    if turn is None:
        return
    ran.dead_letters += turn.prepared.dead_letters
    for topic, counts in turn.prepared.counts.items():
        total = ran.counts.setdefault(topic, Counts())
        total.events += counts.events
        total.rows += counts.rows
        total.rejected = dict(Counter(total.rejected) + Counter(counts.rejected))
        total.dropped = dict(Counter(total.dropped) + Counter(counts.dropped))
    for each in turn.announced:
        if each.topic == FEATURES.name:
            features.append(pl.read_ipc_stream(io.BytesIO(each.envelope.data)))
        else:
            ran.announced.append(unwrap(each.envelope))


def _closed_by_ms(ran: Ran) -> int | None:
    """A watermark that closes every window with a row in it."""
    newest = ran.rows().get_column("_time").max()
    if newest is None:
        return None
    window = ran.pipeline.window
    assert isinstance(window, Sliding | Session)
    size_ms = window.size_ms if isinstance(window, Sliding) else 3 * window.pane_ms
    disorder_ms = max(source.disorder_ms for source in ran.pipeline.sources().values())
    return int(newest) + 2 * size_ms + window.lateness_ms + disorder_ms + 1  # type: ignore[arg-type]


def _columns(pipeline: Pipeline, topic: str) -> set[str]:
    return set(source_schema(pipeline.sources()[topic]))
