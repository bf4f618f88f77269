"""The ledger: all of a commit or nothing, by its owner or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from infra.dataset import META, Dataset, DatasetUnreadable, entry_of
from infra.switched import newest_switch
from schemas.errors import InvalidConfiguration
from streams.ledger import checkpoint as checkpoint_module
from streams.ledger import commit as ledger_commit
from streams.ledger.commit import (
    Advance,
    DatasetDiffers,
    DatasetNotWhole,
    DatasetNotWritable,
    Fenced,
    Ledger,
    Overtaken,
)

SCHEMA: dict[str, Any] = {"id": pl.String(), "value": pl.Float64()}
A, B = ("events", 0), ("events", 1)


def rows(start: int, end: int, *, partition: int = 0) -> pl.DataFrame:
    offsets = range(start, end)
    return pl.DataFrame(
        {
            "id": [str(o) for o in offsets],
            "value": [float(o) for o in offsets],
            "_source": "events",
            "_partition": partition,
            "_offset": offsets,
            "_row": 0,
            "_time": [o * 10 for o in offsets],
            "_tags": [[] for _ in offsets],
        },
        schema={**SCHEMA, **META},
    )


def commit(ledger: Ledger, start: int, end: int, *, partition: int = 0, **more: Any) -> int:
    key = ("events", partition)
    made = more.pop("made", None)
    return ledger.commit(
        rows(start, end, partition=partition) if made is None else made,
        advances={key: Advance(start, end)},
        watermarks={key: end * 10},
        metadata={"offsets": {f"events/{partition}": [start, end]}},
        **more,
    )


def offsets(uri: Path) -> list[int]:
    dataset = Dataset(uri)
    version = dataset.newest_version()
    found = dataset.rows("events", version=version, start_ms=-(10**9), end_ms=10**9)
    return found.sort("_partition", "_offset").get_column("_offset").to_list()


def test_rows_offsets_watermarks_and_metadata_come_together_and_survive_reopening(tmp_path: Path) -> None:
    uri = tmp_path / "deep" / "p"
    first = Ledger(uri, SCHEMA)
    assert (first.position(A), first.watermark(A), first.pipeline_watermark()) == (None, None, None)
    assert commit(first, 0, 3, pipeline_watermark_ms=7) == 1
    assert commit(first, 3, 5) == 2
    for ledger in (first, Ledger(uri, SCHEMA)):
        assert (ledger.version(), ledger.position(A), ledger.watermark(A)) == (2, 5, 50)
        assert (ledger.position(B), ledger.watermark(B), ledger.pipeline_watermark()) == (None, None, 7)
    assert offsets(uri) == [0, 1, 2, 3, 4]
    assert Dataset(uri).commit(2).metadata == {"offsets": {"events/0": [3, 5]}}


def test_a_partition_is_idle_until_it_moves_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "p", SCHEMA)
    commit(ledger, 0, 3)
    nothing = rows(0, 0)
    ledger.commit(nothing, advances={A: Advance(3, 3)}, watermarks={}, metadata={}, idle=[A])
    assert ledger.is_idle(A)
    assert Ledger(tmp_path / "p", SCHEMA).is_idle(A)
    assert not ledger.is_idle(B)
    commit(ledger, 3, 4)
    assert not ledger.is_idle(A)


def test_a_zombie_is_fenced_and_its_rows_are_not_in(tmp_path: Path) -> None:
    owner, zombie = Ledger(tmp_path / "p", SCHEMA), Ledger(tmp_path / "p", SCHEMA)
    commit(owner, 0, 3)
    with pytest.raises(Fenced) as fenced:
        commit(zombie, 0, 2)
    assert (fenced.value.partition, fenced.value.expected, fenced.value.found) == (A, 0, 3)
    assert "another worker owns it" in str(fenced.value)
    with pytest.raises(Fenced):
        commit(zombie, 0, 2)
    assert offsets(tmp_path / "p") == [0, 1, 2]


def test_workers_of_different_partitions_overtake_each_other_and_none_loses_a_row(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "p", SCHEMA), Ledger(tmp_path / "p", SCHEMA)
    at = {0: 0, 1: 0}
    overtaken = 0
    for turn in range(12):
        for ledger, partition in ((one, 0), (other, 1)) if turn % 3 else ((other, 1), (one, 0)):
            while True:
                try:
                    commit(ledger, at[partition], at[partition] + 2, partition=partition)
                except Overtaken:
                    overtaken += 1
                else:
                    break
            at[partition] += 2
    assert overtaken > 0
    assert offsets(tmp_path / "p") == [*range(24), *range(24)]


def files(uri: Path) -> set[str]:
    return {file.name for file in uri.glob("*.parquet")}


def named(uri: Path) -> set[str]:
    return {Path(file).name for file in DeltaTable(uri).file_uris()}


def test_an_overtaken_commit_is_tried_again_with_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "p"
    one, other = Ledger(uri, SCHEMA), Ledger(uri, SCHEMA)
    written: list[Path] = []
    write = ledger_commit.write_file
    monkeypatch.setattr(
        ledger_commit, "write_file", lambda *given: written.append(write(*given)) or written[-1]
    )
    made = rows(0, 4, partition=1)
    for turn in range(3):
        commit(one, turn, turn + 1)
        with pytest.raises(Overtaken):
            commit(other, 0, 4, partition=1, made=made)
    assert not other.is_behind()
    commit(other, 0, 4, partition=1, made=made)
    assert len(written) == 4
    assert files(uri) == named(uri)
    assert offsets(uri) == [0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("then", ["other rows", "fenced"])
def test_a_file_of_a_commit_that_is_given_up_is_not_left(tmp_path: Path, then: str) -> None:
    uri = tmp_path / "p"
    one, other = Ledger(uri, SCHEMA), Ledger(uri, SCHEMA)
    commit(one, 0, 1)
    with pytest.raises(Overtaken):
        commit(other, 0, 4, partition=1)
    assert len(files(uri) - named(uri)) == 1
    if then == "fenced":
        commit(one, 0, 2, partition=1)
        other.refresh()
        with pytest.raises(Fenced):
            commit(other, 0, 4, partition=1)
    else:
        commit(other, 0, 3, partition=1)
    assert files(uri) == named(uri)


def test_a_file_that_a_version_names_after_all_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a link is made on a far file system and its answer is lost: the next try finds it there."""
    uri = tmp_path / "p"
    ledger = Ledger(uri, SCHEMA)
    put = ledger_commit.put

    def made_and_asked_again(*given: Any, **named: Any) -> None:
        put(*given, **named)
        put(*given, **named)

    monkeypatch.setattr(ledger_commit, "put", made_and_asked_again)
    with pytest.raises(Fenced):
        commit(ledger, 0, 3)
    assert offsets(uri) == [0, 1, 2]


