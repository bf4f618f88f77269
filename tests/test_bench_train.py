"""The training benchmark: all sides train on the same rows, which are the demo's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from loadtest.train.options import PLAIN, Compared, Turn, compare_options
from loadtest.train.run import Options, compare
from loadtest.train.sides import SIDES, Encoded, NumberRows, Rows, task_of
from loadtest.train.table import examples
from streams.pipelines.flights import flights

SPEC = flights.spec()
FEATURES = SPEC.names()
LABEL = "arrived_late"


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return examples(flights, days=3, progress=lambda _: None)


def test_the_table_is_the_demos_with_features_labels_and_nothing_of_later_days(rows: pl.DataFrame) -> None:
    assert set(rows.get_column(LABEL)) == {0.0, 1.0}
    assert 1_500 < rows.height < 3 * 950
    assert rows.get_column("flight_id").n_unique() == rows.height
    assert not set(FEATURES) - set(rows.columns)
    # Where an aircraft's day stands is known of some flights, and of no morning's first.
    assert 0 < rows.get_column("tail_arr_delay").null_count() < rows.height


def test_every_dataset_gives_the_same_row_for_the_same_place(rows: pl.DataFrame) -> None:
    task = task_of(rows, features=FEATURES, label=LABEL, seed=1, params={"batch_rows": 256})
    for place in (0, 1, 700, rows.height - 1):
        one, other, third = (dataset(task)[place] for dataset in (Rows, NumberRows, Encoded))
        for parts in zip(one, other, third, strict=True):
            assert len({part.dtype for part in parts}) == 1
            assert all(torch.equal(parts[0], part) for part in parts[1:])


def test_a_short_run_trains_every_side_and_leaves_a_dated_result(rows: pl.DataFrame, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    few = rows.head(600)
    result = compare(few, features=FEATURES, label=LABEL, options=Options(rounds=2, batch_rows=64))
    assert torch.get_num_threads() == threads
    written = json.loads(result.write(tmp_path / "bench").read_text())
    assert written["table"] == {"rows": few.height, "feature_columns": len(FEATURES)}
    for side in SIDES:
        rounds = written["sides"][side.name]["rounds"]
        assert len(rounds) == 2
        assert all(0 < each["loss"] < math.log(2) + 0.2 for each in rounds)
        # The seed decides it all.
        assert rounds[0]["loss"] == rounds[1]["loss"]
    assert {target["against"] for target in written["targets"]} == {"dataloader", "memory"}
    assert written["ratios"]["dataloader"]["cpu"] > 1
    assert result.table().row_count == len(SIDES)


def test_an_option_is_weighed_in_turns_with_none(rows: pl.DataFrame) -> None:
    task = task_of(rows.head(600), features=FEATURES, label=LABEL, seed=1, params={"batch_rows": 64})
    found = compare_options(task, ["bfloat16"], rounds=2, epochs=1)  # one alone has too few steps
    assert {name: len(turns) for name, turns in found.turns.items()} == {PLAIN: 2, "bfloat16": 2}
    plain, other = (turns[0].loss for turns in found.turns.values())
    assert plain != other  # it was done
    assert all(turn.cpu_us_per_row > 0 for turns in found.turns.values() for turn in turns)
    assert json.loads(json.dumps(found.as_json()))[PLAIN]["by_cpu"] == 1


def test_from_how_many_rows_on_an_option_pays() -> None:
    def turn(first_cpu_s: float, cpu_us_per_row: float) -> Turn:
        return Turn(first_cpu_s=first_cpu_s, cpu_us_per_row=cpu_us_per_row, rate_rows_s=1.0, loss=0.0)

    found = Compared({PLAIN: [turn(0.5, 4.0)], "compiled": [turn(10.5, 2.0)], "bfloat16": [turn(0.5, 5.0)]})
    assert found.ratio("compiled") == 2
    assert found.rows_to_pay("compiled") == 5_000_000
    assert found.rows_to_pay("bfloat16") is None
