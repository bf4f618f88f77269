"""How far a pipeline is: a function of the log, whoever says it; what fills is what closes."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.dataset import open_table
from schemas.envelope import unwrap_as
from schemas.standing import PipelineStands
from schemas.window import WindowClosed
from streams.announce.fold import Commit, Progress
from streams.announce.log import recall
from streams.announce.standing import Standings
from streams.closing import closing
from streams.summary.profiling import beginning
from tests.test_announce import PIPELINES, TOPICS, announcer, committed

PARTITIONS = [(topic, 0) for topic in TOPICS]


@pytest.mark.parametrize("kind", PIPELINES)
def test_whoever_says_it_of_a_version_says_the_same_and_what_fills_is_what_closes(
    kind: str, tmp_path: Path
) -> None:
    pipeline, uri = PIPELINES[kind], tmp_path / "p"
    commits = committed(pipeline, uri, seed=7)
    progress = Progress(closing(pipeline.window), version=0, history=beginning(pipeline))
    fold, standings = announcer(pipeline, uri, progress), Standings(pipeline.name)
    said: list[PipelineStands] = []
    closed_in: dict[str, int] = {}
    for commit in commits:
        for each in fold.apply(commit):
            if each.envelope.type == "tidemill.window.closed.v1":
                closed = unwrap_as(each.envelope, WindowClosed)
                closed_in[str(closed.window)] = closed.dataset_version
                assert closed.watermark_ms >= closed.window.end_ms
        standings.take(commit)
        said.append(standings.event(progress))

    newest = said[-1]
    table = open_table(str(uri))
    for stands in newest.partitions:
        place = f"{stands.topic}/{stands.partition}"
        assert stands.next == table.transaction_version(f"offset/{place}")
        assert stands.watermark_ms == table.transaction_version(f"watermark/{place}")

    for commit, stands in zip(commits[1:], said[1:], strict=True):
        assert len(stands.filling) == stands.open_windows
        for each in stands.filling:
            assert each.rows > 0
            assert stands.watermark_ms is None or each.closes_at_ms > stands.watermark_ms
            # A window that fills has not closed by then.
            assert closed_in.get(str(each.window), commit.version + 1) > commit.version
    fill_rows = sum(each.rows for stands in said for each in stands.filling)
    assert fill_rows > 0

    for commit, stands in list(zip(commits, said, strict=True))[::9]:
        again = Standings(pipeline.name)
        again.take_up(str(uri), commit.version - 1, PARTITIONS)
        again.take(commit)
        assert again.event(recall(pipeline, str(uri), through_version=commit.version)) == stands


def test_an_accepted_gap_moves_a_position_and_no_watermark() -> None:
    name = f"{next(iter(TOPICS))}/0"
    standings = Standings("p")
    standings.take(Commit(0, {"offsets": {name: [0, 5]}, "watermarks": {name: 7}, "committed_ms": 1}, {}))
    # As `tidemill dataset accept-gap` writes it.
    standings.take(Commit(1, {"offsets": {name: [5, 9]}, "skipped": {name: [5, 9]}, "committed_ms": 2}, {}))
    pipeline = next(iter(PIPELINES.values()))
    (stands,) = standings.event(Progress(closing(pipeline.window), version=1)).partitions
    assert (stands.next, stands.watermark_ms) == (9, 7)
