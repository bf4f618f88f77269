"""A batch that is finished while the commit before it is written comes to what it would come to behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import AsyncMock

import polars as pl
import pytest
from faust.types import TP
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from polars.testing import assert_frame_equal

from infra.kafka.connection import Connection
from infra.settings_model import Worker
from streams.announce.fold import Commit
from streams.clean import dedupe
from streams.ingest import Ingest, Prepared, SiftedBatch, dataset_schema
from streams.ledger.commit import Advance, Ledger
from streams.pipeline import Pipeline, Source
from streams.pipelines.flights import flights
from streams.queue import Arrived
from streams.tag import LATE, Tag
from streams.window import Tumbling
from streams.worker import Batch, InTurn, StreamWorker
from tests.stream_fixtures import frame_of

NOW_MS = 10_000_000
PARTITIONS = [("events", 0), ("events", 1)]


class Event(Struct):
    id: str
    at: int
    value: float


PIPELINE = Pipeline(
    name="ahead",
    source=Source("events", schema=Event, event_time="at", key="id", disorder="20ms"),
    clean=[dedupe(within="100ms")],
    tag=[Tag("high", pl.col("value") > 0)],
    window=Tumbling("100ms", lateness="70ms"),
)


class Row(NamedTuple):
    partition: int
    id: str
    at: int
    value: float = 1.0


class Told:
    """An ingest, and a ledger in memory: rows are in the dataset once their commit is made, not before."""

    def __init__(self) -> None:
        self.ingest = Ingest(PIPELINE, read_keys=lambda _, key: lambda start, end: self.keys(key, start, end))
        self.made: list[Prepared] = []
        self.marks: dict[tuple[str, int], int] = {}
        self.mark_ms: int | None = None
        self._offsets = [0, 0]

    def keys(self, key: str, start_ms: int, end_ms: int) -> pl.DataFrame:
        """Of the rows in the dataset."""
        rows = pl.concat([self.ingest.empty(), *(each.rows for each in self.made)])
        return rows.filter(pl.col("_time").is_between(start_ms, end_ms, closed="left")).select(key, "_time")

    def sifted(self, rows: list[Row]) -> SiftedBatch:
        frames = []
        for number in (0, 1):
            own = [json.dumps(r._asdict()).encode() for r in rows if r.partition == number]
            own = [value.replace(b'"partition": %d, ' % number, b"") for value in own]
            frames.append(frame_of(own, topic="events", partition=number, first=self._offsets[number]))
            self._offsets[number] += len(own)
        return self.ingest.sift([frame for frame in frames if len(frame)], now_ms=NOW_MS)

    def after(self, prepared: Prepared) -> int | None:
        """The pipeline's watermark once that is committed."""
        marks = self.marks | prepared.watermarks
        if len(marks) < len(PARTITIONS):
            return self.mark_ms
        return max(min(marks.values()), self.mark_ms if self.mark_ms is not None else min(marks.values()))

    def stand_by(self) -> None:
        self.ingest.watermarks, self.ingest.pipeline_watermark_ms = dict(self.marks), self.mark_ms

    def commit(self, prepared: Prepared) -> None:
        self.mark_ms = self.after(prepared)
        self.marks |= prepared.watermarks
        self.made.append(prepared)


def in_turn(batches: list[list[Row]]) -> list[Prepared]:
    told = Told()
    for rows in batches:
        told.stand_by()
        prepared = told.ingest.finish(told.sifted(rows))
        told.commit(prepared)
        told.ingest.settle(prepared)
    return told.made


def ahead(batches: list[list[Row]]) -> list[Prepared]:
    told = Told()
    finished = None
    for at, rows in enumerate(batches):
        told.stand_by()
        if finished is None:
            prepared = told.ingest.finish(told.sifted(rows))
        else:
            assert told.ingest.came_true(*finished)
            prepared = finished[0]
        if at + 1 < len(batches):
            standing = told.ingest.after(prepared, told.after(prepared))
            finished = told.ingest.finish(told.sifted(batches[at + 1]), standing), standing
        told.commit(prepared)
        told.ingest.settle(prepared)
    return told.made


rows_of = st.builds(
    Row,
    partition=st.integers(0, 1),
    id=st.sampled_from("abcdef"),
    at=st.integers(0, 900),
    value=st.sampled_from([0.1, -1.0, 1e11]),
)
# What repeats a row of the commit on its way, also of long ago; and what is late by that commit.
REPEATS = [[Row(0, "a", 500), Row(1, "b", 500)], [Row(0, "a", 550), Row(1, "b", 700)], [Row(0, "b", 690)]]
OLD = [[Row(0, "a", 900), Row(1, "b", 900)], [Row(0, "c", 100)], [Row(1, "c", 120), Row(1, "d", 100)]]


@settings(deadline=None, max_examples=150)
@given(batches=st.lists(st.lists(rows_of, min_size=1, max_size=8), min_size=2, max_size=6))
@example(batches=REPEATS)
@example(batches=OLD)
def test_it_comes_to_the_same_as_in_turn(batches: list[list[Row]]) -> None:
    for one, other in zip(in_turn(batches), ahead(batches), strict=True):
        assert_frame_equal(one.rows, other.rows)
        assert one.metadata() == other.metadata()
        assert_frame_equal(one.keys["events"].keys.to_frame(), other.keys["events"].keys.to_frame())


def test_rows_of_the_commit_on_its_way_are_repeated_and_make_others_late() -> None:
    repeats, old = ahead(REPEATS), ahead(OLD)
    assert [each.rows["id"].to_list() for each in repeats] == [["a", "b"], ["b"], []]
    assert [each.rows["id"].to_list() for each in old] == [["a", "b"], ["c"], ["d"]]
    assert [LATE in tags for each in old for tags in each.rows["_tags"]] == [False, False, True, True]


