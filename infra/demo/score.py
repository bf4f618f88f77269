"""How good the live models were: prequential scores, month by month, from the predictions they made.

The truth is read from the source files, not from the dataset: nothing that Tidemill computed judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from infra.demo.flights import DAY_MS, FIRST_DAY_MS, HOUR_MS, flights
from infra.measures import measures
from schemas.model import ModelPublished
from schemas.prediction import Predictions

LATE_MINUTES = 15
LATENESS_MS = 6 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Score:
    """Of one forecaster on one span of time; NaN where it cannot be told."""

    rows: int
    auc: float
    log_loss: float
    accuracy: float


def score(truth: np.ndarray, chance: np.ndarray) -> Score:
    """All measures of (N,) probabilities against (N,) of 0 and 1."""
    told = {name: np.nan if value is None else value for name, value in measures(truth, chance).items()}
    return Score(len(truth), **told)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """By forecaster: over all rows that every forecaster answered, and by month ("2013-02")."""

    total: dict[str, Score]
    by_month: dict[str, dict[str, Score]]
    dishonest: int
    unanswered: int


def truth() -> pl.DataFrame:
    """`flight_id`, `scheduled`, `month`, `late` (null where the flight never arrived), `persistence`.

    Persistence forecasts the share of late arrivals among those known in the three hours before, from the
    same airport of origin; where none are known, the share of all arrivals so far.
    """
    flown = flights()
    late = (pl.col("arr_delay") > LATE_MINUTES).cast(pl.Float64).alias("late")
    came = flown.filter(pl.col("arrived").is_not_null()).select(
        "origin", pl.col("arrived").alias("time"), late
    )
    came = came.sort("time")
    recent = came.rolling("time", period=f"{3 * HOUR_MS}i", group_by="origin").agg(
        pl.col("late").mean().alias("recent")
    )
    so_far = came.select("time", (pl.col("late").cum_sum() / pl.int_range(1, pl.len() + 1)).alias("so_far"))
    asked = flown.select("flight_id", "origin", "scheduled", "month", late).sort("scheduled")
    return (
        asked.join_asof(
            recent.sort("time"), left_on="scheduled", right_on="time", by="origin",
            tolerance=3 * HOUR_MS, check_sortedness=False,
        )
        .join_asof(so_far, left_on="scheduled", right_on="time", check_sortedness=False)
        .select(
            "flight_id",
            "scheduled",
            pl.format("2013-{}", pl.col("month").cast(pl.String).str.zfill(2)).alias("month"),
            "late",
            persistence=pl.coalesce("recent", "so_far", pl.lit(0.5)),
        )
    )  # fmt: skip


def evaluate(
    predictions: Sequence[Predictions],
    published: Sequence[ModelPublished],
    *,
    live: str,
    static: str,
    until_ms: int,
) -> Scores:
    """Score the live models, the static one and persistence on the same flights.

    From February on, flights with a known outcome that both models answered. A prediction whose model was
    trained or judged on anything known only after the flight's schedule counts as dishonest; there must be
    none.
    """
    answered = {name: _answers([p for p in predictions if p.name == name]) for name in (live, static)}
    rows = truth().filter(pl.col("scheduled") >= FIRST_DAY_MS + 31 * DAY_MS, pl.col("scheduled") < until_ms)
    known = rows.filter(pl.col("late").is_not_null())
    joined = known
    for name, answers in answered.items():
        joined = joined.join(
            answers.select("flight_id", pl.col("score").alias(name), pl.col("version").alias(f"v:{name}")),
            on="flight_id",
            how="left",
        )
    both = joined.filter(pl.col(live).is_not_null() & pl.col(static).is_not_null())
    columns = {"live": live, "static": static, "persistence": "persistence"}
    return Scores(
        total={said: _of(both, column) for said, column in columns.items()},
        by_month={
            str(month): {said: _of(part, column) for said, column in columns.items()}
            for (month,), part in sorted(both.partition_by("month", as_dict=True).items())
        },
        dishonest=sum(_dishonest(both, name, published) for name in (live, static)),
        unanswered=known.height - both.height,
    )


def _of(rows: pl.DataFrame, column: str) -> Score:
    return score(rows.get_column("late").to_numpy(), rows.get_column(column).to_numpy())


def _answers(predictions: Sequence[Predictions]) -> pl.DataFrame:
    parts = [
        pl.DataFrame({"flight_id": p.keys, "score": p.scores}).with_columns(version=pl.lit(p.version))
        for p in predictions
    ]
    schema = pl.Schema({"flight_id": pl.String, "score": pl.Float64, "version": pl.Int32})
    if not parts:
        return pl.DataFrame(schema=schema)
    return pl.concat(parts).cast(schema).unique("flight_id", keep="first", maintain_order=True)


def _dishonest(rows: pl.DataFrame, name: str, published: Sequence[ModelPublished]) -> int:
    """Flights that were scheduled before all that their model, or its gate, has seen was known."""
    ends = pl.DataFrame(
        {
            f"v:{name}": [p.manifest.version for p in published if p.name == name],
            "end": [_newest_ms(p) for p in published if p.name == name],
        },
        schema={f"v:{name}": pl.Int32, "end": pl.Int64},
    )
    judged = rows.join(ends, on=f"v:{name}", how="left")
    return judged.filter(pl.col("end").is_null() | (pl.col("scheduled") < pl.col("end"))).height


def _newest_ms(event: ModelPublished) -> int:
    """When the newest window that the model, or its gate, has seen was closed."""
    ends_ms = [int(window.rpartition("-")[2]) for window in event.manifest.lineage.window_ids]
    return max(ends_ms) + LATENESS_MS
