"""The benchmark itself: it measures what it says, on real processes, and would notice a wrong count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from infra.kafka import EmbeddedBroker
from infra.settings import Settings
from loadtest.ingest import counted, readings
from loadtest.ingest.run import Options, chosen, run_on
from loadtest.ingest.side import Side, Task
from loadtest.ingest.sides import NAMES, SIDES
from schemas.errors import InvalidConfiguration

QUIET = Console(quiet=True)


def test_a_short_run_counts_right_and_leaves_a_dated_result(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    options = Options(sides=("tidemill", "getmany", "faust"), events=120_000, rounds=1, most_s=3.0)
    result = run_on(kafka.bootstrap_servers, tmp_path, options, cache_dir=Settings().cache_dir, console=QUIET)
    assert result.absent == {}
    assert result.faults() == []
    (ours,) = result.rounds["tidemill"]
    assert ours.whole
    assert ours.kept == result.filled.unique < result.filled.kept < result.filled.events
    assert 0 < ours.cpu_us_per_event < 1_000
    file = result.write(tmp_path / "results")
    written = json.loads(file.read_text())
    assert written["sides"]["getmany"]["median"]["rate_events_s"] > 0
    assert written["ratios"]["faust"]["rate"] > 1
    assert written["machine"]["cores"]
    assert file.with_suffix(".png").stat().st_size > 5_000
    result.rounds["tidemill"] = [replace(ours, kept=(ours.kept or 0) - 1)]
    assert len(result.faults()) == 1
    # The same dataset and windows, held against other data: each count that differs is found.
    one = result.filled.counts.sort("window", "source").row(0, named=True)  # the first window is closed
    other = result.filled.counts.with_columns(
        count=pl.col("count") + ((pl.col("window") == one["window"]) & (pl.col("source") == one["source"]))
    )
    found = counted.faults(
        Task(
            bootstrap_servers=kafka.bootstrap_servers,
            topic=readings.TOPIC,
            form="json",
            filled=replace(result.filled, counts=other),
            round=1,
            home=tmp_path / "tidemill-1",
            cache_dir=Settings().cache_dir,
        )
    )
    assert found[0].endswith("counts by window, source and tag differ from the data's")
    assert len(found) == 2
    assert f"window {one['window']}" in found[1]


def test_the_events_are_the_same_whoever_makes_them() -> None:
    def first(keys: int) -> list[tuple]:
        parts = next(readings.chunks(1_000, partitions=4, keys=keys))
        return [row for part in parts for row in part.rows()]

    assert first(32) == first(32)
    assert len(first(32)) == 1_000


@pytest.mark.parametrize(("keys", "partitions"), [(1, 4), (32, 4), (1_000, 64)])
def test_sources_are_spread_evenly_over_partitions(keys: int, partitions: int) -> None:
    by_partition = readings.sources(keys, partitions)
    assert max(map(len, by_partition)) - min(map(len, by_partition)) <= 1
    assert sum(map(len, by_partition)) == max(keys, partitions)


def test_a_side_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(InvalidConfiguration, match="'flonk'; there are tidemill"):
        chosen(["tidemill", "flonk"])


@pytest.mark.parametrize("side", SIDES, ids=NAMES)
def test_every_side_says_what_it_is_and_what_it_does_not_do(side: Side) -> None:
    assert NAMES.count(side.name) == 1
    assert side.title
    assert side.forms
    assert side.durable
    assert side.event_time
    assert side.dedupe
    assert side.counts
