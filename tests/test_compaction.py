"""Compaction and vacuum: other files, the same rows, for every reader, version and worker, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import polars as pl
import psutil
import pytest
from aiokafka import AIOKafkaProducer
from deltalake import DeltaTable
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from infra.command import data as _data  # noqa: F401
from infra.command import upkeep as _commands  # noqa: F401  (importing registers them)
from infra.command.app import app
from infra.dataset import Dataset, DatasetUnreadable
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.observe.instruments import Instruments
from infra.settings_model import Upkeep
from schemas import examples, topics
from schemas.contract import Announcement
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration
from schemas.job import JobRequested, JobSkipped
from schemas.model import ModelPublished
from streams.announce.fold import Progress
from streams.announce.log import read_commit, recall
from streams.closing import closing
from streams.ledger import compaction
from streams.ledger.commit import Ledger, Overtaken
from streams.ledger.compaction import Compacted, CompactionNotWritten, CompactionOvertaken, compact
from streams.ledger.keeper import CompactionFailed, Keeper
from streams.ledger.retention import references, vacuum
from streams.summary.profiling import beginning
from tests.test_announce import PIPELINES, announcer, committed
from tests.test_ledger import SCHEMA, A, B, commit, small_disk
from tests.worker_fixtures import wait_until

T = TypeVar("T")

EVER: dict[str, Any] = {"start_ms": -(10**9), "end_ms": 10**9}


def of_commits(uri: Path, count: int, *, rows_each: int = 3) -> Ledger:
    ledger = Ledger(uri, SCHEMA)
    for n in range(count):
        commit(ledger, n * rows_each, (n + 1) * rows_each, pipeline_watermark_ms=n)
    return ledger


def compacted(uri: Path, files: int = 3) -> Compacted:
    made = compact(str(uri), files=files, file_bytes=1 << 20)
    assert made is not None
    return made


def live(uri: Path, version: int | None = None) -> list[str]:
    return [Path(file).name for file in DeltaTable(uri, version=version).file_uris()]


# ── the same rows ───────────────────────────────────────────────────────────────────────────────────


def test_a_compaction_changes_files_and_nothing_else(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    ledger = of_commits(uri, 8)
    dataset = Dataset(uri)
    before = {v: dataset.rows("events", version=v, **EVER) for v in range(9)}
    ranges = dataset.offset_ranges(version=8, **EVER)
    made = compacted(uri)
    assert (made.version, made.files, made.rows) == (9, 8, 24)
    assert len(live(uri)) == 1
    for version, expected in {**before, 9: before[8]}.items():
        assert_frame_equal(dataset.rows("events", version=version, **EVER), expected)
    assert dataset.offset_ranges(version=9, **EVER) == ranges
    assert pl.scan_delta(DeltaTable(uri)).collect().height == 24
    # It says nothing of offsets: the ledger stands where it stood, for who was there and for who comes.
    assert "offsets" not in dataset.commit(9).metadata
    assert (dataset.commit(9).operation, dataset.commit(9).rows) == ("OPTIMIZE", 24)
    for other in (ledger, Ledger(uri, SCHEMA)):
        other.refresh()
        assert (other.position(A), other.watermark(A), other.pipeline_watermark()) == (24, 240, 7)
    commit(ledger, 24, 27)
    assert dataset.rows("events", version=10, **EVER).height == 27


def test_what_one_compaction_reads_is_bounded_in_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 5, rows_each=100)
    monkeypatch.setattr(compaction, "_MOST_ROWS", 250)
    made = compact(str(uri), files=4, file_bytes=1 << 20)
    assert made is not None
    assert (made.files, made.rows) == (3, 300)
    assert compact(str(uri), files=2, file_bytes=1 << 20) is not None, "those that are left"
    assert compact(str(uri), files=2, file_bytes=1 << 20) is None, "a file of that many rows is left alone"
    assert Dataset(uri).rows("events", version=6, **EVER).height == 500


def test_files_of_a_size_are_made_one_until_they_are_large_enough(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    ledger = of_commits(uri, 4, rows_each=2_000)
    size = sum(f.stat().st_size for f in uri.glob("*.parquet")) // 4
    assert compact(str(uri), files=5, file_bytes=1 << 20) is None, "too few"
    assert compact(str(uri), files=2, file_bytes=size // 2) is None, "all are large enough"
    made = compact(str(uri), files=4, file_bytes=int(size * 2.5))
    assert made is not None
    assert made.files == 3, "the oldest, until it is as large as it should be"
    times = Dataset(uri).rows("events", version=5, **EVER).get_column("_time")
    assert times.is_sorted()
    ledger.refresh()
    commit(ledger, 8_000, 8_001)


def test_a_reader_of_few_windows_still_opens_few_files(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 12)
    for _ in range(3):
        made = compact(str(uri), files=3, file_bytes=8_000)
        assert made is not None
    acts = pl.DataFrame(DeltaTable(uri).get_add_actions(flatten=True)).sort("min._time")
    assert acts.height < 12
    assert (acts["min._time"].shift(-1) > acts["max._time"]).drop_nulls().all(), "spans of time stay apart"


@pytest.mark.parametrize("kind", ["tumbling", "session by key"])
def test_an_announcer_that_starts_anew_behind_compactions_and_a_vacuum_announces_the_same(
    kind: str, tmp_path: Path
) -> None:
    pipeline, uri = PIPELINES[kind], tmp_path / "p"
    commits = committed(pipeline, uri, seed=11)
    plain = announcer(pipeline, uri, fresh(pipeline))
    expected = [said for each in commits for said in plain.apply(each)]
    while compact(str(uri), files=3, file_bytes=1 << 20):
        pass
    newest = Dataset(uri).newest_version()
    assert newest > len(commits)
    aged(uri, hours=48)
    assert vacuum(str(uri), keep=[], keep_hours=24)
    fold = announcer(pipeline, uri, fresh(pipeline))
    again = [said for v in range(1, newest + 1) for said in fold.apply(read_commit(pipeline, str(uri), v))]
    assert [each.envelope.id for each in again] == [each.envelope.id for each in expected]
    assert [s for s in again if s.topic != "tidemill.features"] == [
        s for s in expected if s.topic != "tidemill.features"
    ]
    progress = recall(pipeline, str(uri), through_version=newest)
    assert progress.windows == fold.progress.windows
    assert progress.watermark_ms == fold.progress.watermark_ms
    assert progress.tail_from_ms == fold.progress.tail_from_ms


def fresh(pipeline: Any) -> Progress:
    return Progress(closing(pipeline.window), version=0, history=beginning(pipeline))


# ── beside others ───────────────────────────────────────────────────────────────────────────────────

APPENDING = """
import sys
from pathlib import Path
from streams.ledger.commit import Overtaken
from tests.test_ledger import SCHEMA, commit
from streams.ledger.commit import Ledger
uri, partition, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ledger = Ledger(uri, SCHEMA)
for n in range(count):
    while True:
        try:
            commit(ledger, n * 2, n * 2 + 2, partition=partition)
            break
        except Overtaken:
            pass
