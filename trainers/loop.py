"""The training loop of model code that only says what its features and its loss are.

Shapes: N rows, B rows of a batch.
"""

from __future__ import annotations

import torch

from schemas.errors import Rejected
from trainers.context import TrainingContext
from trainers.loader import Loader

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BadOption(Rejected):
    """A parameter of the loop has no such value."""


def fit(network: type[torch.nn.Module], ctx: TrainingContext) -> torch.nn.Module:
    """Train a network by AdamW on shuffled batches.

    Parameters of the experiment: `epochs` (2), `batch_rows` (1024), `learning_rate` (1e-3), `weight_decay`
    (0.01), `precision` ("float32"; "bfloat16" of the forward pass, the weights stay float32: worth a
    measurement by `tidemill bench train`), `resident_bytes` (of a table: a larger one is streamed; else
    `trainers.loader` decides). Begins with the parent's weights, where there is one and they fit.

    Args:
        network: a class with `from_context`, `features` and `loss` as `trainers.context` describes them.

    Raises:
        BadOption: there is no such precision.
    """
    precision = _precision(ctx)
    model = network.from_context(ctx)  # type: ignore[attr-defined]
    if ctx.parent is not None and _fits(model, ctx.parent):
        model.load_state_dict(ctx.parent)
    model.to(ctx.device)
    loader = Loader(
        (*model.features(ctx.rows.to_dict(as_series=True)), ctx.labels()),
        batch_rows=int(ctx.params.get("batch_rows", 1024)),
        seed=ctx.seed,
        device=ctx.device,
        resident_bytes=ctx.params.get("resident_bytes"),
    )
    epochs = int(ctx.params.get("epochs", 2))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=float(ctx.params.get("learning_rate", 1e-3)),
        weight_decay=float(ctx.params.get("weight_decay", 0.01)),
    )
    steps, step, begin = epochs * len(loader), 0, 0
    if kept := ctx.resume():
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["step"]
    loss_of = ctx.shared(model, model.loss)
    model.train()
    for _ in range(epochs):
        skip = min(max(begin - step, 0), len(loader))
        step += skip
        for *features_B, truth_B in loader.epoch(skip=skip):  # noqa: N806
            step += 1
            if len(truth_B) < ctx.ranks:
                continue
            with torch.autocast(ctx.device.type, precision, enabled=precision != torch.float32):
                loss = loss_of(tuple(ctx.part(t) for t in features_B), ctx.part(truth_B))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % 20 == 0 or step == steps:
                ctx.progress(step, steps, loss=loss.item())
                ctx.checkpoint(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                )
    return model.eval()


def _precision(ctx: TrainingContext) -> torch.dtype:
    asked = ctx.params.get("precision", "float32")
    if asked not in _PRECISIONS:
        raise BadOption(f"precision={asked!r}: it is one of {', '.join(_PRECISIONS)}")
    return _PRECISIONS[asked]


def _fits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == weights.keys() and all(own[n].shape == weights[n].shape for n in own)
