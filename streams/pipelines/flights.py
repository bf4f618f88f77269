"""Will this flight arrive more than 15 minutes late? Asked at its scheduled departure."""

from __future__ import annotations

import polars as pl

from schemas.features import Aggregate, AsOf, Trailing
from schemas.raw import Arrival, Departure, Flight, Weather
from streams.clean import between, dedupe, require
from streams.pipeline import Labels, Pipeline, Source
from streams.tag import Slice, Tag
from streams.training import Training, better_than_champion, gpu, last
from streams.trigger import cooldown, every, labelled, seen
from streams.window import Tumbling

HOUR = 3_600_000
DAY = 24 * HOUR

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")

departed = Source(
    "flights.departed",
    schema=Departure,
    event_time="departed",
    key="flight_id",
    clean=[between("dep_delay", -180, 2_880), dedupe(within="1d")],
    derive={"departed_late": (pl.col("dep_delay") > 15).cast(pl.Float64)},
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
scheduled = Source(
    "flights.scheduled",
    schema=Flight,
    event_time="scheduled",
    key="flight_id",
    derive={
        "origin_carrier": pl.col("origin") + "-" + pl.col("carrier"),
        "arrival_minute": pl.col("scheduled_arrival_hhmm") // 100 * 60
        + pl.col("scheduled_arrival_hhmm") % 100,
    },
)


def departures(over_ms: int, *by: str, **aggregates: tuple[Aggregate, str]) -> Trailing:
    """What departures up to the event say; `count` ignores its column."""
    return Trailing(source="flights.departed", by=by, over_ms=over_ms, aggregates=aggregates)


def arrivals(over_ms: int, *by: str, **aggregates: tuple[Aggregate, str]) -> Trailing:
    """What arrivals up to the event say."""
    return Trailing(source="flights.arrived", by=by, over_ms=over_ms, aggregates=aggregates)


def schedules(over_ms: int, *by: str, **aggregates: tuple[Aggregate, str]) -> Trailing:
    """How busy the schedule was up to the event."""
    return Trailing(source="flights.scheduled", by=by, over_ms=over_ms, aggregates=aggregates)


flights = Pipeline(
    name="flights",
    source=scheduled,
    context=[departed, weather],
    labels=Labels(arrived, column="arrived_late"),
    clean=[require("scheduled", "carrier"), between("distance", 0, 12_000), dedupe(within="1d")],
    tag=[Tag("long_haul", pl.col("distance") >= 1_500), Slice("carrier")],
    columns=["carrier", "origin", "dest", "origin_carrier", "distance", "scheduled", "arrival_minute"],
    features=[
        AsOf(source="weather.hourly", by=("origin",), columns={c: c for c in WEATHER}, max_age_ms=3 * HOUR),
        # How this airport, this airline here, and everybody have been leaving.
        departures(1 * HOUR, "origin", origin_delay_1h=("mean", "dep_delay"), origin_left_1h=("count", "")),
        departures(
            2 * HOUR,
            "origin",
            origin_delay_2h=("mean", "dep_delay"),
            origin_left_2h=("count", ""),
            origin_late_2h=("mean", "departed_late"),
        ),
        departures(
            3 * HOUR,
            "origin",
            "carrier",
            own_delay_3h=("mean", "dep_delay"),
            own_left_3h=("count", ""),
            own_worst_3h=("max", "dep_delay"),
        ),
        departures(1 * HOUR, all_delay_1h=("mean", "dep_delay")),
        departures(6 * HOUR, "dest", dest_left_delay_6h=("mean", "dep_delay")),
        # How flights have been arriving: there, from here, with this airline.
        arrivals(6 * HOUR, "dest", dest_delay_6h=("mean", "arr_delay"), dest_came_6h=("count", "")),
        arrivals(3 * HOUR, "origin", origin_came_late_3h=("mean", "arrived_late")),
        arrivals(6 * HOUR, "origin", "carrier", own_came_late_6h=("mean", "arrived_late")),
        arrivals(2 * HOUR, all_came_late_2h=("mean", "arrived_late")),
        arrivals(
            7 * DAY, "carrier", "dest", route_late_7d=("mean", "arrived_late"), route_came_7d=("count", "")
        ),
        arrivals(7 * DAY, "origin", "carrier", own_late_7d=("mean", "arrived_late")),
        # The aircraft's last flight, and how busy the schedule is.
        AsOf(
            source="flights.arrived",
            by=("tailnum",),
            columns={"aircraft_delay": "arr_delay"},
            max_age_ms=18 * HOUR,
            age="aircraft_came_ms_ago",
        ),
        schedules(18 * HOUR, "tailnum", aircraft_flights_18h=("count", "")),
        schedules(1 * HOUR, "origin", origin_planned_1h=("count", "")),
        schedules(2 * HOUR, "origin", origin_planned_2h=("count", "")),
    ],
    window=Tumbling("1d", lateness="6h", offset="5h"),
    train_when=seen(windows=28) & every(windows=7) & labelled(rows=1_000) & cooldown("2d"),
    train=Training(
        "trainers.models.flights:train",
        data=last(windows=60),
        params={"epochs": 2, "first_epochs": 3, "learning_rate": 2e-3},
        resources=gpu(),
        warm_start=True,
    ),
    publish_when=better_than_champion("auc", windows=1, tolerance=0.02),
)
