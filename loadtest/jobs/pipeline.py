"""A pipeline whose every window asks for a training: what `tidemill bench jobs --closes` measures.

No label ever comes, so each job begins, finds nothing to train on, and is over.
"""

from __future__ import annotations

import polars as pl

from schemas.job import Resources
from schemas.raw import Arrival, Flight
from streams.pipeline import Labels, Pipeline, Source
from streams.training import Training, last
from streams.trigger import every
from streams.window import Tumbling

WINDOW_MS = 60_000

arrived = Source(
    "flights.arrived",
    schema=Arrival,
    event_time="arrived",
    key="flight_id",
    derive={"was_late": (pl.col("arr_delay") > 15).cast(pl.Float64)},
)
pipeline = Pipeline(
    name="closes",
    source=Source("flights.scheduled", schema=Flight, event_time="scheduled", key="flight_id"),
    labels=Labels(arrived, column="was_late"),
    columns=["carrier", "distance"],
    window=Tumbling("1m"),
    train_when=every(windows=1),
    train=Training(
        "loadtest.jobs.model_code:train",
        data=last(windows=1),
        resources=Resources(device="cpu", memory_bytes=2**28, time_limit_s=60),
    ),
)
