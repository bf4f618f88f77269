"""The demo's model: what it learns, that it is the same twice, and how it goes on from a parent."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from infra.measures import auc
from schemas.tabular import TabularNetwork, _Pairs, calendar
from trainers.context import TrainingContext
from trainers.models.flights import train

FEATURES = ["carrier", "origin", "dest", "flight", "scheduled", "delay", "visib", "came"]
NEW_YORK = "America/New_York"
START_MS = 1_357_016_400_000
HOUR_MS = 3_600_000


def flown(rows: int, *, seed: int, carriers: tuple[str, ...] = ("AA", "B6", "UA")) -> pl.DataFrame:
    """Flights that are late for reasons of three kinds: a pair of words, a heavy-tailed number, the hour."""
    random = np.random.default_rng(seed)
    carrier = random.choice(carriers, rows)
    origin = random.choice(["EWR", "JFK", "LGA"], rows)
    times = np.sort(START_MS + random.integers(0, 30 * 24, rows) * HOUR_MS)
    delay = random.exponential(20.0, rows) ** 1.5
    evening = calendar(times, zone=NEW_YORK)["hour"] >= 17
    odd_pair = (carrier == "AA") & (origin == "JFK") | (carrier == "B6") & (origin == "EWR")
    logit = -2.5 + 2.5 * odd_pair + 2.0 * (delay > 120) + 1.5 * evening
    return pl.DataFrame(
        {
            "_time": times,
            "carrier": carrier,
            "origin": origin,
            "dest": random.choice(["BOS", "LAX", "ORD", "SFO"], rows),
            "flight": random.integers(1, 3000, rows),
            "scheduled": times,
            "delay": np.where(random.random(rows) < 0.1, np.nan, delay),
            "visib": random.uniform(0, 10, rows),
            "came": random.integers(0, 5, rows),
            "late": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(float),
        }
    ).with_columns(pl.col("delay").fill_nan(None))


def context(rows: pl.DataFrame, *, seed: int = 7, **more: Any) -> TrainingContext:
    params = {"batch_rows": 256, "first_epochs": 6, "hidden": [32], **more.pop("params", {})}
    return TrainingContext(
        rows=rows,
        features=FEATURES,
        label="late",
        params=params,
        seed=seed,
        device=torch.device("cpu"),
        **more,
    )


def columns(rows: pl.DataFrame) -> dict[str, pl.Series]:
    return rows.select(FEATURES).to_dict(as_series=True)


def weights(model: TabularNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def vectors(model: TabularNetwork, column: str) -> Mapping[Any, np.ndarray]:
    """The vector of each word of a column."""
    declared = next(c for c in model.config["categorical"] if c["name"] == column)
    table = model.state_dict()[f"embeddings.{column}.weight"].numpy()
    words = [tuple(w) if isinstance(w, list) else w for w in declared["vocabulary"]]
    return {word: table[i + 1] for i, word in enumerate(words)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small only wait for each other on a second thread, the longer the busier the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return flown(6_000, seed=1)


@pytest.fixture(scope="module")
def model(rows: pl.DataFrame) -> TabularNetwork:
    return train(context(rows))


def test_it_finds_a_pair_of_words_a_heavy_tail_and_the_hour(model: TabularNetwork):
    unseen = flown(4_000, seed=2)
    found = auc(unseen["late"].to_numpy(), model.predict(columns(unseen)))
    shuffled = unseen.with_columns(pl.col("carrier", "delay", "scheduled").shuffle(seed=3))
    blind = auc(unseen["late"].to_numpy(), model.predict(columns(shuffled)))
    assert found is not None
    assert blind is not None
    assert found > 0.78
    assert blind < found - 0.1


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    rows: pl.DataFrame, model: TabularNetwork
):
    again, other = train(context(rows)), train(context(rows, seed=8))
    assert again.config == model.config
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert not torch.equal(model.state_dict()["head.0.weight"], other.state_dict()["head.0.weight"])


def test_unknown_words_nulls_and_infinities_are_answered_as_absent(model: TabularNetwork):
    row: dict[str, Any] = {
        "carrier": "AA", "origin": "JFK", "dest": "BOS", "flight": 1, "scheduled": START_MS,
        "delay": 30.0, "visib": 9.0, "came": 1,
    }  # fmt: skip
    odd = {
        "carrier": "ZZ", "origin": None, "dest": "",
        "delay": float("inf"), "visib": float("nan"), "came": None,
    }  # fmt: skip
    questions = {name: [value, odd.get(name, value), None] for name, value in row.items()}
    questions["scheduled"] = [START_MS, START_MS, START_MS]
    codes, values, absent = model.encode(questions)
    known, words_unknown, nothing = model.predict(questions)
    assert all(0 < p < 1 for p in (known, words_unknown, nothing))
    assert words_unknown == nothing
    # All words but the hour and the weekday are unknown, the pairs among them.
    assert (codes[1] == 0).sum() == 5
    assert values[1, :3].tolist() == [0, 0, 0]
    assert absent[1, :3].tolist() == [1, 1, 1]
    assert absent[0].tolist() == [0, 0, 0, 0]


def test_a_column_left_out_is_a_column_of_nulls(model: TabularNetwork, rows: pl.DataFrame):
    some = rows.head(50)
    without = {name: column for name, column in columns(some).items() if name != "visib"}
    nulls = {**without, "visib": [None] * 50}
    assert np.array_equal(model.predict(without), model.predict(nulls))


def test_lists_arrays_and_series_are_encoded_alike(model: TabularNetwork, rows: pl.DataFrame):
    some = rows.head(300).drop_nulls()
    series = columns(some)
    lists = {name: column.to_list() for name, column in series.items()}
    arrays = {
        name: np.array(column.to_list()) if column.dtype == pl.String else column.to_numpy()
        for name, column in series.items()
    }
    assert arrays["carrier"].dtype.kind == "U"
    for told in (lists, arrays):
        for one, other in zip(model.encode(told), model.encode(series), strict=True):
            assert torch.equal(one, other)


def test_numbers_are_placed_by_quantile_so_that_units_do_not_matter(
    rows: pl.DataFrame, model: TabularNetwork
):
    scaled = train(context(rows.with_columns(pl.col("delay") * 1_000)))
    there = scaled.predict(columns(rows.with_columns(pl.col("delay") * 1_000)))
    assert np.allclose(there, model.predict(columns(rows)), atol=1e-4)


def test_a_name_that_looks_like_a_number_is_not_one(model: TabularNetwork):
    assert {n["name"] for n in model.config["numeric"]} == {"delay", "visib", "came", "minute_of_day"}


def test_hours_are_new_yorks_in_winter_and_in_summer():
    winter, summer = 1_357_020_000_000, 1_372_651_200_000  # 2013-01-01T06:00Z, 2013-07-01T04:00Z
    local = calendar([winter, summer], zone=NEW_YORK)
    assert local["hour"].tolist() == [1, 0]
    assert local["weekday"].tolist() == [1, 0]
    assert local["minute_of_day"].tolist() == [60.0, 0.0]


def test_a_warm_start_keeps_the_vectors_of_known_words_and_makes_room_for_new_ones(
    rows: pl.DataFrame, model: TabularNetwork
):
    newer = flown(2_000, seed=4, carriers=("AA", "B6", "A1"))
    # Without a step to learn by, what was taken over is all that is there.
    kept = context(newer, params={"learning_rate": 0.0}, parent=weights(model), parent_config=model.config)
    child = train(kept)
    for column in ("carrier", "origin", "dest", "origin_carrier", "carrier_dest", "hour", "weekday"):
        before, after = vectors(model, column), vectors(child, column)
        assert all(np.array_equal(after[word], vector) for word, vector in before.items()), column
    assert "A1" in vectors(child, "carrier")
    assert ("JFK", "A1") in vectors(child, "origin_carrier")
    assert child.config["numeric"] == model.config["numeric"]
    assert np.array_equal(child.predict(columns(rows)), model.predict(columns(rows)))


def test_one_epoch_from_a_parent_beats_one_epoch_from_nothing(model: TabularNetwork):
    newer, unseen = flown(1_500, seed=5), flown(4_000, seed=6)
    params = {"first_epochs": 1, "epochs": 1}
    cold = train(context(newer, params=params))
    warm = train(context(newer, params=params, parent=weights(model), parent_config=model.config))
    truth = unseen["late"].to_numpy()
    cold_auc, warm_auc = auc(truth, cold.predict(columns(unseen))), auc(truth, warm.predict(columns(unseen)))
    assert cold_auc is not None
    assert warm_auc is not None
    assert warm_auc > cold_auc + 0.02


def test_a_parent_with_other_columns_is_not_continued(rows: pl.DataFrame, model: TabularNetwork):
    more = rows.with_columns(wind=pl.lit(3.0))
    fresh = context(more, parent=weights(model), parent_config=model.config)
    child = train(
        TrainingContext(
            rows=more, features=[*FEATURES, "wind"], label="late", params=fresh.params, seed=fresh.seed,
            device=fresh.device, parent=fresh.parent, parent_config=fresh.parent_config,
        )
    )  # fmt: skip
    assert "wind" in {n["name"] for n in child.config["numeric"]}


def test_weights_and_configuration_make_the_same_network_elsewhere(
    model: TabularNetwork, rows: pl.DataFrame, tmp_path: Path
):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = json.loads(json.dumps(model.config))
    again = TabularNetwork.from_config(config)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    assert np.array_equal(again.predict(columns(rows)), model.predict(columns(rows)))


def test_progress_ends_at_its_last_step_with_a_falling_loss(rows: pl.DataFrame):
    said: list[tuple[int, int, dict[str, float]]] = []
    train(context(rows, _report=lambda step, of, metrics: said.append((step, of, metrics))))
    steps = [step for step, _, _ in said]
    assert steps == sorted(set(steps))
    assert steps[-1] == said[-1][1]
    assert said[-1][2]["loss"] < said[0][2]["loss"]


def test_a_pair_of_large_vocabularies_takes_room_for_its_own_words_alone() -> None:
    words = [f"w{number}" for number in range(30_000)]
    pairs = [["w1", "w2"], ["w2", "w1"], ["w7", "absent"]]
    declared = [
        {"name": "one", "vocabulary": words, "dim": 1},
        {"name": "two", "vocabulary": words[::-1], "dim": 1},
        {"name": "both", "of": ["one", "two"], "vocabulary": pairs, "dim": 1},
    ]
    tracemalloc.start()
    network = TabularNetwork({"categorical": declared, "numeric": [], "calendar": None, "hidden": []})
    taken_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken_bytes < 100 * 2**20  # a table of all pairs: 7 GB
    codes, _, _ = network.encode(
        {"one": ["w1", "w2", "w7", "w1", None], "two": ["w2", "w1", "no", "w1", "w2"]}
    )
    assert codes[:, 2].tolist() == [1, 2, 0, 0, 0]


@given(
    known=st.dictionaries(st.tuples(st.integers(1, 4), st.integers(1, 3)), st.integers(1, 99)),
    asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=20),
)
def test_a_pair_has_the_code_that_it_was_given(
    known: dict[tuple[int, int], int], asked: list[tuple[int, int]]
) -> None:
    first, second = (np.array([each[i] for each in asked], dtype=np.int64) for i in (0, 1))
    found = _Pairs(known, width=4).codes(first, second)
    assert found.tolist() == [known.get(each, 0) for each in asked]
