"""The pipeline that faults happen to: windows of a minute over flights that `sender` makes up."""

from __future__ import annotations

import polars as pl

from schemas.raw import Flight
from streams.clean import between, dedupe
from streams.pipeline import Pipeline, Source
from streams.tag import Tag
from streams.window import Tumbling

pipeline = Pipeline(
    name="faults",
    source=Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id"),
    clean=[between("distance", 0, 12_000), dedupe(within="1m")],
    tag=[Tag("long_haul", pl.col("distance") >= 1_500)],
    columns=["carrier", "distance"],
    window=Tumbling("1m", lateness="1m"),
)