def test_what_others_committed_is_taken_in_by_their_entries(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "p", SCHEMA), Ledger(tmp_path / "p", SCHEMA)
    assert not other.refresh()
    for turn in range(5):
        assert other.position(A) == (turn or None)
        commit(one, turn, turn + 1, pipeline_watermark_ms=turn)
        assert other.is_behind()
        assert other.refresh()
        anew = Ledger(tmp_path / "p", SCHEMA)
        for asked in (other, anew):
            assert (asked.version(), asked.position(A), asked.watermark(A)) == (
                turn + 1,
                turn + 1,
                10 * (turn + 1),
            )
            assert (asked.pipeline_watermark(), asked.position(B)) == (turn, None)


def test_an_entry_of_another_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "p", SCHEMA), Ledger(tmp_path / "p", SCHEMA)
    entry = entry_of(tmp_path / "p", commit(one, 0, 1))
    entry.write_bytes(entry.read_bytes()[:-10])
    with pytest.raises(DatasetNotWhole, match=rf"{entry.name} is not whole.*restore it"):
        other.refresh()
    assert (other.version(), other.position(A)) == (0, None)


def test_a_gap_or_a_repeat_of_a_partition_is_fenced(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "p", SCHEMA)
    commit(ledger, 0, 3)
    for start in (0, 2, 4):
        with pytest.raises(Fenced):
            commit(ledger, start, 9)
    assert offsets(tmp_path / "p") == [0, 1, 2]


def test_a_dataset_of_other_columns_is_refused_by_their_names(tmp_path: Path) -> None:
    commit(Ledger(tmp_path / "p", SCHEMA), 0, 1)
    for other in ({"id": pl.String()}, {**SCHEMA, "more": pl.Int64()}, {**SCHEMA, "value": pl.Int64()}):
        odd = "id" if len(other) == 1 else next(n for n in other if SCHEMA.get(n) != other[n])
        with pytest.raises(DatasetDiffers, match=f"{'value' if odd == 'id' else odd}.*new name"):
            Ledger(tmp_path / "p", other)


# ── crashes and full disks ──────────────────────────────────────────────────────────────────────────


def cut_at_line(raw: bytes, keep: int) -> bytes:
    return b"".join(raw.splitlines(keepends=True)[:keep])


@pytest.mark.parametrize(
    "cut",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-10],
        lambda raw: cut_at_line(raw, 1),
        lambda raw: cut_at_line(raw, 2),
        lambda raw: b"\0" * len(raw),
    ],
    ids=["empty", "half", "its end", "after the first line", "after the second line", "zeros"],
)
def test_a_newest_entry_that_is_cut_is_refused_and_never_read_as_complete(tmp_path: Path, cut: Any) -> None:
    uri = tmp_path / "p"
    ledger = Ledger(uri, SCHEMA)
    commit(ledger, 0, 3)
    commit(ledger, 3, 6)
    entry = uri / "_delta_log" / f"{2:020d}.json"
    entry.write_bytes(cut(entry.read_bytes()))
    with pytest.raises(DatasetNotWhole, match=r"0002\.json is not whole.*move the entry away"):
        Ledger(uri, SCHEMA)
    assert issubclass(DatasetNotWhole, InvalidConfiguration)
    # The way out that the message names: the version before, and Kafka is read again from there.
    entry.unlink()
    again = Ledger(uri, SCHEMA)
    assert (again.version(), again.position(A)) == (1, 3)
    commit(again, 3, 6)
    assert offsets(uri) == [0, 1, 2, 3, 4, 5]


