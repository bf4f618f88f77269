"""Where a job may run now: a pure function of what it asks for, what is free, and what runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.job import Resources
from trainers.devices import Gpu

CONTEXT_BYTES = 512 * 2**20
"""What a CUDA context takes beside a job's own tensors: the margin on every device."""

_BUSY_PERCENT = 50


@dataclass(frozen=True, slots=True)
class Admission:
    """`run` (on a GPU, or on the CPU where `gpu` is None), `wait` until something ends, or `never` here."""

    verdict: Literal["run", "wait", "never"]
    gpu: Gpu | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A job at work: on which GPU (None: the CPU), what it was promised there, its process if known."""

    gpu_uuid: str | None = None
    gpu_memory_bytes: int = 0
    pid: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The machine itself. `torch_knows_cuda`: torch was built with it."""

    cpus: int
    memory_bytes: int
    cpu_slots: int = 1
    torch_knows_cuda: bool = True


def admit(
    asked: Resources,
    gpus: Sequence[Gpu],
    running: Sequence[Running],
    host: Host,
    *,
    setting: Literal["auto", "cpu", "cuda"] = "auto",
) -> Admission:
    """Choose a device.

    A GPU with room comes first, an idle one before a busy one, then the fullest that still fits, so that
    whole devices stay free for large jobs. A job that may use either takes the CPU when no GPU has room.

    Args:
        gpus: devices that answer now.
        setting: the trainer's own; "cpu" never uses a GPU, "cuda" nothing else.
    """
    if never := _too_much(asked, host):
        return Admission("never", reason=never)
    on_gpu = asked.device != "cpu" and setting != "cpu"
    on_cpu = asked.device != "cuda" and setting != "cuda"
    if not on_gpu and not on_cpu:
        return Admission(
            "never",
            reason=f"the job asks for {asked.device} and this trainer's setting is {setting}; "
            "change trainer.device, or the pipeline's resources",
        )
    gpu_says = _on_gpu(asked, gpus, running, host) if on_gpu else None
    if gpu_says is not None and (gpu_says.verdict == "run" or not on_cpu):
        return gpu_says
    taken = sum(job.gpu_uuid is None for job in running)
    if taken < host.cpu_slots:
        return Admission("run")
    return Admission("wait", reason=f"all {host.cpu_slots} CPU slots are taken")


def _too_much(asked: Resources, host: Host) -> str:
    if asked.cpus > host.cpus:
        return f"the job asks for {asked.cpus} CPUs; this machine has {host.cpus}"
    if asked.memory_bytes > host.memory_bytes:
        return (
            f"the job asks for {asked.memory_bytes / 2**30:.1f} GiB of memory; "
            f"this machine has {host.memory_bytes / 2**30:.1f} GiB"
        )
    return ""


def _on_gpu(asked: Resources, gpus: Sequence[Gpu], running: Sequence[Running], host: Host) -> Admission:
    if gpus and not host.torch_knows_cuda:
        return Admission("never", reason="the job asks for a GPU; this torch was built without CUDA")
    need = asked.gpu_memory_bytes + CONTEXT_BYTES
    if not any(gpu.total_bytes >= need for gpu in gpus):
        largest = max((gpu.total_bytes for gpu in gpus), default=0)
        return Admission(
            "never",
            reason=f"the job asks for {asked.gpu_memory_bytes / 2**30:.1f} GiB of GPU memory; "
            + (f"the largest GPU here has {largest / 2**30:.1f} GiB" if gpus else "no GPU answers here"),
        )
    fits = [
        (gpu.busy_percent >= _BUSY_PERCENT, room, gpu)
        for gpu in gpus
        if (room := _room(gpu, running)) >= need
    ]
    if not fits:
        return Admission("wait", reason="no GPU has the memory free now")
    *_, best = min(fits, key=lambda each: (each[0], each[1], each[2].index))
    return Admission("run", gpu=best)


def _room(gpu: Gpu, running: Sequence[Running]) -> int:
    """Free bytes, less what our own jobs there were promised and have not taken yet."""
    mine = [job for job in running if job.gpu_uuid == gpu.uuid]
    untaken = sum(max(0, job.gpu_memory_bytes + CONTEXT_BYTES - gpu.used_by.get(job.pid, 0)) for job in mine)
    return gpu.free_bytes - untaken
