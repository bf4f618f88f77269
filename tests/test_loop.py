"""The training loop over the loader: the weights that rows, parameters and seed decide, however it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from trainers.checkpoint import Checkpoints, MadeRoom
from trainers.context import TrainingContext
from trainers.loop import BadOption, fit

ROWS = 1_000
BATCH_ROWS = 64


class Small(nn.Module):
    """Two numbers to a logit, with a dropout: its generator is part of what must be the same."""

    architecture = "small"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Dropout(0.1), nn.Linear(8, 1))

    @classmethod
    def from_context(cls, ctx: TrainingContext) -> Small:
        torch.manual_seed(ctx.seed)
        return cls()

    def features(self, columns: Any) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(np.stack([columns["a"], columns["b"]], axis=1).astype(np.float32)),)

    def loss(self, features: tuple[torch.Tensor, ...], truth: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.layers(features[0]).squeeze(1), truth)


def table() -> pl.DataFrame:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, ROWS))
    return pl.DataFrame({"a": a, "b": b, "late": (a * b + rng.normal(size=ROWS) > 0).astype(float)})


def context(*, checkpoints: Checkpoints | None = None, **params: Any) -> TrainingContext:
    return TrainingContext(
        rows=table(),
        features=["a", "b"],
        label="late",
        params={"epochs": 4, "batch_rows": BATCH_ROWS, "learning_rate": 1e-2, **params},
        seed=11,
        device=torch.device("cpu"),
        _checkpoints=checkpoints or Checkpoints(None, ""),
    )


def weights(ctx: TrainingContext) -> dict[str, torch.Tensor]:
    return fit(Small, ctx).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    return weights(context())


def test_the_weights_are_those_of_a_loop_written_out(undisturbed: dict[str, torch.Tensor]) -> None:
    ctx = context()
    model = Small.from_context(ctx)
    (numbers,), truth = model.features(ctx.rows.to_dict(as_series=True)), ctx.labels()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    order = torch.Generator().manual_seed(ctx.seed)
    for _ in range(4):
        for rows in torch.randperm(ROWS, generator=order).split(BATCH_ROWS):
            optimizer.zero_grad()
            model.loss((numbers[rows],), truth[rows]).backward()
            optimizer.step()
    assert same(model.state_dict(), undisturbed)


@pytest.mark.parametrize("resident_bytes", [None, 0])
def test_a_training_that_made_room_goes_on_to_the_same_weights(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path, resident_bytes: int | None
) -> None:
    params = {"resident_bytes": resident_bytes}
    asked = Checkpoints(tmp_path / "checkpoint", "a training")
    asked.ask()
    with pytest.raises(MadeRoom):
        weights(context(checkpoints=asked, **params))
    # Of 16 steps an epoch, 20 were done: it begins within the second one.
    torch.manual_seed(99)
    begun: list[int] = []
    kept = Checkpoints(tmp_path / "checkpoint", "a training")
    ctx = context(checkpoints=kept, **params)
    object.__setattr__(ctx, "_report", lambda step, *_: begun.append(step))
    assert same(weights(ctx), undisturbed)
    assert begun == [40, 60, 64]


def test_a_streamed_table_gives_the_same_weights(undisturbed: dict[str, torch.Tensor]) -> None:
    assert same(weights(context(resident_bytes=0)), undisturbed)


def test_lower_precision_trains_to_much_the_same_in_weights_of_full_precision(
    undisturbed: dict[str, torch.Tensor],
) -> None:
    lower = weights(context(precision="bfloat16"))
    assert same(lower, weights(context(precision="bfloat16")))
    assert not same(lower, undisturbed)
    for name, tensor in lower.items():
        assert tensor.dtype == torch.float32
        assert (tensor - undisturbed[name]).abs().max() < 0.05


def test_a_precision_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadOption, match="precision='half': it is one of float32, bfloat16"):
        weights(context(precision="half"))


def test_a_compiled_loss_trains_to_the_same(
    undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler's own code generation takes half a minute, and is measured by `tidemill bench train`.
    compiled: list[Any] = []
    by_torch = torch.compile

    def traced(loss: Any, **options: Any) -> Any:
        compiled.append(options)
        return by_torch(loss, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    assert same(weights(context(compile=True)), undisturbed)
    assert compiled == [{}]


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"cuda_graphs": True}, "cuda_graphs=true has no meaning on the cpu; ask for a GPU"),
        ({"compile": "yes"}, "compile='yes': it is true or false"),
    ],
)
def test_an_option_that_does_not_apply_is_refused_and_never_passed_over(
    params: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadOption, match=complaint):
        weights(context(**params))


def test_compiling_without_a_compiler_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(BadOption, match=r"needs a C\+\+ compiler.*install g\+\+"):
        weights(context(compile=True))
