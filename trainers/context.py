"""What user code of a training sees, and what it gives back.

A job names user code as "package.module:name". That is one of

    def train(ctx: TrainingContext) -> Model: ...

    class Network(torch.nn.Module):             # trained by `trainers.loop`
        architecture: str; config: dict
        @classmethod
        def from_context(cls, ctx: TrainingContext) -> Network: ...
        def features(self, columns) -> tuple[Tensor, ...]: ...      # (N, …) each, of N rows by column
        def loss(self, features: tuple[Tensor, ...], truth: Tensor) -> Tensor: ...   # truth (B,) of 0 and 1
        def predict(self, columns) -> Array: ...

It gets labelled rows as columns and returns a network of `schemas.tabular`, or anything that keeps `Model`'s
interface. It never sees the rows that it will be judged on. It may print; it may be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import polars as pl
import torch

from trainers.checkpoint import Checkpoints
from trainers.ranks import shared


@runtime_checkable
class Model(Protocol):
    """What a training returns: weights, and how a service rebuilds the network from plain data."""

    architecture: str
    config: dict[str, Any]

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Weights by name."""
        ...

    def predict(self, columns: Mapping[str, Any]) -> Any:
        """Probabilities (N,) for N rows given by column."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """One training's data, parameters and surroundings.

    Attributes:
        rows: labelled rows sorted by event time: the features, the label's column as 0 and 1, `_time`.
        features: names of the feature columns.
        label: name of the label's column.
        params: the experiment's parameters.
        seed: seeds every generator; torch, numpy and random are seeded with it already.
        device: where to train.
        parent: weights of the live model, when the experiment warm-starts from it.
        parent_config: the live model's configuration.
        rank: which of the `ranks` processes of a data parallel training this is. All have the same rows.
    """

    rows: pl.DataFrame
    features: list[str]
    label: str
    params: Mapping[str, Any]
    seed: int
    device: torch.device
    parent: dict[str, torch.Tensor] | None = None
    parent_config: dict[str, Any] | None = None
    rank: int = 0
    ranks: int = 1
    _checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(None, ""), repr=False)
    _report: Callable[[int, int, dict[str, float]], None] = field(default=lambda *_: None, repr=False)

    def progress(self, step: int, of: int, **metrics: float) -> None:
        """Say how far the training is; shown to people and kept as the job's curve."""
        if self.rank == 0:
            self._report(int(step), int(of), {name: float(value) for name, value in metrics.items()})

    def shared(
        self, network: torch.nn.Module, loss: Callable[..., torch.Tensor]
    ) -> Callable[..., torch.Tensor]:
        """`loss`, such that its backward pass averages the network's gradients over all ranks."""
        return shared(network, loss) if self.ranks > 1 else loss

    def part(self, batch_B: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """This rank's part of a batch's rows (B, …), so that all ranks together have seen all of it."""
        return batch_B[self.rank :: self.ranks]

    def checkpoint(self, state: dict[str, Any]) -> bool:
        """Offer the training's state: tensors, numbers, text, in dicts and lists; as often as you like.

        A job that makes room for another ends in this call, and begins again with `resume`; so does one whose
        machine died. The state of all random generators is kept with it. True if the state was kept: mostly
        it is not, since another was a moment ago.

        Raises:
            TypeError: the state holds something that is neither tensor nor plain data.
        """
        return self._checkpoints.keep(state) if self.rank == 0 else False

    def resume(self) -> dict[str, Any] | None:
        """The state to go on from, the generators set as they were then; None: begin at the beginning."""
        return self._checkpoints.read()

    def tensor(self, columns: Sequence[str], dtype: type[pl.DataType] = pl.Float32) -> torch.Tensor:
        """Columns of numbers as one CPU tensor (N, len(columns)), copied once; absent values are NaN."""
        return self.rows.select(pl.col(columns).cast(dtype)).to_torch(dtype=dtype)  # type: ignore[arg-type]

    def labels(self) -> torch.Tensor:
        """The label as float32 (N,), on the CPU."""
        return self.tensor([self.label]).squeeze(1)
