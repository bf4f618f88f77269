"""The ledger in a bucket: the same promise as in a folder, on a real S3 server that dies and comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from infra.dataset import META
from streams.ledger.commit import Advance, DatasetDiffers, DatasetNotWritable, Fenced, Ledger, Overtaken
from tests.s3_fixtures import BUCKET, KEY_ID, SECRET, S3Server, s3_server

SCHEMA: dict[str, Any] = {"id": pl.String(), "value": pl.Float64()}
A, B = ("events", 0), ("events", 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def address(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Where a dataset of that name lies; S3 is reached as the environment says, as by AWS's own tools."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return lambda name: f"s3://{BUCKET}/dataset/{name}"


def commit(ledger: Ledger, start: int, end: int, *, partition: int = 0) -> int:
    offsets = range(start, end)
    rows = pl.DataFrame(
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
    key = ("events", partition)
    return ledger.commit(
        rows,
        advances={key: Advance(start, end)},
        watermarks={key: end * 10},
        metadata={"offsets": {f"events/{partition}": [start, end]}},
        pipeline_watermark_ms=end * 10,
    )


def offsets(uri: str) -> list[tuple[int, int]]:
    """Partition and offset of all rows, by Delta's own reader."""
    return pl.scan_delta(DeltaTable(uri)).select("_partition", "_offset").collect().sort(pl.all()).rows()


def test_rows_and_positions_come_together_and_whoever_starts_anew_finds_them(
    address: Callable[[str], str],
) -> None:
    uri = address("together")
    ledger = Ledger(uri, SCHEMA)
    assert (ledger.version(), ledger.position(A)) == (0, None)
    assert [commit(ledger, 0, 3), commit(ledger, 3, 5), commit(ledger, 0, 2, partition=1)] == [1, 2, 3]
    for each in (ledger, Ledger(uri, SCHEMA)):
        assert (each.version(), each.position(A), each.position(B)) == (3, 5, 2)
        assert (each.watermark(A), each.pipeline_watermark()) == (50, 20)
    assert offsets(uri) == [*((0, n) for n in range(5)), (1, 0), (1, 1)]
    with pytest.raises(DatasetDiffers, match="more"):
        Ledger(uri, {**SCHEMA, "more": pl.Int64()})


def test_a_stale_writer_is_fenced_and_its_rows_are_in_no_version(address: Callable[[str], str]) -> None:
    uri = address("stale")
    owner, zombie = Ledger(uri, SCHEMA), Ledger(uri, SCHEMA)
    commit(owner, 0, 3)
    with pytest.raises(Fenced) as fenced:
        commit(zombie, 0, 2)
    assert (fenced.value.partition, fenced.value.expected, fenced.value.found) == (A, 0, 3)
    with pytest.raises(Fenced):
        commit(zombie, 0, 2)
    assert commit(owner, 3, 4) == 2
    assert offsets(uri) == [(0, n) for n in range(4)]


def test_writers_of_different_partitions_overtake_each_other_and_none_loses_a_row(
    address: Callable[[str], str],
) -> None:
    # In turns, not at once: this server looks whether an object is there and then puts it, so that of two
    # who create one at the same instant both may be told that they did. S3 itself does it in one step.
    uri = address("in-turns")
    writers = [Ledger(uri, SCHEMA), Ledger(uri, SCHEMA)]
    overtaken = 0
    for start in range(0, 8, 2):
        for partition, writer in enumerate(writers):
            with contextlib.suppress(Overtaken):
                commit(writer, start, start + 2, partition=partition)
                continue
            overtaken += 1
            commit(writer, start, start + 2, partition=partition)
    assert overtaken > 0
    assert DeltaTable(uri).version() == 8
    assert offsets(uri) == [*((0, n) for n in range(8)), *((1, n) for n in range(8))]


def test_a_store_that_is_away_takes_nothing_and_then_the_very_same_commit(
    address: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        uri = address("away")
        ledger = Ledger(uri, SCHEMA)
        commit(ledger, 0, 3)
        server.kill()
        with pytest.raises(DatasetNotWritable, match="does not answer"):
            commit(ledger, 3, 5)
        with pytest.raises(DatasetNotWritable, match="cannot open"):
            Ledger(uri, SCHEMA)
        server.start()
        assert Ledger(uri, SCHEMA).position(A) == 3
        assert commit(ledger, 3, 5) == 2
        assert offsets(uri) == [(0, n) for n in range(5)]
