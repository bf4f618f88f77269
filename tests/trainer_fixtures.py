"""A small real dataset, model code of every temper, and a trainer process to take jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import psutil
import pynvml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from deltalake import write_deltalake
from typer.testing import CliRunner

from infra.command.main import app
from infra.dataset import META
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import NotAnAnnouncement, open_record, unwrap, wrap
from schemas.features import AsOf, FeatureSpec, Label, Trailing
from schemas.job import DatasetRange, Experiment, Gate, JobEvent, JobRequested, Resources
from schemas.model import ModelRefused, SignedModel
from trainers.standby import JOB_NAME

HOUR_MS = 3_600_000
ROWS = 4_000
STEP_MS = 60_000
SPAN_MS = ROWS * STEP_MS

SPEC = FeatureSpec(
    source="asked",
    key="id",
    columns=("place", "x"),
    features=(
        AsOf(source="air", by=("place",), columns={"temp": "temp"}, max_age_ms=6 * HOUR_MS),
        Trailing(source="asked", by=("place",), over_ms=2 * HOUR_MS, aggregates={"recent": ("count", "")}),
    ),
    label=Label(source="answered", column="late", key="id", within_ms=24 * HOUR_MS),
)

# What users might hand in. Each module is a file of its own, importable by the trainer's processes only.
MODEL_CODE: dict[str, str] = {
    "good": """
import torch
from schemas.tabular import TabularNetwork

def untrained(ctx):
    stats = {c: ctx.rows.get_column(c) for c in ("x", "temp", "recent")}
    return TabularNetwork({
        "categorical": [{"name": "place", "vocabulary": ["A", "B"], "dim": 2}],
        "numeric": [{"name": c, "mean": s.mean(), "scale": s.std() or 1.0} for c, s in stats.items()],
        "calendar": None, "hidden": [8], "dropout": 0.0,
    })

def train(ctx):
    model = untrained(ctx)
    if ctx.parent is not None:
        assert model.take_over(ctx.parent, ctx.parent_config)
    model.to(ctx.device)
    inputs = [t.to(ctx.device) for t in model.encode(ctx.rows.to_dict(as_series=True))]
    truth = ctx.labels().to(ctx.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(ctx.params.get("rate", 0.02)))
    steps = int(ctx.params.get("steps", 60))
    for step in range(steps):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(*inputs), truth)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        ctx.progress(step + 1, steps, loss=loss.item(), broken=float("nan"))
    print("trained on", ctx.device, "threads", torch.get_num_threads())
    return model

def steady(ctx):
    import pathlib, time
    model = untrained(ctx)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    begin = 0
    if kept := ctx.resume():
        model.load_state_dict(kept["model"]); optimizer.load_state_dict(kept["optimizer"])
        begin = kept["step"]
        print("resumed at", begin)
    inputs = model.encode(ctx.rows.to_dict(as_series=True))
    truth = ctx.labels()
    state = lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
    for step in range(begin, 40):
        noise = torch.randn(len(truth)) * 0.1
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(*inputs) + noise, truth)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        ctx.progress(step + 1, 40, loss=loss.item())
        ctx.checkpoint(state())
        while step == 20 and "go" in ctx.params and not pathlib.Path(ctx.params["go"]).exists():
            pathlib.Path(ctx.params["mark"]).touch()
            ctx.checkpoint(state())
            time.sleep(0.02)
    return model

def inverted(ctx):
    model = train(ctx)
    with torch.no_grad():
        model.head[-1].weight.neg_(); model.head[-1].bias.neg_()
    return model

def constant(ctx):
    model = train(ctx)
    with torch.no_grad():
        model.head[-1].weight.zero_()
    return model

def nan(ctx):
    model = train(ctx)
    with torch.no_grad():
        model.head[-1].bias.fill_(float("nan"))
    return model

def nan_answers(ctx):
    model = train(ctx)
    model.predict = lambda columns: [float("nan")] * len(columns["x"])
    return model
""",
    "bad": """
import ctypes, os, subprocess, sys, time

def raises(ctx):
    raise ValueError("no luck today")

def exits(ctx):
    sys.exit(7)

def vanishes(ctx):
    print("about to vanish", flush=True)
    os._exit(3)

def segfaults(ctx):
    ctypes.string_at(0)