def test_a_newest_file_that_is_cut_or_gone_is_refused(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    commit(Ledger(uri, SCHEMA), 0, 3)
    (file,) = uri.glob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DatasetNotWhole, match="is not the file of"):
        Ledger(uri, SCHEMA)
    file.unlink()
    with pytest.raises(DatasetNotWhole, match="is not the file of"):
        Ledger(uri, SCHEMA)
    file.write_bytes(whole)
    assert Ledger(uri, SCHEMA).position(A) == 3


def test_a_commit_is_flushed_to_disk_before_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    real = os.fsync

    def noted(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", noted)
    uri = tmp_path / "p"
    ledger = Ledger(uri, SCHEMA)
    flushed.clear()
    version = commit(ledger, 0, 3)
    (data,) = uri.glob("*.parquet")
    entry = uri / "_delta_log" / f"{version:020d}.json"
    assert set(flushed) == {data, entry, uri, entry.parent}
    assert flushed.index(data) < flushed.index(entry), "an entry must not outlive the file that it names"


@contextlib.contextmanager
def small_disk(at: Path, size_bytes: int) -> Iterator[None]:
    """A file system of that size, if this user may mount one."""
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def test_a_commit_on_a_full_disk_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        uri = disk / "p"
        ledger = Ledger(uri, SCHEMA)
        commit(ledger, 0, 3)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as filling:
            while True:
                filling.write(b"\0" * 4096)
        before = sorted(p.name for p in uri.rglob("*"))
        for _ in range(3):
            with pytest.raises(DatasetNotWritable, match=r"nothing was written.*free space"):
                commit(ledger, 3, 2_000)
        assert (ledger.version(), ledger.position(A)) == (1, 3)
        assert sorted(p.name for p in uri.rglob("*")) == before
        assert offsets(uri) == [0, 1, 2]
        ballast.unlink()
        commit(ledger, 3, 2_000)
        assert offsets(uri) == list(range(2_000))
        assert Ledger(uri, SCHEMA).position(A) == 2_000


def test_a_dataset_that_cannot_be_made_says_what_to_check(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(DatasetNotWritable, match="check its folder, space and rights"):
        Ledger(in_the_way / "p", SCHEMA)


def test_whoever_opens_a_dataset_is_told_which_entry_was_cut_short(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    ledger = Ledger(uri, SCHEMA)
    newest = uri / "_delta_log" / f"{commit(ledger, 0, 3):020d}.json"
    whole = newest.read_bytes()
    for left in (len(whole) // 4, len(whole) // 2, len(whole) - 5):
        newest.write_bytes(whole[:left])
        with pytest.raises(DatasetUnreadable, match=rf"log entry {newest.name} .* move it away") as raised:
            newest_switch(uri)
        assert "unknown" not in str(raised.value)
    newest.write_bytes(whole)
    assert newest_switch(uri) is None


def test_no_commit_waits_for_a_checkpoint_and_one_that_fails_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()

    def failing(*_: object, **__: object) -> None:
        assert may_go_on.wait(20), "commits go on meanwhile"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "DeltaTable", failing)
    ledger = Ledger(tmp_path / "p", SCHEMA)
    for number in range(120):
        commit(ledger, number, number + 1)
    may_go_on.set()
    ledger.checkpoints.wait()
    assert not list((tmp_path / "p" / "_delta_log").glob("*.checkpoint*"))
    assert Ledger(tmp_path / "p", SCHEMA).position(A) == 120


def test_a_checkpoint_holds_positions_and_watermarks_too(tmp_path: Path) -> None:
    uri = tmp_path / "p"
    ledger = Ledger(uri, SCHEMA)
    for number in range(101):
        commit(ledger, number, number + 1, pipeline_watermark_ms=number)
    ledger.checkpoints.wait()
    assert list((uri / "_delta_log").glob("*.checkpoint.parquet"))
    again = Ledger(uri, SCHEMA)
    assert (again.position(A), again.watermark(A), again.pipeline_watermark()) == (101, 1_010, 100)
    assert all(json.loads(e.read_text().splitlines()[0]) for e in (uri / "_delta_log").glob("*.json"))
    assert len(list((uri / "_delta_log").glob("0*.json"))) == 102, "the entries are the ledger: all stay"
