"""A job goes where there is room, waits where there may be, and is told when there never will be."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import Resources
from tests.trainer_fixtures import GIB, Nvml, NvmlDevice
from trainers.admission import CONTEXT_BYTES, Host, Running, admit
from trainers.devices import Gpu, survey

HOST = Host(cpus=8, memory_bytes=64 * GIB, cpu_slots=1)
H200 = 139 * GIB


def gpu(index: int, *, free: int = H200, total: int = H200, busy: int = 0, used_by: Any = None) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H200",
        total_bytes=total,
        free_bytes=free,
        busy_percent=busy,
        used_by=used_by or {},
    )


def asks(device: Any = "auto", gib: float = 2) -> Resources:
    return Resources(device=device, gpu_memory_bytes=int(gib * GIB), memory_bytes=GIB)


def test_the_stand_in_has_the_functions_of_the_real_binding() -> None:
    for name, function in inspect.getmembers(Nvml, inspect.isfunction):
        if name.startswith("nvml"):
            real = inspect.signature(getattr(pynvml, name))
            ours = list(inspect.signature(function).parameters)[1:]
            assert len(ours) <= len(real.parameters), name
    assert Nvml.NVMLError is pynvml.NVMLError


def test_a_machine_without_a_driver_has_no_gpus() -> None:
    assert survey(Nvml(driver=False)) == survey(Nvml([]))
    assert survey(Nvml(driver=False)).gpus == ()


def test_this_machine_can_be_asked() -> None:
    found = survey()
    assert all(gpu.total_bytes >= gpu.free_bytes > 0 for gpu in found.gpus)


def test_devices_that_fail_or_vanish_are_named_and_the_others_stay() -> None:
    devices = [NvmlDevice(free_bytes=H200 - i * GIB) for i in range(8)]
    devices[2] = replace(devices[2], error=pynvml.NVML_ERROR_GPU_IS_LOST)
    devices[7] = replace(devices[7], gone=True)
    devices[5] = replace(devices[5], tells_utilization=False, processes={4711: 3 * GIB})
    nvml = Nvml(devices)
    found = survey(nvml)
    assert [g.index for g in found.gpus] == [0, 1, 3, 4, 5, 6]
    assert [g.free_bytes for g in found.gpus] == [H200 - i * GIB for i in (0, 1, 3, 4, 5, 6)]
    assert found.gpus[4].used_by == {4711: 3 * GIB}
    assert found.gpus[4].label == "cuda:5 NVIDIA H200"
    assert [fault.split(":")[0] for fault in found.faults] == ["GPU 2", "GPU 7"]
    assert nvml.open_sessions == 0


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1, 2]), ("1", [1]), ("2, 0", [0, 2]), ("GPU-0000-01", [1]), ("", []), ("7", [])],
)
def test_only_devices_that_the_trainer_may_see_are_offered(visible: str | None, indices: list[int]) -> None:
    found = survey(Nvml([NvmlDevice() for _ in range(3)]), visible=visible)
    assert [g.index for g in found.gpus] == indices


def test_a_device_that_is_cut_into_slices_is_offered_slice_by_slice() -> None:
    nvml = Nvml([NvmlDevice(), NvmlDevice(slices=(20 * GIB, 10 * GIB))])
    found = survey(nvml)
    assert [(g.uuid, g.total_bytes // GIB) for g in found.gpus] == [
        ("GPU-0000-00", 139),
        ("MIG-0000-01-0", 20),
        ("MIG-0000-01-1", 10),
    ]
    assert found.gpus[2].label == "cuda:1/1 NVIDIA H200 MIG"
    # The fullest that fits: a small job leaves the whole device alone.
    assert admit(asks("cuda", gib=8), found.gpus, [], HOST).gpu == found.gpus[2]
    assert admit(asks("cuda", gib=15), found.gpus, [], HOST).gpu == found.gpus[1]
    assert [g.uuid for g in survey(nvml, visible="MIG-0000-01-1").gpus] == ["MIG-0000-01-1"]


def test_eight_gpus_fill_up_and_then_jobs_wait_and_none_is_promised_too_much() -> None:
    gpus = [gpu(i) for i in range(8)]
    running: list[Running] = []
    while (said := admit(asks("cuda", gib=30), gpus, running, HOST)).verdict == "run":
        assert said.gpu is not None
        running.append(Running(gpu_uuids=(said.gpu.uuid,), gpu_memory_bytes=30 * GIB, cpus=0))
    assert said.verdict == "wait"
    for each in gpus:
        promised = [job.gpu_memory_bytes + CONTEXT_BYTES for job in running if each.uuid in job.gpu_uuids]
        assert sum(promised) <= each.total_bytes
        assert len(promised) == 4
    running.pop()
    assert admit(asks("cuda", gib=30), gpus, running, HOST).verdict == "run"


def test_what_others_use_and_what_our_jobs_will_use_both_count() -> None:
    # 60 GiB free, but a job of ours that has taken 5 of its 40 GiB will want the rest.
    device = gpu(0, free=60 * GIB, used_by={10: 5 * GIB})
    ours = [Running(gpu_uuids=("GPU-0",), gpu_memory_bytes=40 * GIB, pid=10)]
    assert admit(asks("cuda", gib=20), [device], ours, HOST).verdict == "run"
    assert admit(asks("cuda", gib=30), [device], ours, HOST).verdict == "wait"
    assert admit(asks("cuda", gib=30), [device], [], HOST).verdict == "run"


def test_an_idle_device_comes_first_then_the_fullest_that_fits() -> None:
    gpus = [gpu(0, free=40 * GIB, busy=90), gpu(1), gpu(2, free=50 * GIB)]
    assert admit(asks(), gpus, [], HOST).gpu == gpus[2]
    assert admit(asks(gib=100), gpus, [], HOST).gpu == gpus[1]
    assert admit(asks(), [gpus[0]], [], HOST).gpu == gpus[0]


@pytest.mark.parametrize(
    ("asked", "gpus", "setting", "verdict", "reason"),
    [
        (asks("cuda"), [], "auto", "never", "no GPU answers"),
        (asks("cuda", gib=200), [gpu(0)], "auto", "never", "139.0 GiB"),
        (asks("cuda"), [gpu(0)], "cpu", "never", "trainer.device"),
        (asks("cpu"), [gpu(0)], "cuda", "never", "trainer.device"),
        (asks("auto", gib=200), [gpu(0)], "auto", "run", ""),
        (asks("auto"), [gpu(0, free=GIB)], "auto", "run", ""),
        (asks("auto"), [gpu(0, free=GIB)], "cuda", "wait", "no GPU has the memory"),
        (asks("auto"), [], "auto", "run", ""),
        (Resources(cpus=9, memory_bytes=GIB), [], "auto", "never", "9 CPUs"),
        (Resources(memory_bytes=65 * GIB), [], "auto", "never", "65.0 GiB of memory"),
    ],
)
def test_never_and_wait_have_their_reason(
    asked: Resources, gpus: list[Gpu], setting: Any, verdict: str, reason: str
) -> None:
    said = admit(asked, gpus, [], HOST, setting=setting)
    assert said.verdict == verdict
    assert reason in said.reason
    assert said.gpu is None


def test_the_cpu_takes_as_many_jobs_as_it_has_slots() -> None:
    host = replace(HOST, cpu_slots=2)
    jobs = [Running(), Running(gpu_uuids=("GPU-0",), gpu_memory_bytes=GIB)]
    assert admit(asks("cpu"), [], jobs, host).verdict == "run"
    assert admit(asks("cpu"), [], [*jobs, Running()], host).verdict == "wait"


def test_a_torch_without_cuda_sends_flexible_jobs_to_the_cpu() -> None:
    host = replace(HOST, torch_knows_cuda=False)
    assert admit(asks("auto"), [gpu(0)], [], host).verdict == "run"
    said = admit(asks("cuda"), [gpu(0)], [], host)
    assert said.verdict == "never"
    assert "without CUDA" in said.reason


@given(
    st.lists(st.tuples(st.integers(1, 139), st.integers(0, 139), st.integers(0, 100)), max_size=8),
    st.sampled_from(["auto", "cpu", "cuda"]),
    st.sampled_from(["auto", "cpu", "cuda"]),
    st.integers(1, 150),
    st.integers(0, 3),
)
def test_whatever_is_chosen_fits(
    devices: list[tuple[int, int, int]], device: Any, setting: Any, gib: int, on_cpu: int
) -> None:
    gpus = [
        gpu(i, total=total * GIB, free=min(free, total) * GIB, busy=busy)
        for i, (total, free, busy) in enumerate(devices)
    ]
    said = admit(asks(device, gib), gpus, [Running()] * on_cpu, HOST, setting=setting)
    if said.verdict == "run" and said.gpu is not None:
        assert device != "cpu"
        assert setting != "cpu"
        assert said.gpu.free_bytes >= gib * GIB + CONTEXT_BYTES
    elif said.verdict == "run":
        assert device != "cuda"
        assert setting != "cuda"
        assert on_cpu < HOST.cpu_slots
    else:
        assert said.reason
