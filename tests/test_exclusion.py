"""A span that a person excluded: in the log, announced alike by whoever folds it, obeyed by trainings."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from infra.dataset import Dataset
from infra.digest import table_digest
from infra.exclusion import excluded_at
from schemas import examples
from schemas.envelope import unwrap, unwrap_as
from schemas.job import DatasetRange, JobRequested
from schemas.topics import JOBS, WINDOWS
from schemas.window import Window, WindowClosed, WindowExcluded, WindowIncluded
from streams.announce.fold import Announced, Progress
from streams.announce.log import read_commit, recall
from streams.closing import closing
from streams.ingest import dataset_schema
from streams.ledger.commit import Advance, Ledger
from streams.ledger.exclude import NothingToDecide, exclude, include
from streams.summary.profiling import beginning
from streams.training import Publish, Training, job_for, last
from tests.test_announce import PIPELINE, announcer, committed
from tests.trainer_fixtures import SPAN_MS, experiment, write_dataset
from trainers.rows import NothingToTrainOn, read

SPAN = Window(1_000, 2_000)


@pytest.fixture
def uri(tmp_path: Path) -> Path:
    committed(PIPELINE, tmp_path / "p", seed=7)
    return tmp_path / "p"


def test_an_exclusion_is_a_commit_without_rows_and_stands_until_it_is_taken_back(uri: Path) -> None:
    dataset, before = Dataset(uri), Dataset(uri).newest_version()
    version = exclude(PIPELINE, str(uri), SPAN, reason="the feed was down", by="ann")
    other = exclude(PIPELINE, str(uri), Window(3_000, 4_000), reason="a test", by="bob")
    assert (version, other) == (before + 1, before + 2)
    assert dataset.commit(version).rows == 0
    assert excluded_at(str(uri), before) == ()
    assert [(e.span, e.by, e.reason) for e in excluded_at(str(uri), version)] == [
        (SPAN, "ann", "the feed was down")
    ]
    back = include(PIPELINE, str(uri), SPAN, reason="pushed again", by="ann")
    assert [each.span for each in excluded_at(str(uri), back)] == [Window(3_000, 4_000)]
    assert [each.span for each in excluded_at(str(uri), other)] == [SPAN, Window(3_000, 4_000)]


def test_a_decision_that_changes_nothing_or_says_not_why_is_refused(uri: Path) -> None:
    exclude(PIPELINE, str(uri), SPAN, reason="x", by="ann")
    newest = Dataset(uri).newest_version()
    with pytest.raises(NothingToDecide, match="excluded already, with 1000-2000 by ann: x"):
        exclude(PIPELINE, str(uri), Window(1_200, 1_300), reason="y", by="bob")
    with pytest.raises(NothingToDecide, match="excluded spans of p: 1000-2000"):
        include(PIPELINE, str(uri), Window(0, 1_000), reason="y", by="bob")
    with pytest.raises(NothingToDecide, match="say why"):
        exclude(PIPELINE, str(uri), Window(0, 1_000), reason=" ", by="bob")
    with pytest.raises(NothingToDecide, match="ends before it begins"):
        exclude(PIPELINE, str(uri), Window(10, 10), reason="y", by="bob")
    assert Dataset(uri).newest_version() == newest


def test_a_worker_that_runs_goes_on_and_keeps_what_was_decided(uri: Path) -> None:
    ledger = Ledger(uri, dataset_schema(PIPELINE))
    at = ledger.position(("events", 0))
    assert at is not None
    exclude(PIPELINE, str(uri), SPAN, reason="x", by="ann")
    ledger.refresh()
    nothing = pl.DataFrame(schema=ledger.schema)
    version = ledger.commit(nothing, advances={("events", 0): Advance(at, at)}, watermarks={}, metadata={})
    assert [each.span for each in excluded_at(str(uri), version)] == [SPAN]


def _folded(uri: Path, *, anew: bool) -> list[Announced]:
    """All that the log says, in one go or by a fold taken up again before the last quarter."""
    newest = Dataset(uri).newest_version()
    start = newest * 3 // 4 if anew else 0
    if anew:
        progress = recall(PIPELINE, str(uri), through_version=start)
    else:
        progress = Progress(closing(PIPELINE.window), version=0, history=beginning(PIPELINE))
    fold = announcer(PIPELINE, uri, progress)
    said: list[Announced] = []
    for version in range(start + 1, newest + 1):
        said += fold.apply(read_commit(PIPELINE, str(uri), version))
    return said


def test_whoever_folds_the_log_announces_the_same_decisions_and_jobs_obey_them(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    ledger_uri = str(uri)
    made = committed(PIPELINE, tmp_path / "whole", seed=7)
    # The same commits again, with a decision in the middle of them.
    ledger = Ledger(uri, dataset_schema(PIPELINE))
    for number, commit in enumerate(made):
        if number == len(made) // 3:
            exclude(PIPELINE, ledger_uri, SPAN, reason="x", by="ann")
            ledger.refresh()
        if number == len(made) - 2:
            include(PIPELINE, ledger_uri, SPAN, reason="y", by="ann")
            ledger.refresh()
        rows = pl.concat(commit.by_source.values(), how="diagonal") if commit.by_source else None
        frame = pl.DataFrame(schema=ledger.schema)
        if rows is not None:
            frame = pl.concat([frame, rows], how="diagonal_relaxed").cast(dict(ledger.schema))  # type: ignore[arg-type]
        offsets = {tuple(n.rsplit("/", 1)): ends for n, ends in commit.metadata["offsets"].items()}
        ledger.commit(
            frame,
            advances={(t, int(n)): Advance(*ends) for (t, n), ends in offsets.items()},
            watermarks={},
            metadata=commit.metadata,
            pipeline_watermark_ms=commit.metadata["watermark_ms"],
        )
    whole = _folded(uri, anew=False)
    decisions = [unwrap(e.envelope) for e in whole if e.topic == WINDOWS.name]
    decisions = [d for d in decisions if isinstance(d, WindowExcluded | WindowIncluded)]
    assert [(type(d), d.window, d.reason) for d in decisions] == [
        (WindowExcluded, SPAN, "x"),
        (WindowIncluded, SPAN, "y"),
    ]
    jobs = [unwrap_as(e.envelope, JobRequested).experiment for e in whole if e.topic == JOBS.name]
    assert any(SPAN in job.training.excluded for job in jobs)
    again = _folded(uri, anew=True)
    ids = {e.envelope.id: e for e in whole if e.topic == WINDOWS.name}
    tail = [e for e in again if e.topic == WINDOWS.name]
    assert tail
    assert all(ids[e.envelope.id] == e for e in tail)


def test_an_excluded_window_is_not_counted_among_the_last_n_nor_judged_on() -> None:
    closed = next(each for each in examples.announced() if isinstance(each, WindowClosed))
    day = closed.window.end_ms - closed.window.start_ms
    end = closed.window.end_ms

    def job(*excluded: Window) -> tuple[DatasetRange, DatasetRange | None]:
        asked = job_for(
            Training("a:b", data=last(windows=3)),
            Publish(PIPELINE.publish_when.gate),
            closed,
            spec=PIPELINE.spec(),
            newest_from_ms=lambda count, end_ms: end_ms - count * day,
            decision_id="",
            configuration_sha256="",
            requested_ms=0,
            excluded=excluded,
        )
        return asked.experiment.training, asked.experiment.evaluation

    training, judged = job()
    assert (training.start_ms, training.end_ms) == (end - 4 * day, end - day)
    hole = Window(end - 3 * day, end - 2 * day)
    training, judged = job(hole)
    assert (training.start_ms, training.excluded) == (end - 5 * day, (hole,))
    newest = Window(end - day, end)
    training, judged = job(newest)
    assert judged is not None
    assert (judged.start_ms, judged.excluded) == (end - 2 * day, (newest,))
    part = Window(end - 3 * day, end - 3 * day + 5)  # a part of a window takes its events, not the window
    training, _ = job(part)
    assert (training.start_ms, training.excluded) == (end - 4 * day, (part,))


def test_trainings_and_judgements_have_no_event_of_an_excluded_span_and_the_same_rows_again(
    tmp_path: Path,
) -> None:
    write_dataset(tmp_path / "d")
    asked = experiment(tmp_path / "d", "good:train", "m")
    cut_ms = SPAN_MS * 3 // 4
    holes = (Window(0, cut_ms // 2), Window(cut_ms, cut_ms + 3_600_000))
    with_holes = experiment(
        tmp_path / "d",
        "good:train",
        "m",
        training=DatasetRange(
            uri=asked.training.uri, version=1, start_ms=0, end_ms=cut_ms, excluded=holes[:1]
        ),
        evaluation=DatasetRange(
            uri=asked.training.uri, version=1, start_ms=cut_ms, end_ms=SPAN_MS, excluded=holes[1:]
        ),
    )
    assert asked.run_key() != with_holes.run_key()
    every, some = read(asked), read(with_holes)
    kept = every.training.filter(pl.col("_time") >= cut_ms // 2)
    assert 0 < kept.height < every.training.height
    # Features of what is left look at the excluded events too, as the service's did.
    assert table_digest(some.training) == table_digest(kept) == table_digest(read(with_holes).training)
    assert some.judged is not None
    assert every.judged is not None
    assert some.judged.get_column("_time").min() == cut_ms + 3_600_000
    everything = DatasetRange(
        uri=asked.training.uri, version=1, start_ms=0, end_ms=cut_ms, excluded=(Window(0, cut_ms),)
    )
    with pytest.raises(NothingToTrainOn):
        read(experiment(tmp_path / "d", "good:train", "m", training=everything))
