"""`tidemill check` finds each mistake before anything runs, names its line, and says what would be right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import InvalidConfiguration
from streams.check.pipeline import check, refuse_mistakes
from streams.load import load_pipeline

GOOD = """\
import polars as pl
from schemas.features import AsOf, Trailing
from schemas.raw import Arrival, Flight, Weather
from streams.clean import between, dedupe, impute, matches, require, rule
from streams.pipeline import Labels, Pipeline, Source
from streams.tag import Slice, Tag
from streams.training import Training, balanced, better_than_champion, history, last, sweep
from streams.trigger import bias, drift, edge_cases, every, first, hysteresis, label_drift
from streams.unusual import outlier, rare
from streams.window import Session, Sliding, Tumbling

weather = Source("weather.hourly", schema=Weather, event_time="observed", key="origin")
arrived = Source("flights.arrived", schema=Arrival, event_time="arrived", key="flight_id",
                 derive={"late_arrival": (pl.col("arr_delay") > 15).cast(pl.Float64)})
flights = Pipeline(
    name="flights",
    source=Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id"),
    context=[weather],
    labels=Labels(arrived, column="late_arrival"),
    clean=[require("carrier"), between("distance", 0, 12_000), dedupe(within="1h")],
    tag=[Tag("far", pl.col("distance") >= 1_500), Slice("carrier")],
    columns=["carrier", "distance"],
    features=[
        AsOf(source="weather.hourly", by=("origin",), columns={"wind": "wind_speed"}, max_age_ms=7_200_000),
        Trailing(source="flights.arrived", by=("origin",), over_ms=7_200_000,
                 aggregates={"delay": ("mean", "arr_delay")}),
    ],
    window=Tumbling("1d", lateness="6h"),
    train_when=every(windows=7),
    train=Training("trainers.models.flights:train", data=last(windows=30)),
)
"""

MISTAKES = [
    ('require("carrier")', 'require("carier")', "'carier'", "did you mean 'carrier'?"),
    (
        'between("distance", 0, 12_000)',
        'between("distance", 9, 2)',
        "low end is above the high end",
        "between",
    ),
    ('event_time="scheduled"', 'event_time="schedule"', "event_time='schedule'", "did you mean 'scheduled'?"),
    ('event_time="scheduled"', 'event_time="carrier"', "must be epoch milliseconds", "String"),
    ('key="flight_id")', 'key="flightid")', "key='flightid'", "did you mean 'flight_id'?"),
    *(
        (
            "data=last(windows=30))",
            f"data=last(windows=30), sweep=sweep({said}))",
            complaint,
            way_out,
        )
        for said, complaint, way_out in [
            ('every=0, vary={"rate": "0.1..1"}', "every=0", "1 or more"),
            ('every=12, vary={"rate": "0.1..1"}, trials=0', "trials=0", "1 or more"),
            ("every=12, vary={}", "name what to try", "log:1e-4..1e-1"),
            ('every=12, vary={"rate": "log:0..1"}', "varies rate", "both are above 0"),
            ('every=12, vary={"rate": 3}', "varies rate", "neither low..high nor a list"),
            ('every=12, vary={"hidden": [[64]]}', "varies hidden", "two values at least"),
            ('every=12, vary={"hidden": [[64], {1, 2, object()}]}', "varies hidden", "JSON has no word"),
            ('every=12, vary={"rate": "1..2"}, measure="auk"', "measure='auk'", "did you mean 'auc'?"),
        ]
    ),
    (
        'Source("flights.scheduled"',
        'Source("flights.schedule"',
        "not declared",
        "did you mean 'flights.scheduled'?",
    ),
    ("schema=Flight,", "schema=Weather,", "carries Flight, not Weather", "set schema=Flight"),
    ('Tag("far", pl.col("distance")', 'Tag("far", pl.col("far")', "reads tags, perhaps itself", "'far'"),
    (
        'Tag("far", pl.col("distance") >= 1_500)',
        'Tag("late", pl.col("distance") > 1)',
        "Tidemill's own",
        "'late'",
    ),
    ('pl.col("distance") >= 1_500', 'pl.col("distance") * 2', "not true or false", "'far'"),
    ('Slice("carrier")', 'Slice("airline")', "slice column 'airline'", "not there"),
    ('Tumbling("1d", lateness="6h")', 'Tumbling("6h", lateness="1d")', "longer than the window itself", "6h"),
    ('Tumbling("1d", lateness="6h")', 'Tumbling("a day")', "is no duration", "write a number"),
    ('Tumbling("1d", lateness="6h")', 'Sliding("1d", "5h")', "no multiple of every", "divides the size"),
    ('Tumbling("1d", lateness="6h")', 'Sliding("1d", "1m")', "in 1440 windows", "lengthen every"),
    ('Tumbling("1d", lateness="6h")', 'Session("6h", by="carier")', "'carier'", "did you mean 'carrier'?"),
    ('Tumbling("1d", lateness="6h")', 'Session("6h", longest="1h")', "shorter than its gap", "6h"),
    (
        'source="weather.hourly", by',
        'source="weather.daily", by',
        "no source of the pipeline",
        "add it to context",
    ),
    (
        '{"wind": "wind_speed"}',
        '{"wind": "windspeed"}',
        "no column 'windspeed'",
        "did you mean 'wind_speed'?",
    ),
    ('("mean", "arr_delay")', '("mean", "delay")', "no column 'delay'", "flights.arrived"),
    (
        'columns=["carrier", "distance"]',
        'columns=["carrier", "delay"]',
        "two features are called 'delay'",
        "rename",
    ),
    ('columns=["carrier", "distance"]', 'columns=["carier"]', "'carier'", "did you mean 'carrier'?"),
    ('column="late_arrival"', 'column="late"', "label column 'late'", "late_arrival"),
    (
        '"late_arrival": (pl.col("arr_delay") > 15)',
        '"late_arrival": (pl.col("arrdelay") > 15)',
        "'arrdelay'",
        "derive",
    ),
    (
        'derive={"late_arrival":',
        'derive={"carrier": pl.col("air_time"), "late_arrival":',
        "'carrier'",
        "rename one",
    ),
    ("    train_when=every(windows=7),\n", "", "never asked for", "train_when"),
    (
        "train_when=every(windows=7)",
        'train_when=drift("distnace") | every(windows=7)',
        "'distnace'",
        "'distance'?",
    ),
    (
        "train_when=every(windows=7)",
        'train_when=hysteresis(drift("distance"), release=0.1) | bias("carrier")',
        "nothing to hold a window against",
        "first(windows=…)",
    ),
    ("train_when=every(windows=7)", "train_when=every(windows=7) & drift()", "nothing to hold", "first("),
    ("train_when=every(windows=7)", 'train_when=first(windows=2) | bias("carier")', "'carier'", "'carrier'?"),
    ("train_when=every(windows=7)", 'train_when=edge_cases("fra", rows=9)', "no tag is called", "'far'?"),
    ("train_when=every(windows=7)", 'train_when=edge_cases("late", rows=9)', "never count", "another tag"),
    ('require("carrier")', 'impute("carier", "??")', "'carier'", "did you mean 'carrier'?"),
    ('require("carrier")', 'impute("carrier", 7)', "'carrier' is String", "give one of its kind"),
    ('require("carrier")', 'matches("distance", "[0-9]+")', "cannot be computed", "matches(distance)"),
    (
        'require("carrier")',
        'impute("distance", pl.col("distance").mean())',
        "looks at other rows",
        "impute(distance)",
    ),
    ('Slice("carrier")', 'outlier("distnace")', "'distnace'", "'distance'?"),
    ('Slice("carrier")', 'outlier("carrier")', "needs numbers", "try rare()"),
    ('Slice("carrier")', 'rare("carrier", 0.1, name="far")', "declared twice", "another name="),
    ("flights:train", "flights:trian", "has no 'trian'", "did you mean 'train'?"),
    (
        "trainers.models.flights",
        "trainers.models.fligts",
        "no module 'trainers.models.fligts'",
        "correct the name",
    ),
    ("last(windows=30)", "last(windows=0)", "at least one window", "0"),
    ("last(windows=30)", 'balanced(by="carier", rows=9)', "'carier'", "did you mean 'carrier'?"),
    ("last(windows=30)", 'balanced(by="carrier", rows=0)', "rows=0", "at least one row"),
    ("last(windows=30)", 'history(half_life="soon", rows=9)', "is no duration", "write a number"),
    (
        "train_when=every(windows=7)",
        'train_when=every(windows=7), publish_when=better_than_champion(slices="carier")',
        "slices='carier'",
        "did you mean 'carrier'?",
    ),
    (
        "train_when=every(windows=7)",
        'train_when=every(windows=7), publish_when=better_than_champion(allowances={"carrier=AA": 0.1})',
        "judged by nothing of that name",
        "add it to slices",
    ),
    (
        "train_when=every(windows=7)",
        'train_when=every(windows=7), publish_when=better_than_champion(trusted="delai")',
        "trusted='delai'",
        "no such feature",
    ),
    ('name="flights"', 'name="my flights"', "names a folder", "lower-case letters"),
    ("context=[weather]", "context=[weather, weather]", "declared twice", "use one Source"),
    ('dedupe(within="1h")]', 'dedupe(within="1h"), dedupe(within="2h")]', "deduped twice", "longer span"),
    ('key="flight_id")', 'key="flight_id", disorder="soon")', "disorder", "is no duration"),
    ('column="late_arrival")', 'column="late_arrival", within="2 days")', "within", "is no duration"),
    (
        'between("distance", 0, 12_000)',
        'rule("near", pl.col("distance") < pl.col("distance").mean())',
        "looks at other rows",
        "use the row alone",
    ),
    (
        '"late_arrival": (pl.col("arr_delay") > 15)',
        '"late_arrival": (pl.col("arr_delay").shift(1) > 15)',
        "looks at other rows",
        "derive 'late_arrival'",
    ),
    (
        'pl.col("distance") >= 1_500',
        'pl.col("distance").str.len_chars() > 2',
        "cannot be computed on these columns",
        "tag 'far'",
    ),
    ('("mean", "arr_delay")', '("mean", "carrier")', "only numbers can be aggregated", "'carrier'"),
    ('{"wind": "wind_speed"}', '{"flight_id": "wind_speed"}', "name of a key", "rename it"),
    ('{"wind": "wind_speed"}', '{"late_arrival": "wind_speed"}', "a label", "rename it"),
    (
        'by=("origin",), columns',
        'by=("distance",), columns',
        "weather.hourly has no column 'distance'",
        "feature 'wind'",
    ),
    (
        'key="origin")',
        'key="origin", derive={"distance": pl.col("origin")})',
        "column 'distance' is String",
        "rename one",
    ),
]


def written(folder: Path, text: str) -> Path:
    path = folder / "pipeline_under_test.py"
    path.write_text(text)
    return path


def test_a_good_pipeline_has_no_problems(tmp_path: Path) -> None:
    assert check(str(written(tmp_path, GOOD))) == []
    assert check("streams.pipelines.flights") == []


@pytest.mark.parametrize(
    ("right", "wrong", "problem", "way_out"), MISTAKES, ids=[m[1][:40] for m in MISTAKES]
)
def test_a_mistake_is_named_with_its_line_and_the_way_out(
    tmp_path: Path, right: str, wrong: str, problem: str, way_out: str
) -> None:
    assert right in GOOD
    text = GOOD.replace(right, wrong, 1)
    path = written(tmp_path, text)
    found = check(str(path))
    matching = [p for p in found if problem in p.text and way_out in f"{p}"]
    assert matching, [str(p) for p in found]
    assert matching[0].place.file == str(path)
    declared = text.splitlines()[matching[0].place.line - 1 :]
    assert any(word in "\n".join(declared) for word in (wrong.strip(), "Pipeline(", "Training(", "Source("))


def test_nothing_starts_on_a_pipeline_with_mistakes(tmp_path: Path) -> None:
    path = written(
        tmp_path, GOOD.replace('require("carrier")', 'require("carier")').replace("wind_speed", "wind")
    )
    with pytest.raises(InvalidConfiguration, match="cannot run") as caught:
        refuse_mistakes(load_pipeline(str(path)).pipeline)
    assert "carier" in str(caught.value)
    assert "'wind'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def broken(:\n", ":1: "),
        ("import polars\n\nvalue = 1 / 0\n", ":3: ZeroDivisionError"),
        ("x = 1\n", "declares no pipeline"),
        ("import not_there_at_all\n", "not_there_at_all"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_pipeline_is_an_error_of_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    command = [sys.executable, "-m", "infra.command", "check", str(written(tmp_path, text))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert says in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
