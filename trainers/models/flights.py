"""The demo's model: a small perceptron on a flight, the weather, and how the airport has been doing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from schemas.tabular import TabularNetwork, calendar
from trainers.context import TrainingContext
from trainers.loader import Loader

_ZONE = "America/New_York"
_TIME = "scheduled"
_CALENDAR_NUMBERS = ("minute_of_day",)
_WIDTHS = {"carrier": 6, "origin": 3, "dest": 12, "origin_carrier": 8}
_CALENDAR_WIDTHS = {"hour": 8, "weekday": 4}
# An airline at an airport is late in its own way. `origin_carrier` may come as a column instead.
_PAIRS = {"origin_carrier": ("origin", "carrier", 8), "carrier_dest": ("carrier", "dest", 12)}
# Numbers that count nothing: a time of its own scale, and a name.
_NOT_NUMBERS = {_TIME, "flight"}
_KNOTS = 17
_ROWS_FOR_KNOTS = 20_000


def train(ctx: TrainingContext) -> TabularNetwork:
    """Train on the rows, from the live model's weights when the experiment says so.

    The same rows, parameters and seed give the same weights on a CPU.

    Parameters: `epochs` (1, from a parent), `first_epochs` (3, without one), `learning_rate` (2e-3, from a
    parent), `first_learning_rate` (5e-3), `batch_rows` (2048), `weight_decay` (0.01), `hidden` ([128, 64]),
    `dropout` (0.1), `resident_bytes` (of a table: a larger one is streamed; else `trainers.loader` decides).
    """
    torch.manual_seed(ctx.seed)
    config = config_of(ctx)
    parent = ctx.parent_config
    warm = parent is not None and ctx.parent is not None and _is_alike(config, parent)
    if warm:
        assert parent is not None
        config = _continued(config, parent)
    model = TabularNetwork(config)
    if warm:
        assert ctx.parent is not None
        assert parent is not None
        warm = model.take_over(ctx.parent, parent)
    _fit(model, ctx, warm=warm)
    return model


def config_of(ctx: TrainingContext) -> dict[str, Any]:
    """The network that suits these columns."""
    columns = {name: ctx.rows.get_column(name) for name in ctx.features}
    texts = [n for n, c in columns.items() if c.dtype == pl.String and n in _WIDTHS]
    numbers = {n: c for n, c in columns.items() if c.dtype.is_numeric() and n not in _NOT_NUMBERS}
    categorical: list[dict[str, Any]] = [
        {"name": n, "vocabulary": _words(columns[n]), "dim": _WIDTHS[n]} for n in texts
    ]
    for name, (one, other, width) in _PAIRS.items():
        if one in texts and other in texts and name not in texts:
            pairs = ctx.rows.select(one, other).drop_nulls().unique().sort(one, other).rows()
            categorical.append(
                {"name": name, "of": [one, other], "vocabulary": [list(p) for p in pairs], "dim": width}
            )
    has_time = _TIME in columns
    if has_time:
        times = calendar(columns[_TIME], zone=_ZONE)
        numbers |= {n: pl.Series(n, times[n]) for n in _CALENDAR_NUMBERS}
        for name, span in (("hour", 24), ("weekday", 7)):
            categorical.append({"name": name, "vocabulary": list(range(span)), "dim": _CALENDAR_WIDTHS[name]})
    return {
        "categorical": categorical,
        "numeric": [{"name": n, "knots": _knots(c)} for n, c in numbers.items()],
        "calendar": {"column": _TIME, "zone": _ZONE} if has_time else None,
        "hidden": list(ctx.params.get("hidden", [128, 64])),
        "dropout": float(ctx.params.get("dropout", 0.1)),
    }


def _words(column: pl.Series) -> list[Any]:
    return column.drop_nulls().unique().sort().to_list()


def _knots(column: pl.Series) -> list[float]:
    """Distinct quantiles of a column, two at least, rising."""
    known = column.cast(pl.Float64).drop_nulls().to_numpy()
    known = known[np.isfinite(known)]
    known = known[:: -(-len(known) // _ROWS_FOR_KNOTS) or 1]
    if len(known) == 0:
        return [0.0, 1.0]
    knots = np.unique(np.quantile(known, np.linspace(0.0, 1.0, _KNOTS)))
    return knots.tolist() if len(knots) > 1 else [float(knots[0]), float(knots[0]) + 1.0]


def _is_alike(config: dict[str, Any], parent: dict[str, Any]) -> bool:
    """Whether a network of `config` can go on from the parent's weights: same columns, same sizes."""

    def shape(of: dict[str, Any]) -> tuple[Any, ...]:
        categorical = [(c["name"], c["dim"], c.get("of")) for c in of["categorical"]]
        return categorical, [(n["name"], "knots" in n) for n in of["numeric"]], of["hidden"]

    return shape(config) == shape(parent)


def _continued(config: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
    """The parent's scales, since its weights were learnt on them; its words, and behind them the new ones."""
    categorical = [
        {**mine, "vocabulary": _grown(theirs["vocabulary"], mine["vocabulary"])}
        for mine, theirs in zip(config["categorical"], parent["categorical"], strict=True)
    ]
    return {**config, "categorical": categorical, "numeric": parent["numeric"]}


def _grown(words: list[Any], seen: Iterable[Any]) -> list[Any]:
    return [*words, *itertools.filterfalse(words.__contains__, seen)]


def _fit(model: TabularNetwork, ctx: TrainingContext, *, warm: bool) -> None:
    """AdamW under one cycle of the learning rate (Smith and Topin, 2018), log-loss, shuffled batches."""
    params = ctx.params
    epochs = int(params.get("epochs", 1) if warm else params.get("first_epochs", 3))
    rate = float(params.get("learning_rate", 2e-3) if warm else params.get("first_learning_rate", 5e-3))
    batch_rows = int(params.get("batch_rows", 2048))
    device = ctx.device
    model.to(device)
    loader = Loader(
        (*model.encode(ctx.rows.to_dict(as_series=True)), ctx.labels()),
        batch_rows=batch_rows,
        seed=ctx.seed,
        device=device,
        resident_bytes=params.get("resident_bytes"),
    )
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=float(params.get("weight_decay", 0.01))
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    done = 0
    for _ in range(epochs):
        for *inputs, truth in loader.epoch():
            logits = model(*inputs)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == steps:
                ctx.progress(done, steps, loss=loss.item())
    model.eval()
