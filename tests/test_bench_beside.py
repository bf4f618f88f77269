"""What `tidemill bench beside` concludes from its turns. The turns themselves are a command, not a test."""

from __future__ import annotations

import json
from pathlib import Path

from loadtest.beside.run import NICENESS, Result, Turn
from loadtest.ingest.measure import Measured
from trainers import child


def turn(cpu_us_per_event: float, rate_events_s: float, trained_rows_s: float | None = None) -> Turn:
    ingest = Measured(
        events=1_000,
        rate_events_s=rate_events_s,
        cpu_us_per_event=cpu_us_per_event,
        peak_memory_mib=1.0,
        start_s=1.0,
        whole=True,
        kept=900,
    )
    return Turn(ingest=ingest, trained_rows_s=trained_rows_s)


def test_turns_of_one_round_are_compared_and_the_median_round_counts(tmp_path: Path) -> None:
    result = Result(events=1_000, ingest_cores=[0], training_core=1)
    result.alone = [turn(2.0, 100.0), turn(1.0, 400.0), turn(4.0, 100.0)]
    result.beside = [turn(2.5, 90.0, 5.0), turn(1.0, 200.0, 5.0), turn(4.1, 99.0, 5.0)]
    result.counting = [turn(2.5, 100.0), turn(1.25, 400.0), turn(4.0, 50.0)]
    ratios = result.ratios()
    assert (ratios["cpu_counting"], ratios["rate_counting"]) == (0.8, 1.0)
    assert NICENESS == child.NICENESS
    assert (round(ratios["cpu"], 3), round(ratios["rate"], 3)) == (0.976, 0.9)
    assert result.holds
    written = json.loads(result.write(tmp_path).read_text())
    assert (written["met"], written["beside"][0]["trained_rows_s"]) == (True, 5.0)
    result.beside[2] = turn(5.0, 99.0, 5.0)
    assert not result.holds