@pytest.mark.parametrize(
    ("mark_ms", "holds"), [(480, True), (499, True), (570, False), (900, False)], ids=str
)
def test_it_holds_at_another_watermark_while_no_other_row_is_late(mark_ms: int, holds: bool) -> None:
    told = Told()
    told.stand_by()
    first = told.ingest.finish(told.sifted([Row(0, "a", 500), Row(1, "b", 500)]))
    standing = told.ingest.after(first, told.after(first))
    assert standing.pipeline_watermark_ms == 480
    second = told.ingest.finish(told.sifted([Row(0, "c", 410)]), standing)
    told.commit(first)
    told.ingest.settle(first)
    told.mark_ms = mark_ms  # another worker's commit came between
    told.stand_by()
    assert told.ingest.came_true(second, standing) == holds


@pytest.mark.parametrize("what", ["its partition moved on otherwise", "the dataset was read anew"])
def test_it_does_not_hold_where_it_was_finished_against_something_else(what: str) -> None:
    told = Told()
    told.stand_by()
    first = told.ingest.finish(told.sifted([Row(0, "a", 500), Row(1, "b", 500)]))
    standing = told.ingest.after(first, told.after(first))
    second = told.ingest.finish(told.sifted([Row(0, "c", 510)]), standing)
    told.commit(first)
    told.ingest.settle(first)
    told.stand_by()
    assert told.ingest.came_true(second, standing)
    if what == "the dataset was read anew":
        told.ingest.recall()
    else:
        told.ingest.watermarks["events", 0] += 1
    assert not told.ingest.came_true(second, standing)


class Listener:
    """Hears of commits as a worker's herald and its consumer do."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def committed(self, commit: Commit) -> None:
        self.versions.append(commit.version)

    def mark_durable(self, tp: TP, next_offset: int) -> None: ...


class Turns:
    """A worker between its queue and its dataset, with the batches of a log; `finished` counts."""

    def __init__(self, home: Path, batches: list[list[Row]]) -> None:
        nowhere = Connection(bootstrap_servers="127.0.0.1:1")
        self.worker = StreamWorker(PIPELINE, dataset_dir=home, connection=nowhere, options=Worker())
        self.heard = Listener()
        self.worker._herald = self.worker.consumer = self.heard  # type: ignore[assignment]
        self.worker._partitions.known |= set(PARTITIONS)
        self.finished = 0
        told = Told()
        told.ingest = self.worker._ingest
        for rows in batches:
            sifted = told.sifted(rows)
            arrived = [Arrived(frame, lambda: None) for frame in sifted.frames]
            self.worker._batches.put_nowait(Batch(arrived, sifted, self.worker._term))
        finish = self.worker._ingest.finish

        def counted(*given: Any) -> Prepared:
            self.finished += 1
            return finish(*given)

        self.worker._ingest.finish = counted  # type: ignore[method-assign]

    async def take(self) -> None:
        turn, self.worker._next = self.worker._next, None
        await self.worker._one_commit(turn or InTurn(self.worker._batches.get_nowait()))

    def rows(self) -> list[tuple[str, bool]]:
        """Of the dataset by commit, and whether each was late."""
        found = (
            pl.read_delta(self.worker.uri)
            .sort("_time")
            .select("id", late=pl.col("_tags").list.contains(LATE))
        )
        return found.rows()


async def test_a_worker_finishes_the_next_batch_while_it_commits_and_takes_it_as_it_is(
    tmp_path: Path,
) -> None:
    turns = Turns(tmp_path, [*REPEATS, [Row(1, "e", 800)]])
    for _ in range(4):
        await turns.take()
    assert turns.rows() == [("a", False), ("b", False), ("b", False), ("e", False)]
    assert turns.finished == 4, "each once"
    assert turns.heard.versions == [1, 2, 3, 4]
    assert turns.worker._next is None


@pytest.mark.parametrize(("heard", "finished"), [("before", 4), ("by being overtaken", 5)])
async def test_a_commit_that_comes_between_has_finished_anew_what_it_makes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: str, finished: int
) -> None:
    turns = Turns(tmp_path, [[Row(0, "a", 500)], [Row(0, "c", 520)], [Row(0, "d", 530)]])
    await turns.take()
    if heard != "before":
        monkeypatch.setattr(turns.worker, "_hear_of_others", AsyncMock())
    other = Ledger(turns.worker.uri, dataset_schema(PIPELINE))
    advance = {PARTITIONS[1]: Advance(0, 1)}
    other.commit(
        turns.worker._ingest.empty(),
        advances=advance,
        watermarks={PARTITIONS[1]: 900},
        pipeline_watermark_ms=900,
        metadata={},
    )
    await turns.take()
    await turns.take()
    assert turns.rows() == [("a", False), ("c", True), ("d", True)]
    assert turns.finished == finished, "the second once for nothing; the third, too, if it was too late"
    assert turns.heard.versions == [1, 3, 4]


async def test_what_was_finished_ahead_is_let_go_of_with_all_else_that_is_dropped(tmp_path: Path) -> None:
    nowhere = Connection(bootstrap_servers="127.0.0.1:1")
    worker = StreamWorker(flights, dataset_dir=tmp_path, connection=nowhere, options=Worker())
    done: list[str] = []
    arrived = Arrived(frame_of([b"{}"], topic="events"), lambda: done.append("let go"))
    worker._next = InTurn(Batch([arrived], SiftedBatch([], None, [], []), worker._term))
    worker._drop()
    assert done == ["let go"]
    assert worker._next is None
