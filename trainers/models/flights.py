"""The demo's model: a small perceptron on a flight, the weather, and how the airport has been doing."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from schemas.tabular import TabularNetwork, calendar
from trainers.context import TrainingContext

_ZONE = "America/New_York"
_TIME = "scheduled"
_CALENDAR_NUMBERS = ("minute_of_day",)
_CALENDAR_CODES = ("hour", "weekday")
_WIDTHS = {"carrier": 6, "origin": 3, "dest": 12, "origin_carrier": 8, "hour": 8, "weekday": 4}
_NOT_NUMBERS = {_TIME}


def train(ctx: TrainingContext) -> TabularNetwork:
    """Train on the rows, from the live model's weights when the experiment says so.

    Parameters: `epochs` (2), `first_epochs` (3, without a parent), `learning_rate` (2e-3), `batch_rows`
    (1024), `weight_decay` (0.01), `hidden` ([128, 64]), `dropout` (0.1).
    """
    params = ctx.params
    model = TabularNetwork(_config(ctx))
    warm = ctx.parent is not None and ctx.parent_config is not None
    if warm:
        assert ctx.parent is not None
        assert ctx.parent_config is not None
        warm = model.take_over(ctx.parent, ctx.parent_config)
    epochs = int(params.get("epochs", 2) if warm else params.get("first_epochs", 3))
    _fit(model, ctx, epochs)
    return model


def _config(ctx: TrainingContext) -> dict[str, Any]:
    """The network that suits these columns; standardisation is kept from the parent if there is one."""
    if ctx.parent_config is not None:
        config = dict(ctx.parent_config)
        config["categorical"] = [
            {**c, "vocabulary": _grown(c["vocabulary"], ctx.rows, c["name"])} for c in config["categorical"]
        ]
        return config
    columns = {name: ctx.rows.get_column(name) for name in ctx.features}
    texts = [n for n, c in columns.items() if c.dtype == pl.String and n in _WIDTHS]
    numbers = {n: c for n, c in columns.items() if c.dtype.is_numeric() and n not in _NOT_NUMBERS}
    times = calendar(ctx.rows.get_column(_TIME), zone=_ZONE)
    numbers |= {n: pl.Series(n, times[n]) for n in _CALENDAR_NUMBERS}
    vocabularies: dict[str, list[Any]] = {n: _grown([], ctx.rows, n) for n in texts}
    vocabularies |= {"hour": list(range(24)), "weekday": list(range(7))}
    return {
        "categorical": [
            {"name": n, "vocabulary": words, "dim": _WIDTHS[n]} for n, words in vocabularies.items()
        ],
        "numeric": [{"name": n, **_standard(c)} for n, c in numbers.items()],
        "calendar": {"column": _TIME, "zone": _ZONE},
        "hidden": list(ctx.params.get("hidden", [128, 64])),
        "dropout": float(ctx.params.get("dropout", 0.1)),
    }


def _grown(vocabulary: list[Any], rows: pl.DataFrame, name: str) -> list[Any]:
    if name not in rows.columns:
        return vocabulary
    seen = set(rows.get_column(name).drop_nulls().unique().to_list())
    return [*vocabulary, *sorted(seen - set(vocabulary))]


def _standard(column: pl.Series) -> dict[str, float]:
    values = column.cast(pl.Float64).drop_nulls().to_numpy()
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {"mean": 0.0, "scale": 1.0}
    return {"mean": float(values.mean()), "scale": float(values.std()) or 1.0}


def _fit(model: TabularNetwork, ctx: TrainingContext, epochs: int) -> None:
    """AdamW under one cycle of the learning rate (Smith and Topin, 2018), log-loss, shuffled batches."""
    params = ctx.params
    batch_rows = int(params.get("batch_rows", 1024))
    rate = float(params.get("learning_rate", 2e-3))
    device = ctx.device
    model.to(device)
    inputs = [t.to(device) for t in model.encode(ctx.rows.to_dict(as_series=True))]
    truth = ctx.labels().to(device)
    rows = len(truth)
    steps = epochs * -(-rows // batch_rows)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=float(params.get("weight_decay", 0.01))
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    shuffle = torch.Generator().manual_seed(ctx.seed)
    model.train()
    done = 0
    for _ in range(epochs):
        order = torch.randperm(rows, generator=shuffle).to(device)
        for batch in order.split(batch_rows):
            logits = model(*(t[batch] for t in inputs))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, truth[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == steps:
                ctx.progress(done, steps, loss=loss.item())
    model.eval()
