"""What the jobs of the measurement train: little, in steps that keep their state."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from schemas.tabular import TabularNetwork
from trainers.context import TrainingContext

_ROWS = 256


def train(ctx: TrainingContext) -> TabularNetwork:
    """A network by AdamW, on few rows; parameters `steps`, `pause_s` after each, and `hidden`, its width."""
    numbers = [{"name": "x", "mean": 0.0, "scale": 1.0}]
    hidden = [int(ctx.params.get("hidden", 8))] * 2
    model = TabularNetwork(
        {"categorical": [], "numeric": numbers, "calendar": None, "hidden": hidden, "dropout": 0.1}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    begin = 0
    if kept := ctx.resume():
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["step"]
    inputs = [t[:_ROWS] for t in model.encode(ctx.rows.to_dict(as_series=True))]
    truth = ctx.labels()[:_ROWS]
    steps, pause_s = int(ctx.params["steps"]), float(ctx.params["pause_s"])
    for step in range(begin + 1, steps + 1):
        loss = binary_cross_entropy_with_logits(model(*inputs), truth)  # with dropout: chance is in it
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ctx.progress(step, steps, loss=loss.item())
        ctx.checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
        time.sleep(pause_s)
    return model.eval()
