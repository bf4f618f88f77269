"""What trains: one network, one optimizer, batches of one size; only where the batches come from differs.

Shapes: N rows, B rows of a batch, C categorical and V numeric columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from schemas.tabular import Columns, TabularNetwork
from trainers.context import TrainingContext
from trainers.loader import Batch, Loader
from trainers.loop import fit
from trainers.models.flights import config_of

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The table, encoded once for all sides, and how it is trained on.

    `tensors` are codes (N, C), values (N, V), absent (N, V) and truth (N,).
    """

    context: TrainingContext
    config: dict[str, Any]
    tensors: Batch

    @property
    def rows(self) -> int:
        """N."""
        return len(self.tensors[0])

    @property
    def batch_rows(self) -> int:
        """B."""
        return int(self.context.params["batch_rows"])

    def head(self, batches: int) -> Task:
        """Its first rows alone, so many batches of them."""
        rows = batches * self.batch_rows
        return replace(
            self,
            context=replace(self.context, rows=self.context.rows.head(rows)),
            tensors=tuple(t[:rows] for t in self.tensors),
        )


def task_of(
    rows: pl.DataFrame, *, features: list[str], label: str, seed: int, params: Mapping[str, Any]
) -> Task:
    """The demo's network on a labelled table.

    Args:
        params: of the experiment; `batch_rows` among them.
    """
    context = TrainingContext(
        rows=rows.select("_time", *features, label),
        features=features,
        label=label,
        params=params,
        seed=seed,
        device=CPU,
    )
    config = config_of(context)
    encoded = TabularNetwork(config).encode(context.rows.to_dict(as_series=True))
    return Task(context=context, config=config, tensors=(*encoded, context.labels()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One way to bring rows to the network.

    Attributes:
        train: trains on all rows so many times; gives the last batch's loss.
        batches: all rows once, nothing trained.
        epochs: of a round, where a pass is too short to be timed alone.
        most_batches: of a round, where a pass is too long.
        from_table: words are coded and numbers scaled within the time that is taken; else they were before.
        is_limit: gives up what a training needs; what nothing can beat.
    """

    name: str
    title: str
    train: Callable[[Task, int], float]
    batches: Callable[[Task], Iterable[Any]]
    epochs: int = 1
    most_batches: int | None = None
    from_table: bool = False
    is_limit: bool = False


class Rows(Dataset[Batch]):
    """A row a call, read off the table and made into tensors: a custom `Dataset` as torch's tutorial has it.

    Its transform is the network's own, which services use for a single row as well.
    """

    def __init__(self, task: Task) -> None:
        self.table = task.context.rows
        self.label = task.context.label
        self.transform = TabularNetwork(task.config).encode

    def __len__(self) -> int:
        return self.table.height

    def __getitem__(self, index: int) -> Batch:
        row = self.table.row(index, named=True)
        truth = torch.tensor(row.pop(self.label), dtype=torch.float32)
        return (*(t[0] for t in self.transform({name: [value] for name, value in row.items()})), truth)


class NumberRows(Dataset[Batch]):
    """The same, spared the transform: its table holds words coded and numbers scaled already."""

    def __init__(self, task: Task) -> None:
        codes, values, absent, truth = task.tensors
        known = values.masked_fill(absent.bool(), math.nan)
        self.columns = codes.shape[1]
        self.table = pl.DataFrame(
            [pl.Series(f"code{i}", column.numpy()) for i, column in enumerate(codes.T)]
            + [pl.Series(f"value{i}", column.numpy()) for i, column in enumerate(known.T)]
            + [pl.Series("truth", truth.numpy())]
        )

    def __len__(self) -> int:
        return self.table.height

    def __getitem__(self, index: int) -> Batch:
        row = self.table.row(index)
        values = torch.tensor(row[self.columns : -1])
        absent = values.isnan()
        return torch.tensor(row[: self.columns]), values.nan_to_num(), absent.float(), torch.tensor(row[-1])


class Encoded(Dataset[Batch]):
    """A row a call, off the same tensors that the other sides have: `TensorDataset`, in other words."""

    def __init__(self, task: Task) -> None:
        self.tensors = task.tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Batch:
        return tuple(t[index] for t in self.tensors)


def fitted(
    task: Task, epochs: int, *, encoded: bool, report: Callable[[int, float], object] = lambda *_: None
) -> float:
    """`trainers.loop`, as a job runs it; gives the last loss. `report` is told steps and their losses."""

    class Network(TabularNetwork):
        @classmethod
        def from_context(cls, ctx: TrainingContext) -> Network:
            torch.manual_seed(ctx.seed)
            return cls(task.config)

        def features(self, columns: Columns) -> Batch:
            return task.tensors[:-1] if encoded else self.encode(columns)

        def loss(self, features: Batch, truth: torch.Tensor) -> torch.Tensor:
            return nn.functional.binary_cross_entropy_with_logits(self(*features), truth)

    losses: list[float] = []

    def note(step: int, _of: int, metrics: Mapping[str, float]) -> None:
        losses.append(metrics["loss"])
        report(step, losses[-1])

    params = {**task.context.params, "epochs": epochs}
    fit(Network, replace(task.context, params=params, _report=note))
    return losses[-1]


def _ours(task: Task, epochs: int) -> float:
    return fitted(task, epochs, encoded=True)


def _ours_from_table(task: Task, epochs: int) -> float:
    return fitted(task, epochs, encoded=False)


def _our_batches(task: Task) -> Iterator[Batch]:
    return Loader(
        task.tensors, batch_rows=task.batch_rows, seed=task.context.seed, device=task.context.device
    ).epoch()


def _in_memory(task: Task) -> Iterator[Batch]:
    """Shuffled batches of tensors that are there, coded and all: nothing but a gather each."""
    order = torch.Generator().manual_seed(task.context.seed)
    for batch_B in torch.randperm(task.rows, generator=order).split(task.batch_rows):  # noqa: N806
        yield tuple(t[batch_B] for t in task.tensors)


def _views(task: Task) -> Iterator[Batch]:
    """Not even a gather: views, always in the table's order."""
    return zip(*(t.split(task.batch_rows) for t in task.tensors), strict=True)


def _off(dataset: Callable[[Task], Dataset[Batch]]) -> Callable[[Task], DataLoader[Batch]]:
    def batches(task: Task) -> DataLoader[Batch]:
        order = torch.Generator().manual_seed(task.context.seed)
        return DataLoader(dataset(task), batch_size=task.batch_rows, shuffle=True, generator=order)

    return batches


def _plainly(batches: Callable[[Task], Iterable[Any]]) -> Callable[[Task, int], float]:
    """The loop as everybody writes it, its network, loss and optimizer those of `trainers.loop`."""

    def train(task: Task, epochs: int) -> float:
        torch.manual_seed(task.context.seed)
        model = TabularNetwork(task.config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        model.train()
        loss = torch.tensor(math.nan)
        for _ in range(epochs):
            for *features, truth in batches(task):
                loss = nn.functional.binary_cross_entropy_with_logits(model(*features), truth)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return loss.item()

    return train


OURS, OURS_FROM_TABLE, MEMORY, ROWS = "tidemill", "tidemill-table", "memory", "dataloader"

SIDES = (
    Side(name=OURS, title="Tidemill: tensors", train=_ours, batches=_our_batches, epochs=3),
    Side(
        name=OURS_FROM_TABLE,
        title="Tidemill: the table",
        train=_ours_from_table,
        batches=_our_batches,
        epochs=3,
        from_table=True,
    ),
    Side(
        name=MEMORY,
        title="plain loop: tensors in memory",
        train=_plainly(_in_memory),
        batches=_in_memory,
        epochs=3,
    ),
    Side(
        name="views",
        title="plain loop: unshuffled views (limit)",
        train=_plainly(_views),
        batches=_views,
        epochs=3,
        is_limit=True,
    ),
    Side(
        name=ROWS,
        title="DataLoader: rows of the table",
        train=_plainly(_off(Rows)),
        batches=_off(Rows),
        most_batches=2,
        from_table=True,
    ),
    Side(
        name="dataloader-numbers",
        title="DataLoader: rows of numbers",
        train=_plainly(_off(NumberRows)),
        batches=_off(NumberRows),
        most_batches=8,
    ),
    Side(
        name="dataloader-tensors",
        title="DataLoader: rows of tensors",
        train=_plainly(_off(Encoded)),
        batches=_off(Encoded),
        most_batches=8,
    ),
)
