"""The queue: what starts, what makes room, what waits; that all end, and nobody is promised too much."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.job import Resources
from tests.trainer_fixtures import GIB, Nvml, NvmlDevice
from trainers.admission import CONTEXT_BYTES, Host, Running
from trainers.devices import Gpu, survey
from trainers.schedule import (
    Merge,
    Plan,
    Preempt,
    Refuse,
    Start,
    Terms,
    Waiting,
    place,
    promised,
    schedule,
)

HOST = Host(cpus=8, memory_bytes=64 * GIB)
TERMS = Terms(aging_ms=60_000, patience_ms=10_000)
CPU = Resources(device="cpu", memory_bytes=GIB, time_limit_s=60)


def gpu(index: int, *, total: int = 80 * GIB, free: int | None = None, used_by: Any = None) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H100",
        total_bytes=total,
        free_bytes=total if free is None else free,
        used_by=used_by or {},
    )


def on_gpu(gib: int = 10, **more: Any) -> Resources:
    return Resources(
        device="cuda", gpu_memory_bytes=gib * GIB, memory_bytes=GIB, **{"time_limit_s": 60, **more}
    )


def waits(job_id: str, resources: Resources = CPU, *, asked_ms: int = 0, **more: Any) -> Waiting:
    return Waiting(
        job_id=job_id, resources=resources, asked_ms=asked_ms, **{"model": f"model of {job_id}", **more}
    )


def plan(
    waiting: list[Waiting],
    running: list[Running] | tuple[Running, ...] = (),
    gpus: list[Gpu] | tuple[Gpu, ...] = (),
    host: Host = HOST,
    now_ms: int = 0,
    terms: Terms = TERMS,
) -> Plan:
    return schedule(waiting, running, gpus, host, now_ms=now_ms, terms=terms)


def started(said: Plan) -> list[str]:
    return [a.job_id for a in said.actions if isinstance(a, Start)]


def at_work(job: Waiting, *gpus: Gpu, now_ms: int = 0, **more: Any) -> Running:
    """The job as it runs once it was started on those devices."""
    (start,) = plan([job], gpus=list(gpus), now_ms=now_ms).actions
    assert isinstance(start, Start)
    return replace(promised(job, start.admission, now_ms=now_ms, terms=TERMS), **more)


def test_cpu_jobs_fill_the_cores_in_the_order_they_were_asked_for_and_the_rest_waits() -> None:
    jobs = [waits(f"{i:02d}", replace_cpus(3), asked_ms=100 - i) for i in range(4)]
    said = plan(jobs)
    assert started(said) == ["03", "02"]
    assert list(said.waits) == ["01", "00"]
    assert said.waits["01"] == "all 8 CPUs are promised"


def replace_cpus(cpus: int, *, gib: int = 1) -> Resources:
    return Resources(device="cpu", cpus=cpus, memory_bytes=gib * GIB, time_limit_s=60)


def test_cpu_jobs_stay_within_memory() -> None:
    said = plan([waits("a", replace_cpus(1, gib=40)), waits("b", replace_cpus(1, gib=40))])
    assert started(said) == ["a"]
    assert "64.0 GiB of memory are promised" in said.waits["b"]
    # Others on the machine took memory: beside a job of ours the second waits, alone it is tried.
    little = replace(HOST, available_bytes=4 * GIB)
    running = at_work(waits("a", replace_cpus(1, gib=3)), used_bytes=GIB)
    assert started(plan([waits("b", replace_cpus(1, gib=3))], [running], host=little)) == []
    assert started(plan([waits("b", replace_cpus(1, gib=6))], host=little)) == ["b"]


def test_several_jobs_share_a_gpu_by_what_they_declare_with_a_margin_for_each() -> None:
    said = plan([waits(str(i), on_gpu(25)) for i in range(8)], gpus=[gpu(0), gpu(1)])
    homes = [a.admission.gpu.index for a in said.actions if isinstance(a, Start) and a.admission.gpu]
    assert sorted(homes) == [0, 0, 0, 1, 1, 1]
    assert len(said.waits) == 2


def test_whole_devices_go_to_one_job_alone() -> None:
    gpus = [gpu(0), gpu(1), gpu(2, used_by={99: GIB})]
    said = plan([waits("two", on_gpu(1, gpus=2)), waits("share", on_gpu(1), asked_ms=1)], gpus=gpus)
    homes = {a.job_id: [g.index for g in a.admission.gpus] for a in said.actions if isinstance(a, Start)}
    assert homes == {"two": [0, 1], "share": [2]}
    three = plan([waits("three", on_gpu(1, gpus=3))], gpus=gpus)
    assert three.waits == {"three": "2 of 3 GPUs are free as a whole now"}


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        (on_gpu(200), "the largest GPU here has 80.0 GiB"),
        (on_gpu(10, gpus=4), "the job asks for 4 GPUs"),
        (Resources(device="cpu", gpus=1), 'for device "cpu"'),
        (replace_cpus(9), "9 CPUs"),
        (on_gpu(10, gpus=2, ranks=3, cpus=3), "a rank has a GPU of its own"),
        (on_gpu(10, ranks=2, cpus=2), "set gpus=2"),
        (Resources(device="cpu", ranks=2), "a core of its own"),
    ],
)
def test_what_no_machine_has_is_refused_at_once(resources: Resources, reason: str) -> None:
    said = plan([waits("a", resources)], gpus=[gpu(0), gpu(1)])
    (refused,) = said.actions
    assert isinstance(refused, Refuse)
    assert reason in refused.reason


def test_a_gpu_that_has_vanished_is_waited_for_and_one_that_never_was_is_not() -> None:
    host = replace(HOST, known_gpus=(gpu(0),))
    said = plan([waits("a", on_gpu(10))], host=host)
    assert said.waits == {"a": "cuda:0 NVIDIA H100 does not answer now, and no other GPU has room"}
    (refused,) = plan([waits("a", on_gpu(10))]).actions
    assert isinstance(refused, Refuse)


def test_jobs_of_one_model_run_one_after_another_and_trials_side_by_side() -> None:
    jobs = [waits("a", model="m"), waits("b", model="m", asked_ms=1)]
    said = plan(jobs)
    assert started(said) == ["a"]
    assert said.waits == {"b": "another job of model m is at work"}
    assert len(started(plan([replace(job, is_trial=True) for job in jobs]))) == 2


def test_waiting_jobs_that_differ_in_their_data_alone_become_the_newest_of_them() -> None:
    jobs = [waits(f"w{v}", pending_key="k", data=(v, v, v), asked_ms=v) for v in (2, 3, 1)]
    other = waits("other", pending_key="l")
    said = plan([*jobs, other])
    assert [a for a in said.actions if isinstance(a, Merge)] == [Merge("w2", "w3"), Merge("w1", "w3")]
    assert started(said) == ["other", "w3"]


def test_a_job_backs_off_until_its_time() -> None:
    job = waits("a", not_before_ms=500)
    assert plan([job], now_ms=499).waits
    assert started(plan([job], now_ms=500)) == ["a"]


def test_priority_is_a_head_start_and_never_for_ever() -> None:
    old, urgent = waits("old", asked_ms=0), waits("urgent", asked_ms=120_000, priority=3)
    late = waits("late", asked_ms=200_000, priority=3)
    assert [place(job, TERMS) for job in (urgent, old, late)] == [-60_000, 0, 20_000]
    said = plan([late, old, urgent], host=replace(HOST, cpu_slots=1), now_ms=200_000)
    assert started(said) == ["urgent"]
    assert list(said.waits) == ["old", "late"]


def test_a_lower_priority_makes_room_and_only_as_many_as_need_to() -> None:
    card = gpu(0)
    small = [at_work(waits(f"s{i}", on_gpu(20), asked_ms=i), card) for i in range(3)]
    # They have taken what they asked for.
    small = [replace(job, pid=10 + i) for i, job in enumerate(small)]
    used = {job.pid: 20 * GIB + CONTEXT_BYTES for job in small}
    full = gpu(0, free=80 * GIB - sum(used.values()), used_by=used)
    urgent = waits("urgent", on_gpu(38), priority=1, asked_ms=10)
    said = plan([urgent], small, [full], now_ms=10)
    assert said.actions == [Preempt("s2", "urgent")]
    assert "urgent" in said.waits
    # While that one leaves nobody else has to.
    leaving = [replace(job, leaving=job.job_id == "s2") for job in small]
    assert plan([urgent], leaving, [full], now_ms=20).actions == []
    # Once it is gone the room is there.
    left = {pid: size for pid, size in used.items() if pid != 12}
    after = gpu(0, free=80 * GIB - sum(left.values()), used_by=left)
    assert started(plan([urgent, waits("s2", on_gpu(20), asked_ms=2)], small[:2], [after], now_ms=30)) == [
        "urgent"
    ]


def test_nobody_makes_room_for_an_equal_nor_if_it_would_not_help() -> None:
    card = gpu(0)
    running = [at_work(waits("low", on_gpu(20)), card)]
    taken = gpu(0, free=20 * GIB, used_by={1: 39 * GIB, 2: 21 * GIB})
    assert plan([waits("equal", on_gpu(70))], running, [card]).actions == []
    # Others than us fill the device: ending our job would not make room for 70 GiB.
    urgent = waits("urgent", on_gpu(70), priority=5)
    assert plan([urgent], [replace(running[0], pid=2)], [taken]).actions == []


def test_a_large_job_is_not_passed_for_ever_by_small_ones() -> None:
    card = gpu(0)
    running = [replace(at_work(waits("r", on_gpu(30)), card), until_ms=50_000)]
    large = waits("large", on_gpu(70), asked_ms=1)
    small = waits("small", on_gpu(10, time_limit_s=600), asked_ms=2)
    brief = waits("brief", on_gpu(10, time_limit_s=5), asked_ms=3)
    assert started(plan([large, small], running, [card], now_ms=5_000)) == ["small"]
    # It has waited long enough: now its room is kept, and only what ends before may use it.
    said = plan([large, small, brief], running, [card], now_ms=20_000)
    assert started(said) == ["brief"]
    assert said.waits["small"] == "room is kept for large"
    # Elsewhere there is no reason to wait.
    assert started(plan([large, small], running, [card, gpu(1, total=60 * GIB)], now_ms=20_000)) == ["small"]


def test_a_job_of_many_cores_is_not_passed_for_ever_by_small_ones() -> None:
    running = [replace(at_work(waits("r", replace_cpus(4))), until_ms=50_000)]
    wide, narrow = waits("wide", replace_cpus(6), asked_ms=1), waits("narrow", replace_cpus(1), asked_ms=2)
    assert started(plan([wide, narrow], running, now_ms=5_000)) == ["narrow"]
    assert started(plan([wide, narrow], running, now_ms=20_000)) == []


# The whole of it: a machine of eight GPUs as NVML shows them, whose devices fill up, fail and vanish.


@dataclass
class Machine:
    """Runs what the schedule starts, by a clock of its own, and checks at each step what must hold."""

    nvml: Nvml
    host: Host = field(default_factory=lambda: replace(HOST, cpus=16))
    now_ms: int = 0
    running: dict[str, tuple[Running, int]] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    jobs: dict[str, Waiting] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    started_ms: dict[str, int] = field(default_factory=dict)

    def ask(self, job: Waiting) -> None:
        self.jobs[job.job_id] = self.waiting[job.job_id] = job

    def step(self, ms: int = 1_000) -> None:
        self.now_ms += ms
        for job_id, (job, end_ms) in list(self.running.items()):
            if job.leaving:
                del self.running[job_id]
                self.waiting[job_id] = self.jobs[job_id]
            elif end_ms <= self.now_ms:
                del self.running[job_id]
                self.ended[job_id] = "done"
        gpus = self.look()
        known = {g.uuid: g for g in (*self.host.known_gpus, *gpus)}
        self.host = replace(self.host, known_gpus=tuple(known.values()))
        at_work = [job for job, _ in self.running.values()]
        said = plan(list(self.waiting.values()), at_work, list(gpus), self.host, self.now_ms)
        for action in said.actions:
            match action:
                case Start(job_id=job_id, admission=admission):
                    job = self.waiting.pop(job_id)
                    runs = promised(job, admission, now_ms=self.now_ms, terms=TERMS)
                    runs = replace(runs, pid=1000 + len(self.started_ms))
                    self.running[job_id] = (runs, runs.until_ms)
                    self.started_ms.setdefault(job_id, self.now_ms)
                case Refuse(job_id=job_id, reason=reason):
                    del self.waiting[job_id]
                    self.ended[job_id] = reason
                case Merge(job_id=job_id):
                    del self.waiting[job_id]
                    self.ended[job_id] = "merged"
                case Preempt(job_id=job_id, by_job_id=by):
                    job, end_ms = self.running[job_id]
                    assert job.priority < self.jobs[by].priority
                    self.running[job_id] = (replace(job, leaving=True), end_ms)
        assert set(said.waits) == set(self.waiting)
        self.check()

    def look(self) -> tuple[Gpu, ...]:
        """As NVML shows the devices: each job of ours has taken all that it asked for."""
        real = list(self.nvml.devices)
        for index, device in enumerate(real):
            used = {
                job.pid: job.gpu_memory_bytes + CONTEXT_BYTES
                for job, _ in self.running.values()
                if f"GPU-0000-{index:02d}" in job.gpu_uuids
            }
            free = max(0, device.free_bytes - sum(used.values()))
            self.nvml.devices[index] = dataclasses.replace(device, processes=used, free_bytes=free)
        found = survey(self.nvml)
        self.nvml.devices[:] = real
        return found.gpus

    def check(self) -> None:
        jobs = [job for job, _ in self.running.values()]
        assert sum(job.cpus for job in jobs) <= self.host.cpus
        assert sum(job.memory_bytes for job in jobs) <= self.host.memory_bytes
        models = [job.model for job in jobs if not job.is_trial]
        assert len(models) == len(set(models))
        for index, device in enumerate(self.nvml.devices):
            mine = [job for job in jobs if f"GPU-0000-{index:02d}" in job.gpu_uuids]
            assert sum(job.gpu_memory_bytes + CONTEXT_BYTES for job in mine) <= device.total_bytes
            assert len(mine) <= 1 or not any(job.exclusive for job in mine)


shapes = st.sampled_from(
    [
        CPU,
        replace_cpus(6),
        on_gpu(2),
        on_gpu(30),
        on_gpu(78),
        on_gpu(1, gpus=2),
        on_gpu(1, gpus=8),
        on_gpu(90),
    ]
)
asked = st.tuples(shapes, st.integers(-2, 2), st.integers(0, 8), st.integers(1, 120))


@settings(deadline=None, max_examples=30)
@given(st.lists(asked, max_size=30), st.sets(st.integers(0, 6), max_size=3))
def test_every_job_ends_whatever_comes_and_whichever_devices_fail_for_a_while(
    jobs: list[tuple[Resources, int, int, int]], fail: set[int]
) -> None:
    nvml = Nvml([NvmlDevice(total_bytes=80 * GIB, free_bytes=80 * GIB) for _ in range(8)])
    machine = Machine(nvml)
    for number, (resources, priority, model, _) in enumerate(jobs):
        machine.ask(
            waits(f"{number:02d}", resources, asked_ms=machine.now_ms, priority=priority, model=str(model))
        )
        whole = list(nvml.devices)
        for index in fail if number % 3 == 1 else ():
            nvml.devices[index] = dataclasses.replace(nvml.devices[index], gone=True)
        machine.step()
        nvml.devices[:] = whole
    for _ in range(len(jobs) * 70 + 1):
        if not machine.waiting and not machine.running:
            break
        machine.step()
    assert machine.ended.keys() == machine.jobs.keys()
    for job_id, end in machine.ended.items():
        assert (end == "done") == (machine.jobs[job_id].resources != on_gpu(90)), end


def test_a_stream_of_urgent_small_jobs_starves_neither_a_large_one_nor_a_lowly_one() -> None:
    machine = Machine(Nvml([NvmlDevice(total_bytes=80 * GIB, free_bytes=80 * GIB)]))
    machine.ask(waits("large", on_gpu(78), priority=-1))
    machine.ask(waits("lowly", on_gpu(40), priority=-2))
    for second in range(600):
        if second % 25 == 0:  # more than the device can do
            machine.ask(waits(f"{second}", on_gpu(30), priority=1, asked_ms=machine.now_ms))
        machine.step()
    # A step of priority is a minute here, and so is a job: what is asked for late enough goes behind.
    assert machine.started_ms["large"] < 240_000
    assert machine.started_ms["lowly"] < 400_000


def test_a_device_that_others_fill_gets_no_more_jobs_and_gets_them_again_when_they_go() -> None:
    nvml = Nvml([NvmlDevice(total_bytes=80 * GIB, free_bytes=80 * GIB) for _ in range(8)])
    nvml.devices[3] = dataclasses.replace(nvml.devices[3], free_bytes=5 * GIB)
    nvml.devices[4] = dataclasses.replace(nvml.devices[4], error=15)
    nvml.devices[5] = dataclasses.replace(nvml.devices[5], gone=True)
    machine = Machine(nvml)
    for number in range(24):
        machine.ask(waits(f"{number:02d}", on_gpu(30, time_limit_s=600)))
    machine.host = replace(machine.host, cpus=64)
    machine.step()
    homes = sorted(job.gpu_uuids[0][-2:] for job, _ in machine.running.values())
    assert homes == sorted(["00", "01", "02", "06", "07"] * 2)
    nvml.devices[3] = dataclasses.replace(nvml.devices[3], free_bytes=80 * GIB)
    machine.step()
    assert len(machine.running) == 12
