"""What `tidemill bench jobs` judges by finds what it looks for. Its kills are a command, not a test."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from loadtest.jobs.watch import ArtifactWatch
from trainers.artifact import ArtifactStore


async def test_an_artifact_that_is_there_in_part_is_seen_and_a_whole_one_is_read_once(tmp_path: Path) -> None:
    watch, store = ArtifactWatch(tmp_path), ArtifactStore(tmp_path)
    whole = store.put(b"whole")
    (tmp_path / f".{whole}.safetensors.0a1b").write_bytes(b"staged, and nobody's")
    await watch.look()
    assert (watch.whole, watch.broken) == ({whole}, set())

    half = tmp_path / f"{hashlib.sha256(b'both halves').hexdigest()}.safetensors"
    half.write_bytes(b"both")
    await watch.look()
    assert watch.broken == {half.name}

    # Written anew in place, under the same name and length: seen all the same.
    path = store.path(whole)
    path.write_bytes(b"wh0le")
    os.utime(path, (1, 1))
    await watch.look()
    assert watch.broken == {half.name, path.name}
