"""From a table's tensors to batches on the device: no loop over rows, no copy more than there must be.

A table that fits stays on the device: it is moved there once, and a batch is one gather. One that does not
is streamed: a thread gathers the next batches into a fixed ring of buffers (pinned, where there is a GPU, so
that copies run beside the computing) and stops when the ring is full. Either way the same seed gives the
same batches in the same order, so the choice changes time and memory, never a weight.

Shapes: N rows, B rows of a batch; the last batch of an epoch has what is left.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence

import torch

RESIDENT_SHARE = 0.5
"""Of the device's free memory: a table that takes more is streamed; the model needs the rest."""

Batch = tuple[torch.Tensor, ...]


class Loader:
    """Shuffled batches of tensors (N, …) that belong together, epoch after epoch.

    Args:
        tensors: on the CPU, all of N rows.
        batch_rows: B.
        seed: of the order, which goes on from epoch to epoch.
        device: where batches are wanted.
        resident_bytes: a larger table is streamed; None: half of what is free on a GPU, any size on a CPU.
        buffers: batches that a streamed table may have ready.

    Raises:
        ValueError: the tensors differ in rows, or a number is not positive.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        *,
        batch_rows: int,
        seed: int,
        device: torch.device,
        resident_bytes: int | None = None,
        buffers: int = 3,
    ) -> None:
        if not tensors or len({len(t) for t in tensors}) != 1:
            raise ValueError(f"tensors of one table have the same rows, not {[len(t) for t in tensors]}")
        if batch_rows < 1 or buffers < 2:
            raise ValueError(f"batch_rows={batch_rows} must be 1 or more, buffers={buffers} 2 or more")
        self.rows = len(tensors[0])
        self.batch_rows = batch_rows
        self.size_bytes = sum(t.element_size() * t.numel() for t in tensors)
        most = _free_bytes(device) * RESIDENT_SHARE if resident_bytes is None else resident_bytes
        self.resident = self.size_bytes <= most
        self._device = device
        self._order = torch.Generator().manual_seed(seed)
        self._tensors = tuple(t.to(device) for t in tensors) if self.resident else tuple(tensors)
        self._ring = [] if self.resident else [_Buffer(tensors, batch_rows, device) for _ in range(buffers)]

    def __len__(self) -> int:
        """Batches of an epoch."""
        return (self.rows + self.batch_rows - 1) // self.batch_rows

    @property
    def buffer_bytes(self) -> int:
        """What the ring takes on the CPU, all it ever will."""
        return sum(buffer.size_bytes for buffer in self._ring)

    def epoch(self, *, skip: int = 0) -> Iterator[Batch]:
        """The next epoch's batches on the device.

        A streamed batch on the CPU lies in the ring: it holds until the next one is asked for.

        Args:
            skip: so many of its first batches are left out, and cost nothing: they were trained on before.
        """
        order = torch.randperm(self.rows, generator=self._order)[skip * self.batch_rows :]
        if self.resident:
            for batch_B in order.to(self._device).split(self.batch_rows) if len(order) else ():  # noqa: N806
                yield tuple(t[batch_B] for t in self._tensors)
        elif len(order):
            yield from self._streamed(order)

    def _streamed(self, order: torch.Tensor) -> Iterator[Batch]:
        free: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        full: queue.SimpleQueue[_Buffer | BaseException | None] = queue.SimpleQueue()
        for buffer in self._ring:
            free.put(buffer)
        thread = threading.Thread(target=self._fill, args=(order, free, full), name="loader", daemon=True)
        thread.start()
        try:
            while (ready := full.get()) is not None:
                if isinstance(ready, BaseException):
                    raise ready
                yield ready.batch()
                free.put(ready)
        finally:
            free.put(None)
            thread.join()

    def _fill(
        self,
        order: torch.Tensor,
        free: queue.SimpleQueue[_Buffer | None],
        full: queue.SimpleQueue[_Buffer | BaseException | None],
    ) -> None:
        try:
            for batch_B in order.split(self.batch_rows):  # noqa: N806
                buffer = free.get()
                if buffer is None:
                    return
                buffer.fill(self._tensors, batch_B)
                full.put(buffer)
            full.put(None)
        except BaseException as error:
            full.put(error)


class _Buffer:
    """Room for one batch on the CPU and, on its way to a GPU, the copy there."""

    def __init__(self, tensors: Sequence[torch.Tensor], batch_rows: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._room = [
            torch.empty((batch_rows, *t.shape[1:]), dtype=t.dtype, pin_memory=pinned) for t in tensors
        ]
        self.size_bytes = sum(t.element_size() * t.numel() for t in self._room)
        self._device = device
        self._stream = torch.cuda.Stream(device) if pinned else None
        self._copied = torch.cuda.Event() if pinned else None
        self._batch: Batch = ()

    def fill(self, tensors: Sequence[torch.Tensor], rows_B: torch.Tensor) -> None:  # noqa: N803
        """Gather rows; begin the copy to the GPU, if there is one."""
        if self._copied is not None:
            self._copied.synchronize()  # the room is read until the copy before is through
        here = tuple(room[: len(rows_B)] for room in self._room)
        for part, tensor in zip(here, tensors, strict=True):
            torch.index_select(tensor, 0, rows_B, out=part)
        if self._stream is None or self._copied is None:
            self._batch = here
            return
        with torch.cuda.stream(self._stream):
            self._batch = tuple(t.to(self._device, non_blocking=True) for t in here)
            self._copied.record()

    def batch(self) -> Batch:
        """The batch, on the device once what computes there gets to it."""
        if self._copied is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(self._copied)
            for tensor in self._batch:
                tensor.record_stream(now)
        return self._batch


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return float("inf")
    with contextlib.suppress(RuntimeError):
        return float(torch.cuda.mem_get_info(device)[0])
    return 0.0
