"""How often the drift trigger cries wolf, and whether it finds a small shift at once.

    tidemill bench drift [--json]

Windows of made-up rows go through what runs live: each is profiled (`streams.summary`), and `drift()` at its
default settings holds it against the merged profile of the windows before a training. Windows share nothing
but the reference, which is drawn anew for every twenty of them, as trainings would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from schemas.profile import Profile
from schemas.window import Summary, Window, WindowClosed
from streams.summary.profile import merge_profiles, profile_of
from streams.trigger import Condition, History, Look, Reference, drift

SHIFT_SIGMA = 0.1
_WINDOWS_A_REFERENCE = 20
_HOUR_MS = 3_600_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What came of it. A find names the column that was shifted, on the first window."""

    condition: str
    columns: int
    rows: int
    reference_windows: int
    windows: int
    false_alarms: int
    shifted: int
    found: int
    cpu_ms_per_window: float


def measure(
    *,
    windows: int,
    rows: int,
    reference_windows: int,
    shifted: int,
    columns: int = 20,
    seed: int = 0,
    condition: Condition | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Measured:
    """Judge windows without drift, and then windows with one column shifted by `SHIFT_SIGMA`.

    Half of the columns are normal, a quarter uniform integers of 24 values, a quarter categories of 12 values
    with shares that fall off; it is a normal one that is shifted.

    Args:
        windows, shifted: how many of each.
        rows: rows of a window.
        reference_windows: windows behind the reference.
    """
    rng = np.random.default_rng(seed)
    asked = condition or drift()
    alarms = found = judged = 0
    cpu_s = 0.0
    history = History()
    for number in range(windows + shifted):
        if number % _WINDOWS_A_REFERENCE == 0:
            parts = [_profile(_rows(rng, rows, columns)) for _ in range(reference_windows)]
            history = replace(
                history,
                last_yes_end_ms=0,
                trained_on=Reference(name="made up", profile=merge_profiles(parts)),
            )
        moved = f"n{number % (columns // 2)}" if number >= windows else None
        frame = _rows(rng, rows, columns)
        if moved is not None:
            frame = frame.with_columns(pl.col(moved) + SHIFT_SIGMA)
        began = time.process_time()
        answer = asked.evaluate(Look(_closed(number, rows), history, _profile(frame)))
        cpu_s += time.process_time() - began
        judged += 1
        if moved is None:
            alarms += answer.fired is True
        else:
            found += answer.fired is True and answer.parts[0].reason.startswith(f"{moved} is ")
        progress()
    return Measured(
        condition=asked.evaluate(Look(_closed(0, 0), history)).parts[0].condition,
        columns=columns,
        rows=rows,
        reference_windows=reference_windows,
        windows=windows,
        false_alarms=alarms,
        shifted=shifted,
        found=found,
        cpu_ms_per_window=cpu_s / max(judged, 1) * 1000,
    )


def _rows(rng: np.random.Generator, rows: int, columns: int) -> pl.DataFrame:
    normal, integers = columns // 2, columns // 4
    shares = 1 / np.arange(1, 13)
    names = np.array([f"v{i}" for i in range(12)])
    made: dict[str, np.ndarray] = {f"n{i}": rng.normal(size=rows) for i in range(normal)}
    made |= {f"i{i}": rng.integers(0, 24, rows) for i in range(integers)}
    for i in range(columns - normal - integers):
        made[f"c{i}"] = names[rng.choice(12, rows, p=shares / shares.sum())]
    return pl.DataFrame(made)


def _profile(rows: pl.DataFrame) -> Profile:
    return profile_of(rows, rows.columns)


def _closed(number: int, rows: int) -> WindowClosed:
    window = Window(number * _HOUR_MS, (number + 1) * _HOUR_MS)
    return WindowClosed(
        pipeline="bench",
        window=window,
        summary=Summary(rows=rows),
        labelled=0,
        watermark_ms=window.end_ms,
        dataset_uri="",
        dataset_version=number,
    )
