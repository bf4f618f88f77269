"""The training loop of model code that only says what its features and its loss are.

Shapes: N rows, B rows of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from schemas.errors import Rejected
from trainers.context import TrainingContext
from trainers.loader import Loader

REPORT_STEPS = 20
"""Progress is told, and a state offered to be kept, after so many steps each."""
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BadOption(Rejected):
    """A parameter of the loop has no such value."""


def fit(network: type[torch.nn.Module], ctx: TrainingContext) -> torch.nn.Module:
    """Train a network by AdamW on shuffled batches.

    Parameters of the experiment: `epochs` (2), `batch_rows` (1024), `learning_rate` (1e-3), `weight_decay`
    (0.01), `resident_bytes` (of a table: a larger one is streamed; else `trainers.loader` decides). Begins
    with the parent's weights, where there is one and they fit.

    Three more are to be measured by `tidemill bench train`, never assumed: `precision` ("float32"; "bfloat16"
    of the forward pass, the weights stay float32), `compile` (false; the loss by `torch.compile`,
    whose dropout draws other numbers), and `cuda_graphs` (false; compiled, and replayed as CUDA graphs). Like
    all parameters they are in the run key.

    Args:
        network: a class with `from_context`, `features` and `loss` as `trainers.context` describes them.

    Raises:
        BadOption: there is no such precision, or an option does not apply on this device.
    """
    options = _Options.of(ctx)
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
    loss_of = options.compiled(ctx.shared(model, model.loss))
    model.train()
    for _ in range(epochs):
        skip = min(max(begin - step, 0), len(loader))
        step += skip
        for *features_B, truth_B in loader.epoch(skip=skip):  # noqa: N806
            step += 1
            if len(truth_B) < ctx.ranks:
                continue
            with options.autocast():
                if ctx.ranks == 1:
                    loss = loss_of(tuple(features_B), truth_B)
                else:
                    loss = loss_of(tuple(ctx.part(t) for t in features_B), ctx.part(truth_B))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % REPORT_STEPS == 0 or step == steps:
                ctx.progress(step, steps, loss=loss.item())
                ctx.checkpoint(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                )
    return model.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """How the forward and backward pass are computed."""

    device: str
    precision: torch.dtype
    compile: bool
    cuda_graphs: bool

    @classmethod
    def of(cls, ctx: TrainingContext) -> _Options:
        precision = ctx.params.get("precision", "float32")
        if precision not in _PRECISIONS:
            raise BadOption(f"precision={precision!r}: it is one of {', '.join(_PRECISIONS)}")
        switched: dict[str, bool] = {}
        for name in ("compile", "cuda_graphs"):
            value = ctx.params.get(name, False)
            if not isinstance(value, bool):
                raise BadOption(f"{name}={value!r}: it is true or false")
            switched[name] = value
        if switched["cuda_graphs"] and ctx.device.type != "cuda":
            raise BadOption(
                f"cuda_graphs=true has no meaning on the {ctx.device.type}; ask for a GPU by "
                "resources.device='cuda', or leave it out"
            )
        if switched["compile"] and ctx.device.type == "cpu":
            _find_compiler()
        return cls(device=ctx.device.type, precision=_PRECISIONS[precision], **switched)

    def autocast(self) -> AbstractContextManager[object]:
        """Around the forward pass. Nothing at all in full precision: this is done each step."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.precision)

    def compiled(self, loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The loss as it is called each step; compiled at its first call."""
        if not self.compile and not self.cuda_graphs:
            return loss
        from torch._inductor import config as compiler

        # In this process: its pool of compiling ones would outlive nothing, and cost memory that is counted.
        compiler.compile_threads = 1
        if self.cuda_graphs:
            return torch.compile(loss, mode="reduce-overhead")
        return torch.compile(loss)


def _find_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise BadOption(
            f"compile=true needs a C++ compiler on the CPU, and there is none: {error}; "
            "install g++, or leave it out"
        ) from error


def _fits(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == weights.keys() and all(own[n].shape == weights[n].shape for n in own)
