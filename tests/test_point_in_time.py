"""Features look back, never ahead, and give what a naive reading of their definition gives."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.dataset import META, Dataset
from infra.point_in_time import compute, examples, with_labels
from schemas.features import AsOf, FeatureSpec, Label, Trailing

SPEC = FeatureSpec(
    source="flights",
    key="id",
    columns=("place",),
    features=(
        AsOf(source="weather", by=("place",), columns={"wind": "speed"}, max_age_ms=20, age="wind_age"),
        Trailing(
            source="left",
            by=("place",),
            over_ms=15,
            aggregates={
                "mean_delay": ("mean", "delay"),
                "n": ("count", ""),
                "worst": ("max", "delay"),
                "best": ("min", "delay"),
            },
        ),
        Trailing(source="left", by=(), over_ms=30, aggregates={"total": ("sum", "delay")}),
    ),
    label=Label(source="came", column="late", key="id", within_ms=40),
)


def table(source: str, rows: list[tuple[int, str, float | None]], value: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "_source": [source] * len(rows),
            "_partition": [0] * len(rows),
            "_offset": list(range(len(rows))),
            "_row": [0] * len(rows),
            "_time": [t for t, _, _ in rows],
            "_tags": [[] for _ in rows],
            "id": [f"{source}{i}" for i in range(len(rows))],
            "place": [p for _, p, _ in rows],
            value: [v for _, _, v in rows],
        },
        schema={**META, "id": pl.String, "place": pl.String, value: pl.Float64},
    )


row = st.tuples(st.integers(0, 60), st.sampled_from("ab"), st.none() | st.integers(-5, 50).map(float))
rows = st.lists(row, max_size=30)


def newest(source: list[tuple[int, str, float | None]], t: int, place: str, age: int) -> float | None:
    known = [(time, i, v) for i, (time, p, v) in enumerate(source) if p == place and t - age <= time <= t]
    return max(known, default=(0, 0, None))[2] if known else None


@settings(max_examples=150, deadline=None)
@given(flights=rows, weather=rows, left=rows)
def test_features_equal_their_definition_read_naively(flights, weather, left) -> None:
    got = compute(
        table("flights", flights, "x"),
        {"weather": table("weather", weather, "speed"), "left": table("left", left, "delay")},
        SPEC,
    )
    assert got.columns == ["id", "_time", "_tags", *SPEC.names()]
    asked = sorted(enumerate(flights), key=lambda e: (e[1][0], e[0]))
    assert got.get_column("_time").to_list() == [f[0] for _, f in asked]
    for answer, (_, (t, place, _)) in zip(got.iter_rows(named=True), asked, strict=True):
        near = [v for time, p, v in left if p == place and t - 15 < time <= t]
        known = [v for v in near if v is not None]
        everywhere = [v for time, _, v in left if t - 30 < time <= t and v is not None]
        assert answer["wind"] == newest(weather, t, place, 20)
        seen = [time for time, p, _ in weather if p == place and t - 20 <= time <= t]
        assert answer["wind_age"] == (t - max(seen) if seen else None)
        assert answer["n"] == len(near)
        assert answer["worst"] == max(known, default=None)
        assert answer["best"] == min(known, default=None)
        if known:
            assert math.isclose(answer["mean_delay"], sum(known) / len(known))
        else:
            assert answer["mean_delay"] is None
        assert answer["total"] == (sum(everywhere) if everywhere else None)


@settings(max_examples=60, deadline=None)
@given(flights=rows, left=rows, weather=rows, cut=st.integers(0, 60))
def test_no_feature_depends_on_a_later_row(flights, left, weather, cut) -> None:
    def features_up_to_cut(known_left, known_weather):
        sources = {
            "weather": table("weather", known_weather, "speed"),
            "left": table("left", known_left, "delay"),
        }
        return compute(table("flights", flights, "x"), sources, SPEC).filter(pl.col("_time") <= cut)

    future = [(60 + t, p, 99.0) for t, p, _ in left]
    assert features_up_to_cut(left, weather).equals(
        features_up_to_cut([r for r in left if r[0] <= cut] + future, [r for r in weather if r[0] <= cut])
    )


def test_a_label_counts_only_within_its_time_and_the_first_one_wins() -> None:
    flights = table("flights", [(0, "a", 1.0), (10, "a", 1.0), (20, "a", 1.0)], "x")
    labels = table("came", [(5, "a", 1.0), (9, "a", 0.0), (99, "a", 1.0)], "late").with_columns(
        id=pl.Series(["flights0", "flights0", "flights1"])
    )
    label = SPEC.label
    assert label is not None
    joined = with_labels(flights.select("id", "_time"), labels, label)
    assert joined.get_column("late").to_list() == [1.0, None, None]


def test_live_and_training_rows_are_the_same(tmp_path: Path) -> None:
    parts = {
        "weather": table("weather", [(t, "ab"[t % 2], float(t)) for t in range(0, 60, 3)], "speed"),
        "left": table("left", [(t, "ab"[t % 2], t * 0.1) for t in range(60)], "delay"),
        "flights": table("flights", [(t, "ab"[t % 2], 0.0) for t in range(30, 60)], "x"),
        "came": table("came", [(t + 7, "a", 1.0) for t in range(30, 60)], "late").with_columns(
            id=pl.Series([f"flights{i}" for i in range(30)])
        ),
    }
    whole = pl.concat(parts.values(), how="diagonal")
    # Many small commits in another order than time, as a stream makes them.
    for chunk in whole.sample(fraction=1.0, shuffle=True, seed=7).iter_slices(17):
        write_deltalake(tmp_path / "dataset", chunk, mode="append")
    dataset = Dataset(tmp_path / "dataset")
    version = dataset.newest_version()
    trained = examples(dataset, SPEC, version=version, start_ms=40, end_ms=50)
    live = compute(parts["flights"].filter(pl.col("_time").is_between(40, 49)), parts, SPEC)
    assert trained.drop("late", "mean_delay", "total").equals(live.drop("mean_delay", "total"))
    for name in ("mean_delay", "total"):
        assert (trained[name] - live[name]).abs().max() < 1e-9  # type: ignore[operator]
    assert trained["late"].to_list() == [1.0] * 10
    early = examples(dataset, SPEC, version=version, start_ms=40, end_ms=50, label_known_by_ms=52)
    assert early["late"].to_list() == [1.0] * 5 + [None] * 5


def test_a_group_with_absurd_values_does_not_take_the_digits_of_the_others() -> None:
    spec = FeatureSpec(
        source="flights",
        key="id",
        columns=("place",),
        features=(
            Trailing(
                source="left",
                by=("place",),
                over_ms=15,
                aggregates={"total": ("sum", "delay"), "mean": ("mean", "delay"), "least": ("min", "delay")},
            ),
        ),
    )
    flights = [(20, "a", None), (21, "b", None), (22, "c", None), (60, "b", None)]
    left = [(10, "a", 1e300), (11, "b", 0.1), (12, "b", 0.2), (13, "a", -1e300), (14, "b", float("inf"))]
    got = compute(table("flights", flights, "x"), {"left": table("left", left, "delay")}, spec)
    assert got.get_column("total").to_list() == [0.0, 0.1 + 0.2, None, None]
    assert got.get_column("mean").to_list() == [0.0, (0.1 + 0.2) / 2, None, None]
    assert got.get_column("least").to_list() == [-1e300, 0.1, None, None]
