"""What a trainer's gauges are read of; its counters stand where it announces."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Protocol

from infra.observe import metrics
from infra.observe.instruments import Instruments, Values
from trainers.bulletin import Bulletin
from trainers.devices import Survey
from trainers.process import Standby
from trainers.registry import Registry

_SAID = ("started", "succeeded", "failed", "retried", "preempted", "merged", "answered", "skipped", "queued")


class Observed(Protocol):
    """What is asked of a trainer."""

    bulletin: Bulletin
    registry: Registry
    standby: Standby
    survey: Survey

    def at_work(self) -> int: ...

    def begun(self) -> Set[str]: ...


def read_by(trainer: Observed, instruments: Instruments, *, now_ms: Callable[[], int]) -> None:
    """Have these instruments read that trainer, on its event loop."""
    registry = trainer.registry

    def jobs() -> Values:
        sweeping, at_work = len(registry.sweeps()), trainer.at_work()
        waiting = len(registry.open_jobs()) - sweeping - at_work
        return {("waiting",): max(0, waiting), ("sweeping",): sweeping, ("at_work",): at_work}

    def oldest_wait_s() -> Values:
        asked_ms = [each.asked_ms for each in registry.waiting(but_not=trainer.begun())]
        return {(): max(0.0, (now_ms() - min(asked_ms)) / 1000) if asked_ms else 0.0}

    def models(of: Callable[[str], float]) -> Callable[[], Values]:
        return lambda: {(name,): of(name) for name in registry.names()}

    def published_s(name: str) -> float:
        manifest = registry.champion(name)
        return 0.0 if manifest is None else manifest.published_ms / 1000

    def version(name: str) -> float:
        manifest = registry.champion(name)
        return 0.0 if manifest is None else manifest.version

    def gpu_memory() -> Values:
        found: dict[tuple[str, ...], float] = {}
        for gpu in trainer.survey.gpus:
            found[gpu.label, "free"] = gpu.free_bytes
            found[gpu.label, "used"] = gpu.total_bytes - gpu.free_bytes
        return found

    read = instruments.read
    read(metrics.CONTACT_AGE, lambda: {(): trainer.bulletin.contact_age_s()})
    read(metrics.JOBS, jobs)
    read(metrics.OLDEST_WAIT, oldest_wait_s)
    read(metrics.MODEL_VERSION, models(version))
    read(metrics.MODEL_PUBLISHED, models(published_s))
    read(metrics.WARM, lambda: {(): float(trainer.standby.is_warm)})
    read(metrics.GPU_MEMORY, gpu_memory)
    read(metrics.GPU_FAULTS, lambda: {(): len(trainer.survey.faults)})
    instruments.begin(metrics.JOB_EVENTS, ((said,) for said in _SAID))
