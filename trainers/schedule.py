"""Which waiting job starts, which makes room, which waits and why: a pure function of the moment.

The order of the queue is the time at which a job was asked for, moved forward by `aging_ms` for each step of
its priority. It never changes while a job waits, so nothing can pass it for ever: that is all there is to
aging. A job may go past others that do not fit now (backfilling), until the first of those has waited for
`patience_ms`; from then on the room that it needs is kept for it, and only what surely ends before the room
is there may use it (EASY backfilling: Lifka, "The ANL/IBM SP Scheduling System", 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from schemas.job import Resources
from trainers.admission import CONTEXT_BYTES, Admission, Host, Running, admit, host_is_full
from trainers.devices import Gpu


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A job in the queue.

    Attributes:
        asked_ms: when it, or the oldest job that was merged into it, was asked for.
        not_before_ms: it backs off until then.
        pending_key: equal for jobs that ask for the same on other data.
        data: how new its data are, comparable: dataset version, end of its range, when it was asked for.
    """

    job_id: str
    model: str
    resources: Resources
    asked_ms: int
    priority: int = 0
    not_before_ms: int = 0
    is_trial: bool = False
    pending_key: str = ""
    data: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Start:
    """Begin it, where `admission` says."""

    job_id: str
    admission: Admission


@dataclass(frozen=True, slots=True)
class Refuse:
    """It can never run here."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Merge:
    """It asks for what another waiting job asks for on newer data."""

    job_id: str
    into_job_id: str


@dataclass(frozen=True, slots=True)
class Preempt:
    """It makes room for another of higher priority."""

    job_id: str
    by_job_id: str


Action = Start | Refuse | Merge | Preempt


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now, and what each job that stays in the queue waits for, in the queue's order."""

    actions: list[Action] = field(default_factory=list)
    waits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The trainer's own rules.

    `aging_ms`: so much waiting is worth one step of priority. `patience_ms`: after so long in the queue, room
    is kept for a job.
    """

    setting: Literal["auto", "cpu", "cuda"] = "auto"
    aging_ms: int = 1_800_000
    patience_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class _Kept:
    """Room that is kept for a job, and will be there at `from_ms`.

    On these devices, else on the CPU. `host`: what it lacks are cores or memory, which every job takes.
    """

    job_id: str
    gpu_uuids: frozenset[str]
    from_ms: int
    host: bool


def place(job: Waiting, terms: Terms) -> float:
    """Place in the queue: the smaller, the sooner."""
    return job.asked_ms - job.priority * terms.aging_ms


def schedule(
    waiting: Sequence[Waiting],
    running: Sequence[Running],
    gpus: Sequence[Gpu],
    host: Host,
    *,
    now_ms: int,
    terms: Terms,
) -> Plan:
    """What to do now. Jobs of one model run one after another: each is judged against the one before it.

    Args:
        waiting: in any order.
        gpus: devices that answer now.
    """
    plan = Plan()
    merged = _merge(waiting)
    plan.actions.extend(merged.values())
    at_work = list(running)
    models = {job.model for job in running if not job.is_trial}
    blocked: dict[Resources, str] = {}
    kept: list[_Kept] = []
    for job in sorted(waiting, key=lambda job: (place(job, terms), job.job_id)):
        if job.job_id in merged:
            continue
        if job.model in models and not job.is_trial:
            plan.waits[job.job_id] = f"another job of model {job.model} is at work"
            continue
        if now_ms < job.not_before_ms:
            plan.waits[job.job_id] = "it is tried again in a while"
            continue
        if job.resources in blocked:
            # Room only becomes less within one plan: the same question has the same answer.
            plan.waits[job.job_id] = blocked[job.resources]
            continue
        admission = _admit(job, gpus, at_work, host, kept, now_ms, terms)
        match admission.verdict:
            case "never":
                plan.actions.append(Refuse(job.job_id, admission.reason))
            case "run":
                plan.actions.append(Start(job.job_id, admission))
                at_work.append(promised(job, admission, now_ms=now_ms, terms=terms))
                if not job.is_trial:
                    models.add(job.model)
            case "wait":
                blocked[job.resources] = plan.waits[job.job_id] = admission.reason
                victims = _victims(job, at_work, gpus, host, terms)
                plan.actions.extend(Preempt(victim.job_id, job.job_id) for victim in victims)
                leaving = {victim.job_id for victim in victims}
                at_work = [replace(j, leaving=True) if j.job_id in leaving else j for j in at_work]
                if not kept and (now_ms - job.asked_ms >= terms.patience_ms or victims):
                    kept.append(_keep(job, at_work, gpus, host, now_ms, terms))
    return plan


def promised(job: Waiting, admission: Admission, *, now_ms: int, terms: Terms) -> Running:
    """The job as it is counted from its start on."""
    asked, on_gpu = job.resources, bool(admission.gpus)
    return Running(
        job_id=job.job_id,
        model=job.model,
        is_trial=job.is_trial,
        priority=job.priority,
        order=place(job, terms),
        until_ms=now_ms + int(asked.time_limit_s * 1000),
        gpu_uuids=tuple(gpu.uuid for gpu in admission.gpus),
        gpu_memory_bytes=asked.gpu_memory_bytes if on_gpu else 0,
        exclusive=on_gpu and asked.gpus > 0,
        cpus=asked.cpus,
        memory_bytes=asked.memory_bytes,
    )


def _merge(waiting: Iterable[Waiting]) -> dict[str, Merge]:
    """Of waiting jobs that differ in their data alone, the one with the newest data stays."""
    newest: dict[str, Waiting] = {}
    groups: dict[str, list[Waiting]] = {}
    for job in waiting:
        if job.pending_key:
            groups.setdefault(job.pending_key, []).append(job)
    for key, jobs in groups.items():
        newest[key] = max(jobs, key=lambda job: (job.data, job.job_id))
    return {
        job.job_id: Merge(job.job_id, newest[key].job_id)
        for key, jobs in groups.items()
        for job in jobs
        if job is not newest[key]
    }


def _admit(
    job: Waiting,
    gpus: Sequence[Gpu],
    running: Sequence[Running],
    host: Host,
    kept: Sequence[_Kept],
    now_ms: int,
    terms: Terms,
) -> Admission:
    """Where the job may go beside the room that is kept for others."""
    ends_ms = now_ms + job.resources.time_limit_s * 1000
    binding = [each for each in kept if ends_ms > each.from_ms]
    taken = frozenset().union(*(each.gpu_uuids for each in binding))
    if taken:
        # A device that is kept is still there: the job waits for it, it is not refused.
        host = replace(host, known_gpus=(*host.known_gpus, *gpus))
    free = [gpu for gpu in gpus if gpu.uuid not in taken]
    admission = admit(job.resources, free, running, host, setting=terms.setting)
    if binding and admission.verdict != "never":
        on_cpu = not admission.gpus and not taken
        if admission.verdict == "wait" or on_cpu or any(each.host for each in binding):
            return Admission("wait", reason=f"room is kept for {binding[0].job_id}")
    return admission


def _victims(
    job: Waiting,
    running: Sequence[Running],
    gpus: Sequence[Gpu],
    host: Host,
    terms: Terms,
) -> list[Running]:
    """Jobs of lower priority, further back in the queue, whose end makes room; none if it does not.

    Those that leave already count as gone: nobody else has to go for what they will give back.
    """
    mine = place(job, terms)
    stay = [each for each in running if not each.leaving]
    weaker = sorted(
        (each for each in stay if each.priority < job.priority and each.order > mine),
        key=lambda each: (each.priority, -each.order),
    )

    def fits(without: Sequence[Running]) -> bool:
        gone = [*(each for each in running if each.leaving), *without]
        names = {each.job_id for each in without}
        left = [each for each in stay if each.job_id not in names]
        return _fits(job, _freed(gpus, gone), left, host, terms)

    if not weaker or fits(()) or not fits(weaker):
        return []
    chosen: list[Running] = []
    for each in weaker:
        chosen.append(each)
        if fits(chosen):
            break
    for each in list(chosen):
        rest = [other for other in chosen if other is not each]
        if fits(rest):
            chosen = rest
    return chosen


def _fits(job: Waiting, gpus: Sequence[Gpu], running: Sequence[Running], host: Host, terms: Terms) -> bool:
    # What is available now says nothing of the time when others are gone.
    host = replace(host, available_bytes=None)
    return admit(job.resources, gpus, running, host, setting=terms.setting).verdict == "run"


def _freed(gpus: Sequence[Gpu], gone: Sequence[Running]) -> list[Gpu]:
    """The devices once those jobs are gone from them."""
    freed: list[Gpu] = []
    for gpu in gpus:
        pids = {each.pid for each in gone if gpu.uuid in each.gpu_uuids} & gpu.used_by.keys()
        if not pids:
            freed.append(gpu)
            continue
        back = sum(size for pid, size in gpu.used_by.items() if pid in pids)
        left = {pid: size for pid, size in gpu.used_by.items() if pid not in pids}
        freed.append(replace(gpu, free_bytes=min(gpu.total_bytes, gpu.free_bytes + back), used_by=left))
    return freed


def _keep(
    job: Waiting,
    running: Sequence[Running],
    gpus: Sequence[Gpu],
    host: Host,
    now_ms: int,
    terms: Terms,
) -> _Kept:
    """The room that will be there first, as running jobs reach their limits one after another."""
    left = list(running)
    gone: list[Running] = []
    at_ms = now_ms
    lacks_host = bool(host_is_full(job.resources, running, host))
    while left:
        free = admit(
            job.resources,
            _freed(gpus, gone),
            left,
            replace(host, available_bytes=None),
            setting=terms.setting,
        )
        if free.verdict == "run":
            return _Kept(job.job_id, frozenset(gpu.uuid for gpu in free.gpus), at_ms, lacks_host)
        soonest = min(left, key=lambda each: (not each.leaving, each.until_ms))
        at_ms = max(at_ms, now_ms if soonest.leaving else soonest.until_ms)
        left.remove(soonest)
        gone.append(soonest)
    free = admit(job.resources, _freed(gpus, gone), left, host, setting=terms.setting)
    uuids = frozenset(gpu.uuid for gpu in free.gpus)
    if free.verdict == "run" or job.resources.device == "cpu":
        return _Kept(job.job_id, uuids, at_ms, lacks_host)
    # Others fill the devices: whichever is large enough is the one to wait for.
    need = job.resources.gpu_memory_bytes + CONTEXT_BYTES
    large = sorted((g for g in gpus if g.total_bytes >= need), key=lambda g: (-g.free_bytes, g.index))
    count = max(1, job.resources.gpus)
    return _Kept(job.job_id, frozenset(gpu.uuid for gpu in large[:count]), at_ms, lacks_host)
