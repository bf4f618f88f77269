"""What NVML says of the GPUs, now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device that answers."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    busy_percent: int


def gpus(nvml: Any = pynvml) -> list[Gpu]:
    """Devices that answer; none where there is no driver. A device that fails is left out.

    Args:
        nvml: the NVML binding; a stand-in with the same functions serves in tests.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [gpu for i in range(nvml.nvmlDeviceGetCount()) if (gpu := _ask(nvml, i)) is not None]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _ask(nvml: Any, index: int) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        try:
            busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        except nvml.NVMLError:
            busy = 0  # not every device tells (MIG does not); memory decides
    except nvml.NVMLError:
        return None
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        total_bytes=memory.total,
        free_bytes=memory.free,
        busy_percent=busy,
    )
