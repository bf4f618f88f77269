"""The training loop of model code that only says what its features and its loss are.

Shapes: N rows, B rows of a batch.
"""

from __future__ import annotations

import torch

from trainers.context import TrainingContext


def fit(network: type[torch.nn.Module], ctx: TrainingContext) -> torch.nn.Module:
    """Train a network by AdamW on shuffled batches.

    Parameters of the experiment: `epochs` (2), `batch_rows` (1024), `learning_rate` (1e-3), `weight_decay`
    (0.01). Begins with the parent's weights, where there is one and they fit.

    Args:
        network: a class with `from_context`, `features` and `loss` as `trainers.context` describes them.
    """
    model = network.from_context(ctx)  # type: ignore[attr-defined]
    if ctx.parent is not None and _fits(model, ctx.parent):
        model.load_state_dict(ctx.parent)
    model.to(ctx.device)
    features_N = tuple(t.to(ctx.device) for t in model.features(ctx.rows.to_dict(as_series=True)))  # noqa: N806
    truth_N = ctx.labels().to(ctx.device)  # noqa: N806
    batch_rows = int(ctx.params.get("batch_rows", 1024))
    epochs = int(ctx.params.get("epochs", 2))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=float(ctx.params.get("learning_rate", 1e-3)),
        weight_decay=float(ctx.params.get("weight_decay", 0.01)),
    )
    shuffle = torch.Generator().manual_seed(ctx.seed)
    per_epoch = -(-len(truth_N) // batch_rows)
    steps, step, begin = epochs * per_epoch, 0, 0
    if kept := ctx.resume():
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["step"]
    loss_of = ctx.shared(model, model.loss)
    model.train()
    for _ in range(epochs):
        for batch_B in torch.randperm(len(truth_N), generator=shuffle).to(ctx.device).split(batch_rows):  # noqa: N806
            step += 1
            mine_B = ctx.part(batch_B)  # noqa: N806
            if step <= begin or len(batch_B) < ctx.ranks:
                continue
            loss = loss_of(tuple(t[mine_B] for t in features_N), truth_N[mine_B])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % 20 == 0 or step == steps:
                ctx.progress(step, steps, loss=loss.item())
                ctx.checkpoint(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                )
    return model.eval()


def _fits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == weights.keys() and all(own[n].shape == weights[n].shape for n in own)
