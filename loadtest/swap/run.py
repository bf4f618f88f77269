"""`tidemill bench swap`: a service over HTTP is asked at a steady rate while its model is swapped.

Service and sender are processes of their own. A swap lasts from the moment at which the new model is said to
the one at which the service says that it answers with it; a request belongs to it if it was open at any
moment of it. Everything else, but for a breath after each swap, is without. Windows of the same lengths,
placed half way between two swaps, are counted as if they were swaps: their ratio says how much of what was
found is the machine's own noise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from rich.table import Table

from infra import atomic_file
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from loadtest.ingest.result import command_line, machine, now
from loadtest.swap.cold import CLEANER, cold_starts
from loadtest.swap.models import NAME, answers, event, weights
from schemas import topics
from schemas.contract import Announcement
from schemas.envelope import open_record, unwrap, wrap
from schemas.errors import Retryable
from schemas.model import AdoptionRefused, ModelAdopted
from trainers.artifact import ArtifactStore
from trainers.keys import KeyFolder
from trainers.store_server import StoreServer

AT_MOST = 1.2
"""Times the p99 without, that a request may take at the p99 during a swap."""

_PATIENCE_S = 60.0
_BREATH_MS = 50.0
_DIFFERENT = 8
_STILL = "still"
_ROUNDS = 5
_ALIKE = 1e-6


_Record = tuple[bytes | None, bytes, list[tuple[str, bytes]]]


class SwapBenchFailed(Retryable):
    """Service or sender ended, or the service did not adopt what was said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is run. `size` is the wider hidden layer's; the weights grow with its square.

    `elsewhere`: it is swapped in a service that nobody asks.
    """

    swaps: int = 100
    rate_per_s: float = 100.0
    apart_s: float = 0.5
    rows: int = 1
    size: int = 512
    cold_events: tuple[int, ...] = (10, 10_000)
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the sender saw it; times are ms since the epoch, or of them."""

    due_ms: float
    latency_ms: float
    version: int | None
    said: Any

    @property
    def end_ms(self) -> float:
        """When its answer was there."""
        return self.due_ms + self.latency_ms


@dataclass(frozen=True, slots=True)
class Swap:
    """From the event to the new model, in ms since the epoch."""

    version: int
    said_ms: float
    adopted_ms: float
    load_ms: float


