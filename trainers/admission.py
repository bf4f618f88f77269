"""Where a job may run now: a pure function of what it asks for, what is free, and what runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.job import Resources
from trainers.devices import Gpu

CONTEXT_BYTES = 512 * 2**20
"""What a CUDA context takes beside a job's own tensors: the margin of every job on a device."""

_BUSY_PERCENT = 50
_IDLE_SHARE = 0.9
"""A device is free as a whole when so much of its memory is: the driver itself holds some."""


@dataclass(frozen=True, slots=True)
class Admission:
    """`run` (on GPUs, or on the CPU where there are none), `wait` until something ends, or `never` here."""

    verdict: Literal["run", "wait", "never"]
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""

    @property
    def gpu(self) -> Gpu | None:
        """The device, or the first of them."""
        return self.gpus[0] if self.gpus else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A job at work: where (no GPU: on the CPU), what it was promised there, its process if known.

    `exclusive`: the devices are its own, whole. `until_ms`: when its time limit ends it at the latest.
    `leaving`: it has been told to make room. `order` is its place in the queue, as `schedule.place` says.
    """

    job_id: str = ""
    model: str = ""
    is_trial: bool = False
    priority: int = 0
    order: float = 0.0
    until_ms: int = 0
    leaving: bool = False
    gpu_uuids: tuple[str, ...] = ()
    gpu_memory_bytes: int = 0
    exclusive: bool = False
    cpus: int = 1
    memory_bytes: int = 0
    used_bytes: int = 0
    pid: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The machine itself.

    Attributes:
        cpu_slots: jobs that may be on the CPU at once; None: as many as its cores carry.
        available_bytes: memory that nobody uses now; None: not asked.
        torch_knows_cuda: torch was built with it.
        known_gpus: every device that answered since the trainer's start; one may be silent now.
    """

    cpus: int
    memory_bytes: int
    cpu_slots: int | None = None
    available_bytes: int | None = None
    torch_knows_cuda: bool = True
    known_gpus: tuple[Gpu, ...] = ()


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
    if never := _impossible(asked, host):
        return Admission("never", reason=never)
    on_gpu = (asked.device != "cpu" or asked.gpus > 0) and setting != "cpu"
    on_cpu = asked.device != "cuda" and asked.gpus == 0 and setting != "cuda"
    if not on_gpu and not on_cpu:
        return Admission(
            "never",
            reason=f"the job asks for {'cuda' if asked.gpus else asked.device} and this trainer's setting is "
            f"{setting}; change trainer.device, or the pipeline's resources",
        )
    if waits := host_is_full(asked, running, host):
        return Admission("wait", reason=waits)
    gpu_says = _on_gpu(asked, gpus, running, host) if on_gpu else None
    if gpu_says is not None and (gpu_says.verdict == "run" or not on_cpu):
        return gpu_says
    taken = sum(not job.gpu_uuids for job in running)
    if host.cpu_slots is None or taken < host.cpu_slots:
        return Admission("run")
    return Admission("wait", reason=f"all {host.cpu_slots} CPU slots are taken")


def _impossible(asked: Resources, host: Host) -> str:  # noqa: PLR0911  (a reason each)
    if asked.device == "cpu" and asked.gpus:
        return f'the job asks for {asked.gpus} GPUs and for device "cpu"'
    if asked.gpus and asked.ranks not in {1, asked.gpus}:
        return f"the job asks for {asked.ranks} ranks on {asked.gpus} GPUs; a rank has a GPU of its own"
    if asked.ranks > 1 and not asked.gpus and asked.device == "cuda":
        return f"the job asks for {asked.ranks} ranks on a share of a GPU; set gpus={asked.ranks}"
    if asked.ranks > asked.cpus:
        return f"the job asks for {asked.ranks} ranks and {asked.cpus} CPUs; a rank has a core of its own"
    if asked.cpus > host.cpus:
        return f"the job asks for {asked.cpus} CPUs; this machine has {host.cpus}"
    if asked.memory_bytes > host.memory_bytes:
        return (
            f"the job asks for {_gib(asked.memory_bytes)} of memory; "
            f"this machine has {_gib(host.memory_bytes)}"
        )
    return ""


