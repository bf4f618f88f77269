"""A backup holds one whole version, copies only what is new, and is never restored in part."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from infra.dataset import META, Dataset
from schemas.errors import InvalidConfiguration
from streams.ledger.backup import MANIFEST, BackupDamaged, back_up, pipeline_of, restore
from streams.ledger.commit import Advance, Ledger

SCHEMA = {**META, "x": pl.Int64()}


def frame(start: int, following: int) -> pl.DataFrame:
    """Rows of one partition, from one offset up to another."""
    offsets = range(start, following)
    columns = {"_source": "raw", "_partition": 0, "_row": 0, "_time": 0, "_tags": []}
    return pl.DataFrame([{**columns, "_offset": at, "x": at} for at in offsets], SCHEMA)


def committed(root: Path, *batches: tuple[int, int]) -> Ledger:
    """A dataset of one partition, a commit for each [start, next)."""
    ledger = Ledger(root, SCHEMA)
    for start, following in batches:
        rows = frame(start, following)
        advance = {("raw", 0): Advance(start, following)}
        ledger.commit(
            rows, advances=advance, watermarks={}, metadata={"offsets": {"raw/0": [start, following]}}
        )
    return ledger


def values(root: Path, *, version: int | None = None) -> list[int]:
    dataset = Dataset(root)
    at = dataset.newest_version() if version is None else version
    return sorted(pl.scan_delta(str(root), version=at).collect().get_column("x"))


def test_a_restored_dataset_has_its_rows_its_versions_and_its_positions(tmp_path: Path) -> None:
    root, kept = tmp_path / "dataset" / "kiosk", tmp_path / "backup"
    before = committed(root, (0, 3), (3, 5))
    done = back_up(root, kept)
    assert pipeline_of(kept) == "kiosk"
    before.commit(  # after the backup: not in it
        frame(5, 6),
        advances={("raw", 0): Advance(5, 6)},
        watermarks={},
        metadata={},
    )
    restored = tmp_path / "elsewhere" / "kiosk"
    restored.parent.mkdir()
    assert restore(kept, restored).version == done.version == before.version() - 1
    assert values(restored) == [0, 1, 2, 3, 4]
    assert values(restored, version=done.version - 1) == [0, 1, 2]
    after = committed(restored)
    assert after.position(("raw", 0)) == 5
    # It goes on where it stood, and what was passed is passed.
    committed(restored, (5, 7))
    assert values(restored) == [0, 1, 2, 3, 4, 5, 6]


def test_taken_again_it_copies_what_is_new_and_stays_whole(tmp_path: Path) -> None:
    root, kept = tmp_path / "kiosk", tmp_path / "backup"
    committed(root, (0, 3))
    first = back_up(root, kept)
    assert back_up(root, kept).copied_files == 0
    committed(root, (3, 4))
    second = back_up(root, kept)
    assert (second.version, second.copied_files) == (first.version + 1, 2)
    restore(kept, tmp_path / "restored")
    assert values(tmp_path / "restored") == [0, 1, 2, 3]


@pytest.mark.parametrize("harm", ["cut", "gone", "no manifest"])
def test_a_damaged_backup_is_refused_by_name_and_leaves_nothing(tmp_path: Path, harm: str) -> None:
    root, kept = tmp_path / "kiosk", tmp_path / "backup"
    committed(root, (0, 3))
    back_up(root, kept)
    (rows,) = kept.glob("*.parquet")
    if harm == "cut":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif harm == "gone":
        rows.unlink()
    else:
        (kept / MANIFEST).unlink()
    refused = InvalidConfiguration if harm == "no manifest" else BackupDamaged
    with pytest.raises(refused, match="backup"):
        restore(kept, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "kiosk"]


def test_nothing_is_ever_written_over(tmp_path: Path) -> None:
    root, kept, other = tmp_path / "kiosk", tmp_path / "backup", tmp_path / "stall"
    committed(root, (0, 3))
    committed(other, (0, 1))
    back_up(root, kept)
    with pytest.raises(InvalidConfiguration, match="is there already"):
        restore(kept, root)
    with pytest.raises(InvalidConfiguration, match="a backup of kiosk, not of stall"):
        back_up(other, kept)
    with pytest.raises(InvalidConfiguration, match="lies within"):
        back_up(root, root / "backup")
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("dear reader")
    with pytest.raises(InvalidConfiguration, match="no backup"):
        back_up(root, letters)
