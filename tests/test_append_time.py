"""A replay holds an event's time against the clock of its own appending, not against today's."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import polars as pl

from streams.ingest import Ingest
from streams.locate import appended, newest_ms
from streams.pipeline import Pipeline, Source
from streams.window import Tumbling
from tests.stream_fixtures import Reading, frame_of, heartbeat_headers

DAY_MS = 86_400_000
THEN_MS = 1_600_000_000_000
PIPELINE = Pipeline(
    name="p",
    source=Source("readings", schema=Reading, event_time="at", key="id", future="1d"),
    window=Tumbling("1d"),
)


def event(number: int, at_ms: int) -> bytes:
    said = {"id": f"r{number}", "at": at_ms, "level": 1.0, "count": 1, "good": True, "note": None}
    return json.dumps(said).encode()


def test_each_record_has_the_stamp_of_its_batch() -> None:
    frames = [
        replace(frame_of([b"a"] * 4), stamps=[(0, 10), (1, 20), (3, 30)]),
        replace(frame_of([b"a"] * 2, partition=1), stamps=[(0, 5)]),
    ]
    rows = pl.DataFrame(
        {"_frame": [0, 0, 0, 0, 1, 1], "_index": [0, 1, 2, 3, 0, 1]},
        schema={"_frame": pl.Int32, "_index": pl.Int32},
    )
    assert rows.select(appended(frames).each_ms).to_series().to_list() == [10, 20, 20, 30, 5, 5]
    assert [newest_ms(frames, number) for number in (0, 1)] == [30, 5]


def test_a_stamp_from_the_future_or_none_at_all_counts_as_now() -> None:
    now_ms = int(time.time() * 1000)
    for stamps in ([(0, now_ms + 10**9)], [(0, -1)], []):
        frame = replace(frame_of([b"a"]), stamps=stamps)
        rows = pl.DataFrame({"_frame": [0], "_index": [0]}, schema={"_frame": pl.Int32, "_index": pl.Int32})
        assert now_ms <= rows.select(appended([frame]).each_ms.alias("ms")).item() <= now_ms + 60_000
        assert now_ms <= newest_ms([frame], 0) <= now_ms + 60_000


def test_a_far_future_time_is_refused_in_a_replay_as_it_was_live_and_pushes_no_watermark() -> None:
    values = [event(0, THEN_MS), event(1, THEN_MS + 300 * DAY_MS), event(2, THEN_MS + DAY_MS // 2)]
    frame = replace(frame_of(values), stamps=[(0, THEN_MS)])
    live, replayed, naive = (
        Ingest(PIPELINE).prepare([frame], now_ms=now_ms)
        for now_ms in (THEN_MS, None, int(time.time() * 1000))
    )
    for prepared in (live, replayed):
        assert prepared.rows.get_column("id").to_list() == ["r0", "r2"]
        assert prepared.watermarks == {("readings", 0): THEN_MS + DAY_MS // 2}
        assert [letter.reason for letter in prepared.dead_letters] == ["future_event_time"]
    assert naive.watermarks == {("readings", 0): THEN_MS + 300 * DAY_MS}  # the trap


def test_a_heartbeat_from_a_wrong_clock_reaches_no_further_than_it_did_live() -> None:
    headers = {0: heartbeat_headers(THEN_MS + 300 * DAY_MS)}
    frame = replace(frame_of([None], headers=headers), stamps=[(0, THEN_MS)])
    prepared = Ingest(PIPELINE).prepare([frame], now_ms=None)
    assert prepared.watermarks == {("readings", 0): THEN_MS + DAY_MS}