def host_is_full(asked: Resources, running: Sequence[Running], host: Host) -> str:
    """Why cores or memory do not suffice now; empty where they do.

    What all jobs together were promised stays within cores and memory, wherever they train.

    Memory that others use counts only beside jobs of our own: it may never come back, and one job with
    nobody beside it is better tried than kept waiting for ever.
    """
    if sum(job.cpus for job in running) + asked.cpus > host.cpus:
        return f"all {host.cpus} CPUs are promised"
    if sum(job.memory_bytes for job in running) + asked.memory_bytes > host.memory_bytes:
        return f"{_gib(host.memory_bytes)} of memory are promised"
    if running and host.available_bytes is not None:
        untaken = sum(max(0, job.memory_bytes - job.used_bytes) for job in running)
        if host.available_bytes - untaken < asked.memory_bytes:
            return f"{_gib(max(0, host.available_bytes - untaken))} of memory are free"
    return ""


def _on_gpu(asked: Resources, gpus: Sequence[Gpu], running: Sequence[Running], host: Host) -> Admission:
    known = {gpu.uuid: gpu for gpu in (*host.known_gpus, *gpus)}
    if known and not host.torch_knows_cuda:
        return Admission("never", reason="the job asks for a GPU; this torch was built without CUDA")
    need, count = asked.gpu_memory_bytes + CONTEXT_BYTES, max(1, asked.gpus)
    large = [gpu for gpu in known.values() if gpu.total_bytes >= need]
    if len(large) < count:
        return Admission("never", reason=_no_such_gpu(asked, list(known.values())))
    if asked.gpus:
        fits = [gpu for gpu in gpus if gpu.total_bytes >= need and _is_idle(gpu, running)]
        chosen = tuple(sorted(fits, key=lambda gpu: (gpu.total_bytes, gpu.index))[:count])
    else:
        rooms = [
            (gpu.busy_percent >= _BUSY_PERCENT, room, gpu.index, gpu.uuid, gpu)
            for gpu in gpus
            if (room := _room(gpu, running)) >= need
        ]
        chosen = (min(rooms, key=lambda each: each[:4])[-1],) if rooms else ()
    if len(chosen) == count:
        return Admission("run", gpus=chosen)
    answering = {gpu.uuid for gpu in gpus}
    if silent := [gpu.label for gpu in large if gpu.uuid not in answering]:
        return Admission("wait", reason=f"{silent[0]} does not answer now, and no other GPU has room")
    if asked.gpus:
        return Admission("wait", reason=f"{len(chosen)} of {count} GPUs are free as a whole now")
    return Admission("wait", reason="no GPU has the memory free now")


def _no_such_gpu(asked: Resources, known: Sequence[Gpu]) -> str:
    if not known:
        return "the job asks for a GPU; no GPU answers here"
    largest = max(gpu.total_bytes for gpu in known)
    need = f"{_gib(asked.gpu_memory_bytes)} of GPU memory"
    if asked.gpus > 1:
        return (
            f"the job asks for {asked.gpus} GPUs with {need} each; "
            f"here are {len(known)}, the largest with {_gib(largest)}"
        )
    return f"the job asks for {need}; the largest GPU here has {_gib(largest)}"


def _is_idle(gpu: Gpu, running: Sequence[Running]) -> bool:
    """Nobody is on it, neither ours nor others."""
    ours = any(gpu.uuid in job.gpu_uuids for job in running)
    return not ours and not gpu.used_by and gpu.free_bytes >= _IDLE_SHARE * gpu.total_bytes


def _room(gpu: Gpu, running: Sequence[Running]) -> int:
    """Free bytes, less what our own jobs there were promised and have not taken yet."""
    mine = [job for job in running if gpu.uuid in job.gpu_uuids]
    if any(job.exclusive for job in mine):
        return 0
    untaken = sum(max(0, job.gpu_memory_bytes + CONTEXT_BYTES - gpu.used_by.get(job.pid, 0)) for job in mine)
    return gpu.free_bytes - untaken


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
