"""How often the triggers on the live model cry wolf, and how soon they notice a model that falls off.

    tidemill bench quality [--json]

Lives of made-up models: calibrated answers, counted by what counts live ones (`streams.live.tally`), window
after window, and judged at the default settings. In a steady life nothing changes, but that days differ by
themselves where `day` is not 0; behind it the truth moves away from the answers, in all rows or in one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from schemas.window import Summary, Window, WindowClosed
from streams.live.tally import PaneTally, tallied
from streams.live.track import Live
from streams.trigger import Condition, History, Look, bias, quality

SLICES = ("a", "b", "c", "d")
NOISE = 2.5
"""By so much the truth's logit is off, up or down by a coin, once a model has fallen off."""
_HOUR_MS = 3_600_000
_BASELINE = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Of one condition: lives and windows with a false alarm, and windows until a fall is noticed.

    Attributes:
        found: lives in which it was noticed within `patience` windows; `after` is the median of how many.
    """

    condition: str
    rows: int
    day: float
    lives: int
    judged_windows: int
    lives_with_alarm: int
    windows_with_alarm: int
    found: int
    after: float | None


def window_of(
    number: int, rows: int, rng: np.random.Generator, *, noise: float = 0.0, worse: str = "", day: float = 0.0
) -> PaneTally:
    """A window of calibrated answers; the truth's logit is off by `noise`, in slice `worse` alone if named.

    Args:
        day: standard deviation of what all of a window's truth is off by, in its logit.
    """
    logit = rng.normal(-1, 1.2, rows)
    place = rng.choice(SLICES, rows)
    off = np.where((place == worse) | (not worse), noise, 0.0) * rng.choice([-1, 1], rows)
    chance = 1 / (1 + np.exp(-(logit + off + day * rng.normal())))
    frame = pl.DataFrame(
        {
            "key": list(map(str, range(rows))),
            "score": 1 / (1 + np.exp(-logit)),
            "label": (rng.random(rows) < chance).astype(float),
            "place": place,
        }
    ).with_columns(version=pl.lit(1), _time=pl.lit(number * _HOUR_MS))
    (made,) = tallied(frame.select("version", "_time"), frame, pane=pl.col("_time"), slices=("place",))
    return made


def measure(
    *,
    lives: int,
    windows: int,
    rows: int,
    day: float = 0.0,
    patience: int = 20,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """Judge steady lives, and then each life's fall.

    Args:
        lives: how many models.
        windows: of a steady life, those of its baseline apart.
        rows: answers of a window, all with their label.
        patience: so many windows of a fall are looked at.
    """
    conditions = (quality(), quality("auc"), bias("place", of="error"))
    alarmed = [0] * len(conditions)
    alarms = [0] * len(conditions)
    after: list[list[int]] = [[] for _ in conditions]
    for life in range(lives):
        rng = np.random.default_rng((seed, life))
        panes = [window_of(n, rows, rng, day=day) for n in range(_BASELINE + windows)]
        beyond = range(len(panes), len(panes) + patience)
        fallen = {
            worse: [window_of(n, rows, rng, noise=NOISE, worse=worse, day=day) for n in beyond]
            for worse in ("", SLICES[0])
        }
        for at, condition in enumerate(conditions):
            fired = [_fires(condition, panes[:end]) for end in range(_BASELINE + 1, _BASELINE + windows + 1)]
            alarmed[at] += any(fired)
            alarms[at] += sum(fired)
            later = fallen[SLICES[0] if condition.watched().errors else ""]
            first = next((n for n in range(1, patience + 1) if _fires(condition, panes + later[:n])), None)
            if first is not None:
                after[at].append(first)
        progress()
    return [
        Measured(
            condition=condition.evaluate(Look(_closed(), History())).parts[0].condition,
            rows=rows,
            day=day,
            lives=lives,
            judged_windows=lives * windows,
            lives_with_alarm=alarmed[at],
            windows_with_alarm=alarms[at],
            found=len(after[at]),
            after=float(np.median(after[at])) if after[at] else None,
        )
        for at, condition in enumerate(conditions)
    ]


def _fires(condition: Condition, panes: Sequence[PaneTally]) -> bool:
    live = Live(version=1, panes=tuple(panes))
    return condition.evaluate(Look(_closed(), History(), live=live)).fired is True


def _closed() -> WindowClosed:
    return WindowClosed(
        pipeline="bench",
        window=Window(0, _HOUR_MS),
        summary=Summary(rows=1),
        labelled=0,
        watermark_ms=_HOUR_MS,
        dataset_uri="",
        dataset_version=0,
    )
