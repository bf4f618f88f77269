"""Where a job may run now: a pure function of what it asks for, what is free, and what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.job import Resources
from trainers.devices import Gpu

CPU = "cpu"
# What a CUDA context takes beside a job's own tensors.
_CONTEXT_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Admission:
    """`run` on a device, `wait` until something ends, or `never` on this machine; with the reason."""

    verdict: Literal["run", "wait", "never"]
    device: str = CPU
    reason: str = ""


def admit(
    asked: Resources,
    gpus: Sequence[Gpu],
    *,
    promised: Mapping[str, int],
    on_cpu: int,
    cpu_slots: int,
    setting: Literal["auto", "cpu", "cuda"] = "auto",
) -> Admission:
    """Choose a device.

    Args:
        asked: the job's declaration.
        gpus: devices that answer now.
        promised: bytes that running jobs were promised, by device ("cuda:0"); a job that has just started
            holds less than it will.
        on_cpu: jobs that run on the CPU.
        setting: the trainer's own; "cpu" never uses a GPU, "cuda" nothing else.
    """
    wanted = asked.device if setting == "auto" else setting
    if asked.device == "cuda" and setting == "cpu":
        return Admission("never", reason="the job asks for a GPU, and this trainer may only use the CPU")
    if wanted == CPU or (wanted == "auto" and not gpus):
        if on_cpu < cpu_slots:
            return Admission("run")
        return Admission("wait", reason=f"all {cpu_slots} CPU slots are taken")
    need = asked.gpu_memory_bytes + _CONTEXT_BYTES
    if not any(gpu.total_bytes >= need for gpu in gpus):
        largest = max((gpu.total_bytes for gpu in gpus), default=0)
        return Admission(
            "never",
            reason=f"the job asks for {asked.gpu_memory_bytes / 2**30:.1f} GiB of GPU memory; "
            f"the largest device here has {largest / 2**30:.1f} GiB",
        )
    room = [(_room(gpu, promised), gpu) for gpu in gpus]
    fits = [(free, gpu) for free, gpu in room if free >= need]
    if not fits:
        return Admission("wait", reason="no GPU has the memory free now")
    # The fullest device that still fits: whole devices stay free for large jobs.
    _, best = min(fits, key=lambda pair: (pair[0], pair[1].index))
    return Admission("run", device=f"cuda:{best.index}")


def _room(gpu: Gpu, promised: Mapping[str, int]) -> int:
    """Free bytes, less what running jobs were promised and may not have taken yet."""
    return min(gpu.free_bytes, gpu.total_bytes - promised.get(f"cuda:{gpu.index}", 0))
