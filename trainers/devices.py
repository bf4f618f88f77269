"""What NVML says of the GPUs, now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pynvml


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device that answers, or one MIG slice of it: to a job a slice is a device of its own.

    `used_by` holds bytes by process id, as far as the driver tells. `slice_index` is None for a whole device.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    busy_percent: int = 0
    used_by: Mapping[int, int] = field(default_factory=dict)
    slice_index: int | None = None

    @property
    def label(self) -> str:
        """For people and for `JobStarted`."""
        place = "" if self.slice_index is None else f"/{self.slice_index}"
        return f"cuda:{self.index}{place} {self.name}"


@dataclass(frozen=True, slots=True)
class Survey:
    """All devices that answer, and what is wrong with those that do not."""

    gpus: tuple[Gpu, ...] = ()
    faults: tuple[str, ...] = ()


def survey(nvml: Any = pynvml, *, visible: str | None = None) -> Survey:
    """Ask every device. Nothing where there is no driver; a device that fails is a fault, never an error.

    Args:
        nvml: the NVML binding; a stand-in with the same functions serves in tests.
        visible: the trainer's own `CUDA_VISIBLE_DEVICES`: indices or UUIDs it may use; None: all.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return Survey()  # no driver, no library: a machine without GPUs
    gpus: list[Gpu] = []
    faults: list[str] = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                gpus.extend(_ask(nvml, index))
            except nvml.NVMLError as error:
                faults.append(f"GPU {index}: {error}")
    except nvml.NVMLError as error:
        faults.append(f"NVML cannot count the devices: {error}")
    finally:
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            faults.append(f"NVML does not close: {error}")
    return Survey(tuple(gpu for gpu in gpus if _is_visible(gpu, visible)), tuple(faults))


def _ask(nvml: Any, index: int) -> list[Gpu]:
    """The device, or the slices that it is cut into: as a whole it runs nothing then."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        is_cut, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        is_cut = False  # most devices cannot be cut
    if not is_cut:
        return [_describe(nvml, handle, index, None)]
    slices: list[Gpu] = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:
            continue  # fewer slices are set than could be
        slices.append(_describe(nvml, part, index, number))
    return slices


def _describe(nvml: Any, handle: Any, index: int, slice_index: int | None) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        busy_percent = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:
        busy_percent = 0  # not every device tells; memory decides
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        processes = []
    return Gpu(
        index=index,
        slice_index=slice_index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        busy_percent=busy_percent,
        used_by={p.pid: int(p.usedGpuMemory or 0) for p in processes},
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _is_visible(gpu: Gpu, visible: str | None) -> bool:
    if visible is None:
        return True
    for each in (part.strip() for part in visible.split(",")):
        if each == str(gpu.index) or (each.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(each)):
            return True
    return False