@dataclass
class Result:
    """What came of a run."""

    options: Options
    artifact_bytes: int
    swaps: list[Swap]
    requests: list[Request]
    wrong: int
    refused: list[str]
    service_cpu_s: float
    began: datetime = field(default_factory=now)
    load_before: tuple[float, float, float] = (0.0, 0.0, 0.0)
    cold: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def errors(self) -> list[str]:
        """Requests that got no answer, and why."""
        return [str(each.said) for each in self.requests if each.version is None]

    def parted(self, swaps: Sequence[Swap] | None = None) -> dict[str, list[float]]:
        """Latencies in ms: `during` a swap, `without`, and of the windows that are none, `sham`."""
        swaps = self.swaps if swaps is None else swaps
        found: dict[str, list[float]] = {"during": [], "without": [], "sham": []}
        if not swaps:
            return found
        first, last = swaps[0].said_ms - 200.0, swaps[-1].adopted_ms + self.options.apart_s * 1000
        shams = list(_shams(swaps))
        for each in self.requests:
            if each.due_ms < first or each.end_ms > last:
                continue
            if any(each.due_ms <= swap.adopted_ms and each.end_ms >= swap.said_ms for swap in swaps):
                found["during"].append(each.latency_ms)
            elif any(each.due_ms <= end and each.end_ms >= start for start, end in shams):
                found["sham"].append(each.latency_ms)
                found["without"].append(each.latency_ms)
            elif not any(0 < each.due_ms - swap.adopted_ms < _BREATH_MS for swap in swaps):
                found["without"].append(each.latency_ms)
        return found

    def ratio(self, of: str = "during", swaps: Sequence[Swap] | None = None) -> float | None:
        """p99 of those by p99 without; None where there are none of either."""
        parted = self.parted(swaps)
        if not parted[of] or not parted["without"]:
            return None
        return _p99(parted[of]) / _p99(parted["without"])

    def by_round(self, of: str = "during") -> list[float]:
        """The ratio of each fifth of the swaps, in their order."""
        size = max(1, len(self.swaps) // _ROUNDS)
        rounds = [self.swaps[at : at + size] for at in range(0, len(self.swaps), size)]
        return [found for each in rounds if (found := self.ratio(of, each)) is not None]

    def holds(self) -> bool:
        """No request failed or was answered wrongly, and every swap came; of the ratio see `within`."""
        return not self.errors() and not self.wrong and not self.refused

    def within(self) -> bool:
        """Whether the ratio over all swaps is as promised; one round has too few requests for a p99."""
        ratio = self.ratio()
        return ratio is not None and ratio <= AT_MOST

    def as_json(self) -> dict[str, Any]:
        """The whole result as plain data, single requests left out."""
        latencies = {name: _spread(values) for name, values in self.parted().items()}
        rounds = {name: self.by_round(name) for name in ("during", "sham")}
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "command": command_line(),
            "options": asdict(self.options),
            "machine": {**machine(self.load_before), "torch": metadata.version("torch")},
            "artifact_bytes": self.artifact_bytes,
            "swaps": len(self.swaps),
            "requests": len(self.requests),
            "errors": len(self.errors()),
            "why": sorted(set(self.errors()))[:10],
            "wrong_answers": self.wrong,
            "refused": self.refused,
            "swap_ms": _spread([each.adopted_ms - each.said_ms for each in self.swaps]),
            "load_ms": _spread([each.load_ms for each in self.swaps]),
            "service_cpu_s": self.service_cpu_s,
            "latency_ms": latencies,
            "p99_ratio": {
                "during": self.ratio(),
                "sham": self.ratio("sham"),
                "by_round": rounds,
                "median_of_rounds": {
                    n: statistics.median(each) if each else None for n, each in rounds.items()
                },
                "at_most": AT_MOST,
                "met": None if self.options.elsewhere else self.within(),
            },
            "cold_start": self.cold,
        }

    def table(self) -> Table:
        """For a person."""
        table = Table("requests", "how many", "median ms", "p99 ms", "max ms", "p99 to without")
        for name, values in self.parted().items():
            spread = _spread(values)
            ratio = self.ratio(name)
            table.add_row(
                {"during": "during a swap", "sham": "in windows that are none"}.get(name, name),
                f"{len(values):,}",
                *(f"{spread[each]:.2f}" if values else "" for each in ("median", "p99", "max")),
                "" if ratio is None or name == "without" else f"{ratio:.2f}",
            )
        return table

    def write(self, folder: Path) -> Path:
        """The dated file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"swap-{self.began:%Y-%m-%dT%H%M%S}.json"
        atomic_file.write_text(file, json.dumps(self.as_json(), indent=2))
        return file


def _shams(swaps: Sequence[Swap]) -> Iterator[tuple[float, float]]:
    """Windows as long as swaps, half way between each and the next."""
    for one, other in pairwise(swaps):
        length_ms = one.adopted_ms - one.said_ms
        start_ms = (one.adopted_ms + _BREATH_MS + other.said_ms - length_ms) / 2
        if start_ms > one.adopted_ms + _BREATH_MS:
            yield start_ms, start_ms + length_ms


def _p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99))


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"count": 0}
    median, p99 = np.quantile(values, [0.5, 0.99])
    return {"count": len(values), "median": float(median), "p99": float(p99), "max": float(max(values))}


async def measure(
    options: Options, *, cache_dir: Path, said: Callable[[str], object] = lambda _: None
) -> Result:
    """Start cluster, store, service and sender; swap; ask the sender what it saw.

    Raises:
        SwapBenchFailed: a process ended, or a swap did not come.
    """
    load_before = os.getloadavg()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tidemill-swap-") as place:
        folder = Path(place)
        said("starting a broker")
        settings = CLEANER if options.cold_events else {}
        async with EmbeddedBroker(folder / "kafka", cache_dir=cache_dir, broker_settings=settings) as broker:
            connection = Connection(bootstrap_servers=broker.bootstrap_servers)
            await ensure((topics.MODELS, topics.MODELS_CURRENT), connection)
            result = await _swapped(options, folder, connection, said)
            result.load_before = load_before
            if options.cold_events:
                result.cold = await cold_starts(connection, options.cold_events, said=said)
            return result


async def _swapped(
    options: Options, folder: Path, connection: Connection, said: Callable[[str], object]
) -> Result:
    said("making models")
    keys = KeyFolder(folder / "keys")
    keys.ensure()
    store = ArtifactStore(folder / "artifacts")
    contents = [weights(number, options.size) for number in range(_DIFFERENT)]
    right = [answers(content, options.size, options.rows) for content in contents]
    for content in contents:
        store.put(content)
    server = StoreServer(store.folder, host="127.0.0.1", port=0)
    address = await server.start()

    def published(version: int, name: str = NAME) -> _Record:
        content = contents[version % _DIFFERENT]
        said = keys.signed(event(name, version, content, store=address, size=options.size))
        return wrap(said, source="/bench", time_ms=int(time.time() * 1000)).record()

    # Made beforehand: to sign is the work of a trainer on a machine of its own, and would slow what is asked.
    first, *later = [published(version) for version in range(1, options.swaps + 2)]

    def following(name: str) -> dict[str, str]:
        return {
            "name": name,
            "bootstrap_servers": connection.bootstrap_servers,
            "store": address,
            "trusted_keys": str(keys.trusted_file),
            "folder": str(folder / "cache"),
        }

    seen = folder / "seen.jsonl"
    try:
        async with _Models(connection) as models, contextlib.AsyncExitStack() as processes:
            said("starting the service")
            await models.say(first)
            held = _STILL if options.elsewhere else NAME
            if options.elsewhere:
                await models.say(published(1, _STILL))
                beside = await processes.enter_async_context(
                    _process("loadtest.swap.service", following(NAME))
                )
                await _line(beside)
            service = await processes.enter_async_context(_process("loadtest.swap.service", following(held)))
            answering = json.loads(await _line(service))["address"]
            await models.adopted(1)
            sending = {
                "address": answering,
                "rate_per_s": options.rate_per_s,
                "rows": options.rows,
                "to": str(seen),
            }
            sender = await processes.enter_async_context(_process("loadtest.swap.sender", sending))
            await _line(sender)
            # Both warm: the first requests pay for what is done once.
            await asyncio.sleep(2.0)
            cpu_before_s = _cpu_s(service.pid)
            swaps = []
            for version, new in enumerate(later, start=2):
                if version % 10 == 0:
                    said(f"swap {version - 1} of {options.swaps}")
                said_ms = time.time() * 1000
                await models.say(new)
                adopted = await models.adopted(version)
                swaps.append(Swap(version, said_ms, adopted.adopted_ms, adopted.load_ms))
                # Never in step with the sender.
                await asyncio.sleep(options.apart_s * (1 + (version * 0.381966) % 1 / 5))
            cpu_s = _cpu_s(service.pid) - cpu_before_s
            await _end(sender)
            await _end(service)
            refused = [f"version {each.version}: {each.reason}" for each in models.refused]
        lines = await asyncio.to_thread(seen.read_text, encoding="ascii")
    finally:
        await server.stop()
    requests = [Request(*json.loads(line)) for line in lines.splitlines()]
    wrong = sum(
        each.version is not None and not np.allclose(each.said, right[each.version % _DIFFERENT], atol=_ALIKE)
        for each in requests
    )
    return Result(options, len(contents[0]), swaps, requests, wrong, refused, cpu_s)


class _Models:
    """The trainer's side: says models, hears what the service says of them."""

    def __init__(self, connection: Connection) -> None:
        self.refused: list[AdoptionRefused] = []
        self._adopted: dict[int, ModelAdopted] = {}
        self._producer = AIOKafkaProducer(**connection.client_arguments(), acks="all")
        self._consumer = AIOKafkaConsumer(
            **connection.client_arguments(), enable_auto_commit=False, fetch_max_wait_ms=50
        )

    async def __aenter__(self) -> _Models:
        await self._producer.start()
        await self._consumer.start()
        place = TopicPartition(topics.MODELS.name, 0)
        self._consumer.assign([place])
        await self._consumer.seek_to_beginning(place)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._producer.stop()

    async def say(self, record: _Record) -> None:
        key, value, headers = record
        await self._producer.send_and_wait(topics.MODELS_CURRENT.name, key=key, value=value, headers=headers)

    async def adopted(self, version: int) -> ModelAdopted:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while version not in self._adopted:
                    for records in (await self._consumer.getmany(timeout_ms=500)).values():
                        for record in records:
                            self._note(unwrap(open_record(record.key, record.value, record.headers)))
        except TimeoutError as error:
            why = "; ".join(each.reason for each in self.refused) or "it said nothing"
            raise SwapBenchFailed(
                f"version {version} was not adopted within {_PATIENCE_S:g} s: {why}"
            ) from error
        return self._adopted[version]

    def _note(self, event: Announcement) -> None:
        match event:
            case ModelAdopted():
                self._adopted.setdefault(event.version, event)
            case AdoptionRefused():
                self.refused.append(event)
            case _:
                pass


@contextlib.asynccontextmanager
async def _process(module: str, asked: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, json.dumps(asked)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            line = await process.stdout.readline()
    except TimeoutError as error:
        raise SwapBenchFailed(
            f"a process of the measurement did not begin within {_PATIENCE_S:g} s"
        ) from error
    if not line:
        raise SwapBenchFailed(
            f"a process of the measurement ended with {await process.wait()}; its error is above"
        )
    return line


async def _end(process: asyncio.subprocess.Process) -> None:
    """By the end of its standard input; a failure is the run's."""
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(_PATIENCE_S):
        code = await process.wait()
    if code != 0:
        raise SwapBenchFailed(f"a process of the measurement ended with {code}; its error is above")


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