"""


def test_workers_append_while_it_compacts_and_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 0)
    appending = [
        subprocess.Popen([sys.executable, "-c", APPENDING, str(uri), str(n), "60"], cwd=Path.cwd())
        for n in (0, 1)
    ]
    made = given_up = 0
    while any(p.poll() is None for p in appending):
        try:
            made += compact(str(uri), files=4, file_bytes=1 << 20) is not None
        except CompactionOvertaken:
            given_up += 1
    assert [p.returncode for p in appending] == [0, 0]
    assert made > 3, f"appends never kept it from its work for ever (given up {given_up} times)"
    dataset = Dataset(uri)
    found = dataset.rows("events", version=dataset.newest_version(), **EVER)
    assert found.select("_partition", "_offset").sort("_partition", "_offset").rows() == [
        (partition, offset) for partition in (0, 1) for offset in range(120)
    ]
    ledger = Ledger(uri, SCHEMA)
    assert (ledger.position(A), ledger.position(B)) == (120, 120)


def test_of_two_that_compact_the_same_files_one_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 5)
    import streams.ledger.compaction as module

    real = module._entry

    def another_first(*arguments: Any) -> bytes:
        monkeypatch.setattr(module, "_entry", real)
        compacted(uri)
        return real(*arguments)

    monkeypatch.setattr(module, "_entry", another_first)
    with pytest.raises(CompactionOvertaken, match="changes what was to be compacted"):
        compacted(uri)
    assert len(list(uri.glob("part-compacted-*"))) == 1, "its own file is gone"
    assert Dataset(uri).rows("events", version=6, **EVER).height == 15


def test_an_append_that_comes_first_is_let_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = tmp_path / "p"
    ledger = of_commits(uri, 5)
    import streams.ledger.compaction as module

    real = module._entry

    def append_first(*arguments: Any) -> bytes:
        commit(ledger, 15, 18)
        return real(*arguments)

    monkeypatch.setattr(module, "_entry", append_first)
    assert compacted(uri).version == 7
    with pytest.raises(Overtaken):
        commit(ledger, 18, 21)
    commit(ledger, 18, 21)
    assert Dataset(uri).rows("events", version=8, **EVER).height == 21


KILLED = """
import os, signal, sys
from pathlib import Path
at = int(sys.argv[2])
calls = 0
def counting(real):
    def call(*a, **k):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*a, **k)
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
from streams.ledger.compaction import compact
import polars as pl
os.fsync, os.link = counting(os.fsync), counting(os.link)
pl.DataFrame.write_parquet = counting(pl.DataFrame.write_parquet)
compact(sys.argv[1], files=3, file_bytes=1 << 20)
print(calls)
"""


def test_killed_at_any_step_it_leaves_the_dataset_as_it_was_or_compacted(tmp_path: Path) -> None:
    def run(uri: Path, at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(uri), str(at)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path.cwd())

    of_commits(tmp_path / "whole", 4)
    done = run(tmp_path / "whole", 0)
    steps = int(done.stdout)
    assert done.returncode == 0
    assert steps >= 8, "writing, flushing, linking: a kill before and after each"
    as_it_was = 0
    for at in range(1, steps + 1, max(1, steps // 4)):
        uri = tmp_path / f"killed-{at}"
        of_commits(uri, 4)
        assert run(uri, at).returncode == -signal.SIGKILL
        ledger = Ledger(uri, SCHEMA)
        assert ledger.position(A) == 12
        as_it_was += ledger.version() == 4
        assert Dataset(uri).rows("events", version=ledger.version(), **EVER).height == 12
        commit(ledger, 12, 15)
        compact(str(uri), files=2, file_bytes=1 << 20)
        newest = Dataset(uri).newest_version()
        assert Dataset(uri).rows("events", version=newest, **EVER).height == 15
        aged(uri, hours=30)
        vacuum(str(uri), keep=[], keep_hours=24)
        assert {f.name for f in uri.glob("*.parquet")} == set(live(uri)), "what it left behind is gone"
        assert not [f for f in (uri / "_delta_log").iterdir() if f.name.startswith(".")]
    assert 0 < as_it_was < steps


def test_a_full_disk_stops_a_compaction_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        uri = disk / "p"
        ledger = of_commits(uri, 6, rows_each=400)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as filling:
            while True:
                filling.write(b"\0" * 4096)
        before = sorted(p.name for p in uri.rglob("*"))
        with pytest.raises(CompactionNotWritten, match="the dataset is as it was: free space"):
            compacted(uri)
        assert sorted(p.name for p in uri.rglob("*")) == before
        ballast.unlink()
        assert compacted(uri).rows == 2_400
        ledger.refresh()
        commit(ledger, 2_400, 2_401)


def test_a_compaction_is_on_disk_before_the_log_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 4)
    flushed: list[str] = []
    fsync, link = os.fsync, os.link
    monkeypatch.setattr(
        os, "fsync", lambda h: (flushed.append(Path(f"/proc/self/fd/{h}").readlink().name), fsync(h))[1]
    )
    monkeypatch.setattr(os, "link", lambda a, b: (flushed.append("named"), link(a, b))[1])
    compacted(uri)
    data, staged = (next(n for n in flushed if n.startswith(p)) for p in ("part-compacted-", ".0000"))
    assert flushed.index(data) < flushed.index(staged) < flushed.index("named")
    assert "p" in flushed[: flushed.index("named")], "its folder, too"
    assert "_delta_log" in flushed[flushed.index("named") :]


def test_a_compaction_that_falls_on_a_checkpoints_turn_makes_one(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 99)
    assert compacted(uri).version == 100
    assert list((uri / "_delta_log").glob("*100.checkpoint.parquet"))
    ledger = Ledger(uri, SCHEMA)
    assert (ledger.position(A), ledger.watermark(A), ledger.pipeline_watermark()) == (297, 2_970, 98)
    commit(ledger, 297, 300)
    assert Dataset(uri).rows("events", version=101, **EVER).height == 300


# ── old versions ────────────────────────────────────────────────────────────────────────────────────


def aged(uri: Path, *, hours: int) -> None:
    """Make all that is there look so much older, as the log and the file system tell it."""
    by_ms = hours * 3_600_000
    for entry in (uri / "_delta_log").glob("[0-9]*.json"):
        text = entry.read_text()
        for name in ("timestamp", "deletionTimestamp", "modificationTime"):
            text = re.sub(rf'"{name}":\s*(\d+)', lambda m, n=name: f'"{n}":{int(m[1]) - by_ms}', text)
        entry.write_text(text)
    for file in (*uri.glob("*.parquet"), *(uri / "_delta_log").iterdir()):
        then = time.time() - hours * 3_600
        os.utime(file, (then, then))


def test_a_version_that_is_referred_to_keeps_its_files_and_every_other_reads_the_same_from_newer_ones(
    tmp_path: Path,
) -> None:
    uri = tmp_path / "p"
    ledger = of_commits(uri, 6)
    dataset = Dataset(uri)
    before = {v: dataset.rows("events", version=v, **EVER) for v in range(7)}
    ranges = {v: dataset.offset_ranges(version=v, **EVER) for v in range(7)}
    compacted(uri)
    ledger.refresh()
    for n in range(6, 9):
        commit(ledger, n * 3, n * 3 + 3)
    aged(uri, hours=30)
    for n in range(9, 12):
        ledger.refresh()
        commit(ledger, n * 3, n * 3 + 3)
    compact(str(uri), files=6, file_bytes=1 << 20)
    newest = dataset.newest_version()
    assert vacuum(str(uri), keep=[], keep_hours=24, dry_run=True)
    gone = vacuum(str(uri), keep=[2, 5], keep_hours=24)
    assert len(gone) == 1, "only what version 6 had and 5 had not"
    for version in (2, 5):
        assert pl.scan_delta(DeltaTable(uri, version=version)).collect().height == version * 3
    with pytest.raises(FileNotFoundError):
        pl.scan_delta(DeltaTable(uri, version=6)).collect()
    for version, expected in before.items():
        assert_frame_equal(dataset.rows("events", version=version, **EVER), expected)
        assert dataset.offset_ranges(version=version, **EVER) == ranges[version]
    assert dataset.rows("events", version=newest, **EVER).height == 36
    for version in range(10, newest + 1):
        assert dataset.rows("events", version=version, **EVER).height >= 27, "the last hours are kept"
    ledger.refresh()
    assert ledger.position(A) == 36
    commit(ledger, 36, 37)
    aged(uri, hours=30)
    assert vacuum(str(uri), keep=[], keep_hours=24), "no model refers to them any more"
    assert_frame_equal(dataset.rows("events", version=2, **EVER), before[2])
    assert dataset.rows("events", version=dataset.newest_version(), **EVER).height == 37


def test_a_vacuum_leaves_what_is_young_and_what_is_being_written(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 5)
    compacted(uri)
    being_written = uri / "part-new.parquet"
    being_written.write_text("rows of a commit that is not yet made")
    assert vacuum(str(uri), keep=[], keep_hours=1) == []
    assert being_written.exists()
    assert Dataset(uri).rows("events", version=3, **EVER).height == 9


def test_a_version_to_keep_that_is_not_there_stops_the_vacuum(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 5)
    compacted(uri)
    (uri / "_delta_log" / f"{2:020d}.json").write_text("{")
    aged(uri, hours=30)
    before = sorted(uri.glob("*.parquet"))
    with pytest.raises(DatasetUnreadable, match="no readable version"):
        vacuum(str(uri), keep=[2], keep_hours=24)
    assert sorted(uri.glob("*.parquet")) == before


async def publish(connection: Connection, said: list[tuple[str, Announcement]]) -> None:
    producer = AIOKafkaProducer(**connection.client_arguments(), max_request_size=16_777_216)
    await producer.start()
    try:
        for topic, announcement in said:
            key, value, headers = wrap(announcement, source="/test", time_ms=1).record()
            await producer.send_and_wait(topic, key=key, value=value, headers=headers)
    finally:
        await producer.stop()


async def test_models_and_open_jobs_say_which_versions_are_kept(
    kafka: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    await ensure(topics.TOPICS, connection)
    uri = str(tmp_path / "dataset" / "p")
    job = next(e for e in examples.announced() if isinstance(e, JobRequested))
    model = next(e for e in examples.announced() if isinstance(e, ModelPublished))

    def asked(job_id: str, version: int, at: str = uri) -> JobRequested:
        span = msgspec.structs.replace(job.experiment.training, uri=at, version=version)
        experiment = msgspec.structs.replace(job.experiment, training=span, evaluation=span)
        return msgspec.structs.replace(job, job_id=job_id, experiment=experiment)

    lineage = msgspec.structs.replace(
        model.manifest.lineage, dataset_uri=uri, dataset_version=7, job_id="kept-published"
    )
    manifest = msgspec.structs.replace(model.manifest, name="kept", version=3, lineage=lineage)
    published = msgspec.structs.replace(model, name="kept", manifest=manifest)
    await publish(
        connection,
        [
            (topics.JOBS.name, asked("kept-open", 11)),
            (topics.JOBS.name, asked("kept-skipped", 12)),
            (topics.JOBS.name, asked("kept-published", 13)),
            (topics.JOBS.name, asked("kept-elsewhere", 14, at=str(tmp_path / "other"))),
            (topics.JOBS.name, JobSkipped(job_id="kept-skipped", reason="no rows", finished_ms=1)),
            (topics.MODELS.name, published),
        ],
    )
    found = await references(connection, str(tmp_path / "." / "dataset" / "p"))
    assert found.models == {"kept/3": {7}}
    assert found.jobs == {"kept-open": {11}}
    assert found.versions() == {7, 11}
    # And so does the command, which asks the cluster that the settings name.
    of_commits(Path(uri), 3)
    (tmp_path / "p.py").write_text("from tests.test_announce import PIPELINE\n")
    monkeypatch.setenv("TIDEMILL_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("TIDEMILL_WORKER__PIPELINE", str(tmp_path / "p.py"))
    done = await asyncio.to_thread(tidemill, tmp_path, monkeypatch, "data", "kept", "--json")
    told = json.loads(done.stdout)
    assert (told["pipeline"], told["newest"]) == ("p", 3)
    assert told["kept"] == [
        {"version": 7, "needed_by": ["model kept/3"]},
        {"version": 11, "needed_by": ["job kept-open"]},
    ]


async def test_a_worker_that_leads_keeps_the_dataset_and_others_do_not(
    kafka: EmbeddedBroker, tmp_path: Path
) -> None:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    await ensure(topics.TOPICS, connection)
    uri = tmp_path / "p"
    of_commits(uri, 6)
    aged(uri, hours=30)
    options = Upkeep(compact_files=4, vacuum_interval_ms=1)
    await Keeper(str(uri), connection, options, is_mine=lambda: False).once()
    assert (Dataset(uri).newest_version(), len(live(uri))) == (6, 6)
    keeper = Keeper(str(uri), connection, options, is_mine=lambda: True)
    await keeper.once()
    assert len(live(uri)) == 1
    aged(uri, hours=30)
    await keeper.once()
    assert [f.name for f in uri.glob("*.parquet")] == live(uri)


# ── in a process of its own ────────────────────────────────────────────────────────────────────────


KEEPING = """
import asyncio, sys
from infra.kafka.connection import Connection
from infra.observe.instruments import Instruments
from infra.settings_model import Upkeep
from streams.ledger.keeper import CompactionFailed, Keeper
connection = Connection(bootstrap_servers="127.0.0.1:9")
options = Upkeep(compact_files=4, vacuum=False)
asyncio.run(Keeper(sys.argv[1], connection, options, is_mine=lambda: True).once())
"""


def keeper_of(uri: Path, instruments: Instruments | None = None) -> Keeper:
    connection = Connection(bootstrap_servers="127.0.0.1:9")  # which nobody needs for a compaction
    options = Upkeep(compact_files=4, vacuum=False, interval_ms=20)
    return Keeper(str(uri), connection, options, is_mine=lambda: True, instruments=instruments, pipeline="p")


def compactors(of: int) -> list[psutil.Process]:
    """The processes that compact for that one."""
    try:
        return [c for c in psutil.Process(of).children() if "streams.ledger.compactor" in c.cmdline()]
    except psutil.NoSuchProcess:
        return []


async def eventually(holds: Callable[[], T], what: str) -> T:
    """The first true answer, while the loop goes on."""
    return await asyncio.to_thread(wait_until, holds, what)


async def compactor_of(pid: int) -> psutil.Process:
    return (await eventually(lambda: compactors(pid), "a process compacts"))[0]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def assert_whole(uri: Path, rows: int) -> None:
    """Each row is there once, the ledger stands behind them, and another commit goes in."""
    ledger, dataset = Ledger(uri, SCHEMA), Dataset(uri)
    found = dataset.rows("events", version=dataset.newest_version(), **EVER)
    assert found.get_column("_offset").sort().to_list() == list(range(rows))
    assert ledger.position(A) == rows
    commit(ledger, rows, rows + 1)


async def test_a_worker_commits_on_while_a_process_at_low_priority_compacts(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    ledger = of_commits(uri, 6)
    keeping = asyncio.create_task(keeper_of(uri).once())
    compactor = await compactor_of(os.getpid())
    compactor.suspend()  # a compaction that takes for ever
    for n in range(6, 10):
        commit(ledger, n * 3, n * 3 + 3)
    assert ledger.version() == 10
    compactor.resume()
    await eventually(lambda: is_gone(compactor) or compactor.nice() == os.nice(0) + 10, "it makes way")
    await keeping
    assert len(live(uri)) < 10
    assert not compactors(os.getpid()), "it has ended"
    assert_whole(uri, 30)


async def test_a_compaction_that_is_killed_is_counted_and_made_again(tmp_path: Path) -> None:
    uri, instruments = tmp_path / "p", Instruments("worker")
    of_commits(uri, 6)
    running = asyncio.create_task(keeper_of(uri, instruments).run())
    (await compactor_of(os.getpid())).kill()
    await eventually(lambda: len(live(uri)) == 1, "it is compacted")
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    said = instruments.exposition().decode()
    assert 'tidemill_upkeep_failures_total{pipeline="p"} 1.0' in said
    assert_whole(uri, 18)


@pytest.mark.parametrize("end", ["SIGKILL", "it stops"])
async def test_no_compaction_is_left_behind_by_its_worker(end: str, tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 6)
    if end == "SIGKILL":
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", KEEPING, str(uri))
        compactor = await compactor_of(worker.pid)
        worker.kill()
        await worker.wait()
    else:
        keeping = asyncio.create_task(keeper_of(uri).run())
        compactor = await compactor_of(os.getpid())
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
    await eventually(lambda: is_gone(compactor), "its compactor is gone")
    assert_whole(uri, 18)


async def test_a_compaction_that_cannot_be_says_why(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    of_commits(uri, 6)
    (uri / live(uri)[0]).unlink()
    with pytest.raises(CompactionFailed, match=r"could not be written .*the dataset is as it was"):
        await keeper_of(uri).once()
    assert not list(uri.glob("part-compacted-*"))


# ── by hand ─────────────────────────────────────────────────────────────────────────────────────────


def tidemill(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(home))
    return CliRunner().invoke(app, arguments)


def test_compact_and_history_by_hand_and_a_vacuum_that_cannot_ask_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "dataset" / "flights"
    of_commits(uri, 5)
    said = tidemill(tmp_path, monkeypatch, "dataset", "compact", "--files", "3", "--json")
    assert json.loads(said.stdout)["versions"] == [6], said.stderr
    told = json.loads(
        tidemill(tmp_path, monkeypatch, "dataset", "history", "flights", "--json", "--last", "3").stdout
    )
    assert [(e["version"], e["what"], e["rows"]) for e in told["history"]] == [
        (6, "compaction", 0),
        (5, "rows", 3),
        (4, "rows", 3),
    ]
    refused = tidemill(tmp_path, monkeypatch, "dataset", "vacuum").exception
    assert isinstance(refused, InvalidConfiguration)
    assert "Nothing was deleted" in str(refused)
    unknown = tidemill(tmp_path, monkeypatch, "dataset", "history", "fligths").exception
    assert isinstance(unknown, InvalidConfiguration)
    assert "there are flights" in str(unknown)
