"""Where a row came from: the partition and offset of its record, whatever lies between the records."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from streams.locate import locate
from streams.transport.frame import Frame
from tests.stream_fixtures import frame_of

_GAPS = st.lists(st.integers(1, 4), max_size=6)


@st.composite
def frames(draw: st.DrawFn) -> list[Frame]:
    """Frames of some partitions: dense, compacted, or without a record left."""
    made = []
    for partition in draw(st.lists(st.integers(0, 3), max_size=5)):
        first, gaps = draw(st.integers(0, 2**40)), draw(_GAPS)
        offsets = [first + sum(gaps[: number + 1]) for number in range(len(gaps))]
        whole = draw(st.booleans())
        made.append(
            frame_of([b"x"] * len(gaps), partition=partition, first=first, offsets=None if whole else offsets)
        )
    return made


@given(frames(), st.data())
def test_a_row_lies_at_its_record(own: list[Frame], data: st.DataObject) -> None:
    records = [(number, index) for number, frame in enumerate(own) for index in range(len(frame))]
    # Of a record no row may come, or many: it was refused, or it is Arrow.
    rows = [place for place in records for _ in range(data.draw(st.integers(0, 2)))]
    decoded = pl.DataFrame(
        {
            "_frame": [number for number, _ in rows],
            "_index": [index for _, index in rows],
            "at": [number * 1_000 + index for number, index in rows],
        },
        schema={"_frame": pl.Int32, "_index": pl.Int32, "at": pl.Int32},
    )
    located = locate(own, decoded, event_time="at")
    assert located.select("_partition", "_offset", "_time").rows() == [
        (own[number].partition, own[number].offsets[index], number * 1_000 + index) for number, index in rows
    ]
    assert located.schema["_time"] == pl.Int64
    assert located.schema["_partition"] == pl.Int32
