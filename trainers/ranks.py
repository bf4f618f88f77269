"""One training in several processes: data parallel, restarted together from the last checkpoint.

torchrun's own agent (`torch.distributed.launcher`) forks the ranks from the job's process, which is warm, and
starts all of them again when one dies. Every rank has all rows and the same order of batches, and takes its
part of each batch; gradients are averaged (gloo on CPUs, NCCL on GPUs). Rank 0 speaks for the job.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

RESTARTS = 3
_LOOK_S = 0.1


def in_ranks(ranks: int, work: Callable[[int], None], *, name: str) -> None:
    """Run `work(rank)` in so many processes, all begun again when one of them dies.

    Raises:
        Exception: one died more often than it is begun again.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Sharing the rendezvous' store with the ranks leaves restarted ones waiting for ever.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=RESTARTS,
        monitor_interval=_LOOK_S,
        start_method="fork",
    )
    elastic_launch(config, _one_rank)(work)


def _one_rank(work: Callable[[int], None]) -> None:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        # The agent's handlers came along with the fork: told to end, a rank ends and says nothing.
        signal.signal(each, signal.SIG_DFL)
    rank = int(os.environ["RANK"])
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() > 1
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    work(rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def lost_a_rank(error: BaseException) -> bool:
    """Whether a rank failed only because another one is gone."""
    said = str(error).lower()
    is_network = isinstance(error, torch.distributed.DistError) or "gloo" in said or "nccl" in said
    return isinstance(error, RuntimeError) and is_network


class WithLoss(torch.nn.Module):
    """A network whose forward pass is its loss: what gradients are averaged over between ranks."""

    def __init__(self, network: torch.nn.Module, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self._loss = loss

    def forward(self, *arguments: Any) -> torch.Tensor:
        """The loss of one batch, a scalar."""
        return self._loss(*arguments)


def shared(network: torch.nn.Module, loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`loss`, its backward pass averaging the network's gradients over all ranks, if there are more."""
    if not torch.distributed.is_initialized():
        return loss
    return torch.nn.parallel.DistributedDataParallel(WithLoss(network, loss))
