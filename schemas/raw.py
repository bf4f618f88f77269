"""Raw events of the flights example: what producers push.

Times are epoch milliseconds, UTC. Text fields are never empty; what may be unknown is null. A flight is
scheduled, departs, arrives: three events of one key on three topics, each at the instant it was known.
Unknown fields are refused, so that a misspelt field is a dead letter with its name and not a null.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

EARLIEST_MS = -(2**53)
TimeMs = Annotated[int, Meta(description="epoch milliseconds, UTC", ge=EARLIEST_MS, le=2**53)]
Code = Annotated[str, Meta(min_length=1, max_length=16)]
FlightId = Annotated[
    str, Meta(min_length=1, max_length=64, description="the same on all three topics of a flight")
]


class Flight(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A flight as it is known before it departs. Event time: `scheduled`."""

    flight_id: FlightId
    scheduled: TimeMs
    carrier: Code
    flight: int
    tailnum: Code | None
    origin: Code
    dest: Code
    distance: Annotated[float, Meta(description="statute miles")]
    scheduled_arrival_hhmm: Annotated[int, Meta(ge=0, le=2400, description="local time at the destination")]


class Departure(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A flight left its gate. Event time: `departed`."""

    flight_id: FlightId
    departed: TimeMs
    scheduled: TimeMs
    carrier: Code
    tailnum: Code | None
    origin: Code
    dest: Code
    dep_delay: Annotated[float, Meta(description="minutes, negative when early")]


class Arrival(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A flight reached its gate; carries the label. Event time: `arrived`."""

    flight_id: FlightId
    arrived: TimeMs
    scheduled: TimeMs
    carrier: Code
    tailnum: Code | None
    origin: Code
    dest: Code
    arr_delay: Annotated[float, Meta(description="minutes, negative when early")]
    air_time: Annotated[float, Meta(ge=0, description="minutes")]


class Weather(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One hour's weather at an airport. Event time: `observed`, the end of the hour observed."""

    origin: Code
    observed: TimeMs
    temp: Annotated[float | None, Meta(description="degrees Fahrenheit")]
    dewp: Annotated[float | None, Meta(description="degrees Fahrenheit")]
    humid: Annotated[float | None, Meta(description="relative humidity, percent")]
    wind_dir: Annotated[float | None, Meta(description="degrees")]
    wind_speed: Annotated[float | None, Meta(description="miles an hour")]
    wind_gust: Annotated[float | None, Meta(description="miles an hour")]
    precip: Annotated[float | None, Meta(description="inches in the hour")]
    pressure: Annotated[float | None, Meta(description="millibars at sea level")]
    visib: Annotated[float | None, Meta(description="miles")]
