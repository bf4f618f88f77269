"""Will this flight arrive more than 15 minutes late? Asked at its scheduled departure."""

from __future__ import annotations

import polars as pl

from schemas.features import AsOf, Trailing
from schemas.raw import Arrival, Departure, Flight, Weather
from streams.clean import between, dedupe, require
from streams.pipeline import Labels, Pipeline, Source
from streams.tag import Slice, Tag
from streams.training import Training, better_than_champion, gpu, last
from streams.trigger import cooldown, every, labelled, seen
from streams.window import Tumbling

HOUR = 3_600_000

departed = Source(
    "flights.departed",
    schema=Departure,
    event_time="departed",
    key="flight_id",
    clean=[between("dep_delay", -180, 2_880), dedupe(within="1d")],
)
arrived = Source(
    "flights.arrived",
    schema=Arrival,
    event_time="arrived",
    key="flight_id",
    clean=[between("arr_delay", -240, 2_880), between("air_time", 0, 1_440), dedupe(within="1d")],
    derive={"arrived_late": (pl.col("arr_delay") > 15).cast(pl.Float64)},
)
weather = Source("weather.hourly", schema=Weather, event_time="observed", key="origin")

flights = Pipeline(
    name="flights",
    source=Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id"),
    context=[departed, weather],
    labels=Labels(arrived, column="arrived_late"),
    clean=[require("scheduled", "carrier"), between("distance", 0, 12_000), dedupe(within="1d")],
    tag=[Tag("long_haul", pl.col("distance") >= 1_500), Slice("carrier")],
    columns=["carrier", "origin", "dest", "distance", "scheduled", "scheduled_arrival_hhmm"],
    features=[
        AsOf(
            source="weather.hourly",
            by=("origin",),
            columns={c: c for c in ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")},
            max_age_ms=3 * HOUR,
        ),
        Trailing(
            source="flights.departed",
            by=("origin",),
            over_ms=2 * HOUR,
            aggregates={"origin_delay_2h": ("mean", "dep_delay"), "origin_departures_2h": ("count", "")},
        ),
    ],
    window=Tumbling("1d", lateness="6h", offset="5h"),
    train_when=seen(windows=28) & every(windows=7) & labelled(rows=1_000) & cooldown("2d"),
    train=Training("trainers.models.flights:train", data=last(windows=30), resources=gpu(), warm_start=True),
    publish_when=better_than_champion("auc", windows=7, tolerance=0.02),
)