def hangs(ctx):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("grandchild", child.pid, flush=True)
    while True:
        ctx.progress(1, 2)
        time.sleep(0.01)

def shouts(ctx):
    for number in range(200_000):
        print("line", number, "x" * 40)
    sys.stdout.buffer.write(bytes(range(256)))
    raise RuntimeError("shouted enough")

def hoards(ctx):
    print("hoarding", flush=True)
    kept = []
    while True:
        kept.append(b"x" * 2**20 * 16)
        time.sleep(0.01)

def looks_around(ctx):
    print("seen:", " ".join(sorted(os.environ)))
    print("open:", " ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                            if os.path.exists(f"/proc/self/fd/{fd}")))
    raise ValueError("looked around")

def snoops(ctx):
    import pathlib, signal
    home, outside = pathlib.Path(ctx.params["home"]), os.getppid()
    with open(f"/proc/{outside}/stat") as stat:
        trainer = int(stat.read().rsplit(")", 1)[1].split()[1])
    for name, attempt in {
        "key": lambda: next((home / "keys").glob("*.pem")).read_bytes(),
        "other job": lambda: (home / "jobs" / ctx.params["other"] / "job.log").read_text(),
        "environment": lambda: open(f"/proc/{trainer}/environ").read(),
        "memory": lambda: open(f"/proc/{outside}/mem", "rb"),
        "artifact": lambda: (home / "artifacts" / "x").write_bytes(b"x"),
        "conclusion": lambda: (home / "jobs" / ctx.params["job"] / "conclusion.json").write_bytes(b"x"),
        "dataset": lambda: pathlib.Path(ctx.params["dataset"], "x").touch(),
    }.items():
        try:
            attempt()
            print(name, "WORKED")
        except PermissionError:
            print(name, "refused")
    tasks = [pathlib.Path(f"/proc/self/task/{t}/status").read_text() for t in os.listdir("/proc/self/task")]
    print("threads without walls:", sum("NoNewPrivs:\t1" not in each for each in tasks))
    open(home / "artifacts" / "x", "wb")

def gives_nothing(ctx):
    return None

def waits(ctx):
    import pathlib, good
    pathlib.Path(ctx.params["mark"]).touch()
    while not pathlib.Path(ctx.params["go"]).exists():
        time.sleep(0.01)
    return good.train(ctx)
""",
    "network": """
import torch
from schemas.tabular import TabularNetwork

class Network(TabularNetwork):
    @classmethod
    def from_context(cls, ctx):
        return cls({"categorical": [], "numeric": [{"name": "x", "mean": 0.0, "scale": 1.0}],
                    "calendar": None, "hidden": [4], "dropout": 0.0})

    def features(self, columns):
        return self.encode(columns)

    def loss(self, features, truth):
        return torch.nn.functional.binary_cross_entropy_with_logits(self(*features), truth)
""",
    "ranked": """
import os, pathlib, torch
from network import Network

class Falling(Network):
    def loss(self, features, truth):
        self.steps = getattr(self, "steps", 0) + 1
        mark = pathlib.Path(self.mark)
        if os.environ.get("RANK") == "1" and self.steps == 40 and not mark.exists():
            mark.touch()
            os._exit(9)
        return super().loss(features, truth)

    @classmethod
    def from_context(cls, ctx):
        model = super().from_context(ctx)
        model.mark = ctx.params["mark"]
        return model
""",
    "broken": "def train(ctx:\n",
}


def write_model_code(folder: Path) -> Path:
    """The modules above as files; gives the folder, to be put on PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in MODEL_CODE.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def write_dataset(uri: Path, *, rows: int = ROWS, seed: int = 7) -> None:
    """Rows of three sources over `rows` minutes: what was asked, how warm it was, the truth an hour later.

    `x` and the temperature decide the truth, with noise; `told` is what no honest producer could know.
    """
    rng = np.random.default_rng(seed)
    times = np.arange(rows) * STEP_MS
    x = rng.normal(size=rows)
    place = np.where(rng.random(rows) < 0.5, "A", "B")
    air_times = np.arange(0, rows * STEP_MS, HOUR_MS)
    temps = rng.normal(size=(len(air_times), 2))
    felt = temps[times // HOUR_MS, (place == "B").astype(int)]
    late = (x + 0.7 * felt + rng.normal(size=rows) * 0.7 > 0).astype(np.float64)
    ids = [f"e{i}" for i in range(rows)]
    frames = [
        _frame("asked", times, id=ids, place=place, x=x, told=late),
        _frame("air", np.repeat(air_times, 2), place=np.tile(["A", "B"], len(air_times)), temp=temps.ravel()),
        _frame("answered", times + HOUR_MS, id=ids, late=late),
    ]
    everything = pl.concat(frames, how="diagonal")
    for part in (everything.head(rows // 2), everything.slice(rows // 2)):
        write_deltalake(str(uri), part, mode="append")


def _frame(source: str, times: np.ndarray, **columns: Any) -> pl.DataFrame:
    offsets = np.arange(len(times))
    meta = {
        "_source": [source] * len(times),
        "_partition": offsets % 2,
        "_offset": offsets // 2,
        "_row": np.zeros(len(times)),
        "_time": times,
        "_tags": [[] for _ in times],
    }
    return pl.DataFrame({**meta, **columns}, strict=False).cast(META)  # type: ignore[arg-type]


def experiment(uri: Path, code: str, model: str, **changes: Any) -> Experiment:
    """Train on the first three quarters, judge on the rest."""
    cut_ms = SPAN_MS * 3 // 4
    span = {"uri": str(uri), "version": 1}
    settled: dict[str, Any] = {
        "pipeline": "test",
        "model": model,
        "code": code,
        "training": DatasetRange(**span, start_ms=0, end_ms=cut_ms),
        "evaluation": DatasetRange(**span, start_ms=cut_ms, end_ms=SPAN_MS),
        "spec": SPEC,
        "params": {"steps": 60},
        "seed": 3,
        "gate": Gate(tolerance=0.01),
        "resources": Resources(device="auto", memory_bytes=2**28, gpu_memory_bytes=2**30, time_limit_s=60),
        **changes,
    }
    return Experiment(**settled)


def a_job(uri: Path, code: str, model: str, *, job_id: str = "", **changes: Any) -> JobRequested:
    """A job with an id of its own."""
    return JobRequested(
        job_id=job_id or f"{model}-{secrets.token_hex(3)}",
        experiment=experiment(uri, code, model, **changes),
        decision_id=None,
        requested_ms=int(time.time() * 1000),
    )


GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class NvmlDevice:
    """One GPU of the stand-in; `error` is what any question about it raises, `gone`: only its number."""

    total_bytes: int = 139 * GIB
    free_bytes: int = 139 * GIB
    utilization: int = 0
    tells_utilization: bool = True
    processes: Mapping[int, int] = field(default_factory=dict)
    error: int | None = None
    gone: bool = False
    slices: tuple[int, ...] | None = None
    """Sizes in bytes of the MIG slices it is cut into; None: it is whole."""


_SLICE = 1_000
"""A slice's handle is its device's and so many times its number."""


class Nvml:
    """The functions of `pynvml` that the trainer uses, its structs and errors, over made-up devices."""

    NVMLError = pynvml.NVMLError

    def __init__(self, devices: Sequence[NvmlDevice] = (), *, driver: bool = True) -> None:
        self.devices = list(devices)
        self.open_sessions = 0
        self._driver = driver

    def nvmlInit(self) -> None:  # noqa: N802  (the binding's own names)
        if not self._driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.open_sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open_sessions -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if self.devices[index].gone:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return index

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        if self._ask(handle).slices is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: int, index: int) -> int:  # noqa: N802
        if index >= len(self._ask(device).slices or ()):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return _SLICE * (index + 1) + device

    def _ask(self, handle: int) -> NvmlDevice:
        number, index = divmod(handle, _SLICE)
        device = self.devices[index]
        if device.error is not None:
            raise pynvml.NVMLError(device.error)
        if number:
            size = (device.slices or ())[number - 1]
            return NvmlDevice(total_bytes=size, free_bytes=size, tells_utilization=False)
        return device

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        device = self._ask(handle)
        memory = pynvml.c_nvmlMemory_t()
        memory.total, memory.free = device.total_bytes, device.free_bytes
        memory.used = device.total_bytes - device.free_bytes
        return memory

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        device = self._ask(handle)
        if not device.tells_utilization:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        rates = pynvml.c_nvmlUtilization_t()
        rates.gpu = device.utilization
        return rates

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=p, usedGpuMemory=b) for p, b in self._ask(handle).processes.items()]

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        self._ask(handle)
        number, index = divmod(handle, _SLICE)
        return f"MIG-0000-{index:02d}-{number - 1}" if number else f"GPU-0000-{handle:02d}"

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        self._ask(handle)
        return "NVIDIA H200 MIG" if handle >= _SLICE else "NVIDIA H200"


def jobs_of(trainer_pid: int) -> list[psutil.Process]:
    """Processes of a trainer that are at a job."""
    return [p for p in psutil.Process(trainer_pid).children(recursive=True) if p.name() == JOB_NAME]


async def tidemill(*arguments: str) -> tuple[int, str]:
    """A command in this process, whose environment names the cluster: exit code, and its answer.

    Raises:
        TidemillError: what the command line would say and end with.
    """
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


class Topics:
    """Every announcement on the trainer's topics, in the order of its partition, and a producer to ask."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self.events: list[tuple[str, str, Announcement]] = []
        """(topic, event id, announcement), repeats included."""

    async def __aenter__(self) -> Topics:
        self._producer = AIOKafkaProducer(bootstrap_servers=self._servers)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers, enable_auto_commit=False, fetch_max_wait_ms=20
        )
        await self._producer.start()
        await self._consumer.start()
        tps = [TopicPartition(t.name, 0) for t in (topics.JOBS, topics.MODELS, topics.MODELS_CURRENT)]
        self._consumer.assign(tps)
        await self._consumer.seek_to_beginning(*tps)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
        await self._consumer.stop()

    async def ask(self, *jobs: JobRequested) -> None:
        """Publish job requests."""
        for job in jobs:
            await self.say(topics.JOBS.name, job)

    async def say(self, topic: str, event: Announcement) -> None:
        """Publish any announcement."""
        key, value, headers = wrap(event, source="/test", time_ms=0).record()
        await self._producer.send_and_wait(topic, key=key, value=value, headers=headers)

    async def until(self, ready: Callable[[], Any], *, timeout_s: float = 180.0) -> Any:
        """Read on until `ready()` gives something."""
        async with asyncio.timeout(timeout_s):
            while not (found := ready()):
                await self.read()
            return found

    async def read(self) -> None:
        """Take in what has come."""
        for tp, records in (await self._consumer.getmany(timeout_ms=100)).items():
            for record in records:
                envelope = open_record(record.key, record.value, record.headers)
                with contextlib.suppress(NotAnAnnouncement):  # other tests send what breaks its contract
                    self.events.append((tp.topic, envelope.id, unwrap(envelope)))

    def of_job(self, job: JobRequested, *kinds: type[Announcement]) -> list[Any]:
        """This job's events, those of its model included, of the job and history topics."""
        found = []
        for topic, _, event in self.events:
            match event:
                case JobEvent(job_id=job_id) | ModelRefused(job_id=job_id):
                    pass
                case SignedModel(manifest=manifest) if topic == topics.MODELS.name:
                    job_id = manifest.lineage.job_id
                case _:
                    continue
            if job_id == job.job_id and (not kinds or isinstance(event, kinds)):
                found.append(event)
        return found

    async def one(self, job: JobRequested, *kinds: type[Announcement], timeout_s: float = 180.0) -> Any:
        """Wait for the first such event of a job."""
        return (await self.until(lambda: self.of_job(job, *kinds), timeout_s=timeout_s))[0]


class TrainerProcess:
    """`tidemill trainer` as a process of its own."""

    def __init__(
        self, home: Path, bootstrap_servers: str, code: Path, *, within: Sequence[str] = (), **settings: str
    ) -> None:
        """`within` is a command that ends by running what stands behind it."""
        self.home, self._within = home, within
        self.log_file = home / "trainer.log"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL_")},
            "AWS_OF_THE_TRAINER": "alone",
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(home),
            "TIDEMILL_TRAINER__PROGRESS_INTERVAL_MS": "1",
            "PYTHONPATH": str(code),
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; does not wait until it is warm."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._within, sys.executable, "-m", "infra.command", "trainer"],
                env=self.environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as the kernel would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; gives its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)
