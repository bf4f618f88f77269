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

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")

dep_delay, arr_delay = pl.col("dep_delay"), pl.col("arr_delay")
# Minutes from the schedule to the gate, less the flight itself: the delay with which it had left.
left_minutes = (pl.col("arrived") - pl.col("scheduled")) / MINUTE - pl.col("air_time") - 25

# A flight that leaves early has left before its own schedule, when it is predicted on. Only departures behind
# schedule count here: none of these columns can tell a flight about itself.
departed = Source(
    "flights.departed",
    schema=Departure,
    event_time="departed",
    key="flight_id",
    clean=[between("dep_delay", -180, 2_880), dedupe(within="1d")],
    derive={
        "behind": pl.when(dep_delay > 0).then(1.0),
        "behind_minutes": pl.when(dep_delay > 0).then(dep_delay.clip(0, 120)),
        "behind_15": pl.when(dep_delay > 15).then(1.0),
    },
)
arrived = Source(
    "flights.arrived",
    schema=Arrival,
    event_time="arrived",
    key="flight_id",
    clean=[between("arr_delay", -240, 2_880), between("air_time", 0, 1_440), dedupe(within="1d")],
    derive={
        "arrived_late": (arr_delay > 15).cast(pl.Float64),
        "arr_minutes": arr_delay.clip(-30, 120),
        "left_minutes": left_minutes,
        "gained": arr_delay - left_minutes,
    },
)
weather = Source("weather.hourly", schema=Weather, event_time="observed", key="origin")
scheduled = Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id")


def behind(over_ms: int, name: str, *by: str) -> Trailing:
    """Departures behind schedule: how many, how many by more than 15 minutes, and the minutes of all."""
    aggregates: dict[str, tuple[Aggregate, str]] = {
        f"{name}_behind": ("sum", "behind"),
        f"{name}_behind_15": ("sum", "behind_15"),
        f"{name}_behind_minutes": ("sum", "behind_minutes"),
    }
    return Trailing(source="flights.departed", by=by, over_ms=over_ms, aggregates=aggregates)


def planned(over_ms: int, name: str, *by: str) -> Trailing:
    """How many flights the schedule had, this one among them."""
    return Trailing(
        source="flights.scheduled", by=by, over_ms=over_ms, aggregates={f"{name}_planned": ("count", "")}
    )


def came(over_ms: int, name: str, *by: str, **of: tuple[Aggregate, str]) -> Trailing:
    """Aggregates of arrivals; `late="mean"` of "arrived_late" is the share that came late."""
    aggregates = {f"{name}_{feature}": rest for feature, rest in of.items()}
    return Trailing(source="flights.arrived", by=by, over_ms=over_ms, aggregates=aggregates)


LATE: tuple[Aggregate, str] = ("mean", "arrived_late")
MINUTES: tuple[Aggregate, str] = ("mean", "arr_minutes")
GAINED: tuple[Aggregate, str] = ("mean", "gained")
COUNT: tuple[Aggregate, str] = ("count", "")

flights = Pipeline(
    name="flights",
    source=scheduled,
    context=[departed, weather],
    labels=Labels(arrived, column="arrived_late"),
    clean=[require("scheduled", "carrier"), between("distance", 0, 12_000), dedupe(within="1d")],
    tag=[Tag("long_haul", pl.col("distance") >= 1_500), Slice("carrier")],
    columns=["carrier", "origin", "dest", "distance", "scheduled", "scheduled_arrival_hhmm"],
    features=[
        AsOf(source="weather.hourly", by=("origin",), columns={c: c for c in WEATHER}, max_age_ms=3 * HOUR),
        Trailing(
            source="weather.hourly",
            by=(),
            over_ms=3 * HOUR,
            aggregates={"precip_all_3h": ("sum", "precip"), "visib_worst_3h": ("min", "visib")},
        ),
        # How departures here, of this airline, everywhere, and to there have been running.
        behind(30 * MINUTE, "origin_30m", "origin"),
        behind(1 * HOUR, "origin_1h", "origin"),
        behind(2 * HOUR, "origin_2h", "origin"),
        behind(4 * HOUR, "origin_4h", "origin"),
        behind(2 * HOUR, "own_2h", "origin", "carrier"),
        behind(4 * HOUR, "own_4h", "origin", "carrier"),
        behind(3 * HOUR, "carrier_3h", "carrier"),
        behind(1 * HOUR, "all_1h"),
        behind(3 * HOUR, "all_3h"),
        behind(4 * HOUR, "dest_4h", "dest"),
        behind(8 * HOUR, "dest_8h", "dest"),
        # Against how many were planned.
        planned(30 * MINUTE, "origin_30m", "origin"),
        planned(1 * HOUR, "origin_1h", "origin"),
        planned(2 * HOUR, "origin_2h", "origin"),
        planned(4 * HOUR, "origin_4h", "origin"),
        planned(2 * HOUR, "own_2h", "origin", "carrier"),
        planned(4 * HOUR, "own_4h", "origin", "carrier"),
        planned(3 * HOUR, "carrier_3h", "carrier"),
        planned(1 * HOUR, "all_1h"),
        planned(4 * HOUR, "dest_4h", "dest"),
        planned(8 * HOUR, "dest_8h", "dest"),
        # The aircraft: where its day stands.
        AsOf(
            source="flights.arrived",
            by=("tailnum",),
            columns={"tail_arr_delay": "arr_delay", "tail_left": "left_minutes", "tail_air_time": "air_time"},
            max_age_ms=24 * HOUR,
            age="tail_came_ms_ago",
        ),
        Trailing(
            source="flights.departed",
            by=("tailnum",),
            over_ms=12 * HOUR,
            aggregates={"tail_worst_12h": ("max", "behind_minutes")},
        ),
        came(18 * HOUR, "tail_18h", "tailnum", came=COUNT, worst=("max", "arr_delay")),
        planned(18 * HOUR, "tail_18h", "tailnum"),
        # How flights have been arriving: there, from here, with this airline, on this route.
        AsOf(
            source="flights.arrived", by=("dest",), columns={"dest_last": "arr_delay"}, max_age_ms=24 * HOUR
        ),
        came(4 * HOUR, "dest_4h", "dest", gained=GAINED),
        came(8 * HOUR, "dest_8h", "dest", gained=GAINED, minutes=MINUTES),
        came(24 * HOUR, "dest_24h", "dest", gained=GAINED, minutes=MINUTES),
        came(3 * HOUR, "origin_3h", "origin", late=LATE, minutes=MINUTES, gained=GAINED),
        came(3 * HOUR, "own_3h", "origin", "carrier", minutes=MINUTES),
        came(6 * HOUR, "own_6h", "origin", "carrier", late=LATE),
        came(2 * HOUR, "all_2h", late=LATE, gained=GAINED),
        came(24 * HOUR, "all_24h", late=LATE, gained=GAINED),
        came(7 * DAY, "own_7d", "origin", "carrier", late=LATE),
        came(7 * DAY, "route_7d", "carrier", "dest", late=LATE, gained=GAINED, came=COUNT),
    ],
    window=Tumbling("1d", lateness="6h", offset="5h"),
    train_when=seen(windows=28) & every(windows=7) & labelled(rows=1_000) & cooldown("2d"),
    train=Training("trainers.models.flights:train", data=last(windows=60), resources=gpu(), warm_start=True),
    publish_when=better_than_champion("auc", windows=1, tolerance=0.02),
)
