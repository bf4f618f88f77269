"""The demo's conductor: starts every part as its own process, plays the year, and reports what came of it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infra import stopping
from infra.dataset import Dataset
from infra.demo.flights import DAY_MS, FIRST_DAY_MS
from infra.demo.observer import Observer, Seen
from infra.demo.picture import draw
from infra.demo.player import Player, close_of_day_ms
from infra.demo.report import Report, summarise
from infra.demo.score import Scores, evaluate
from infra.kafka.broker import EmbeddedBroker
from infra.kafka.cluster import embedded_broker
from infra.kafka.connection import Connection, connect_to
from infra.kafka.topics import ensure
from infra.page.access import WROTE
from infra.page.service import whereabouts
from infra.settings import Settings
from infra.supervisor import Supervised, Supervisor, tidemill
from schemas import topics
from schemas.envelope import wrap
from schemas.errors import InvalidConfiguration, Retryable
from schemas.job import JobRequested
from trainers.keys import KeyFolder

T = TypeVar("T")

PIPELINE = "flights"
STATIC = "flights-january"
JANUARY_DAYS = 31
_PATIENCE_S = 120.0
_LOOK_S = 0.5


class DemoStuck(Retryable):
    """Something that the player waits for does not come."""


class Demo:
    """One run over `days` of 2013, everything in `settings.paths.home`."""

    def __init__(
        self,
        settings: Settings,
        *,
        days: int,
        console: Console,
        day_s: float = 0.0,
        on_day: Callable[[int], None] | None = None,
    ) -> None:
        self.settings = settings
        self.days, self.day_s = days, day_s
        self.console = console
        self.home = settings.paths.home
        self._on_day = on_day or (lambda _: None)
        self._broker: EmbeddedBroker | None = None
        self._supervisor = Supervisor()
        self._restarts: Counter[str] = Counter()

    def run(self) -> tuple[Report, Scores]:
        """Play, wait, score. Goes on where an earlier run in the same home was cut off."""
        began = time.monotonic()
        self.home.mkdir(parents=True, exist_ok=True)
        with self._cluster() as connection, self._supervisor:
            stopping.run(ensure(topics.TOPICS, connection))
            self._start_processes(connection)
            return stopping.run(self._kept_alive(self._play(connection, began)))

    @contextmanager
    def _cluster(self) -> Iterator[Connection]:
        if self.settings.kafka.bootstrap_servers is not None:
            yield connect_to(self.settings.kafka)
            return
        self._broker = embedded_broker(self.settings, console=self.console)
        with self._broker as broker:
            yield connect_to(self.settings.kafka, broker.bootstrap_servers)

    def _start_processes(self, connection: Connection) -> None:
        port = self.settings.store.port or _remembered_port(self.home / "store.port")
        environment = {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(self.home),
            "TIDEMILL_STORE__PORT": str(port),
            "TIDEMILL_WORKER__MEMBER": "demo-worker",
            # The player's heartbeats say how far it is: no partition is idle while it waits for a model.
            "TIDEMILL_WORKER__IDLE_TIMEOUT_MS": str(3_600_000),
        }
        keys = KeyFolder(self.settings.paths.signing_keys)
        keys.ensure()
        service = [
            sys.executable, "-m", "schemas.example_service",
            "--bootstrap-servers", connection.bootstrap_servers,
            "--store", f"http://{self.settings.store.host}:{port}/",
            "--model", PIPELINE, "--also", STATIC,
            "--cache-dir", str(self.home / "service"), "--trusted-keys", str(keys.trusted_file),
        ]  # fmt: skip
        said = whereabouts(self.settings, to_a_person=self.console.is_terminal)
        self.console.log(said, highlight=False)
        for name, command in (
            ("trainer", tidemill("trainer")),
            ("worker", tidemill("worker")),
            ("service", service),
            ("page", tidemill("page")),
        ):
            log_file = self.settings.paths.logs / f"{name}.log"
            self._supervisor.start(Supervised(name, command, log_file, environment, vital=name != "page"))

    def _keep_alive(self) -> None:
        """Start again what was killed: worker, trainer, service, and the broker itself."""
        for name in self._supervisor.keep_alive():
            self._restarts[name] += 1
            self.console.log(f"{name} was killed and is started again")
        if self._broker is not None and self._broker.keep_alive():
            self._restarts["broker"] += 1
            self.console.log("the broker was killed and is started again")

    async def _kept_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, and all the while start again what was killed: the broker, too, that it may wait for."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._keep_alive()
                await asyncio.wait({task}, timeout=_LOOK_S)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _play(self, connection: Connection, began: float) -> tuple[Report, Scores]:
        player = await asyncio.to_thread(Player, connection, days=self.days)
        observer = Observer(connection)
        producer = AIOKafkaProducer(**connection.client_arguments(), enable_idempotence=True, acks="all")
        await producer.start()
        await observer.start()
        first = await player.start()
        if first:
            self.console.log(f"going on behind day {first} of {self.days} (begin afresh with --fresh)")
        try:
            with self._progress(first) as advance:
                for day in range(max(first - 1, 0), self.days):
                    day_began_s = time.monotonic()
                    if day >= first:
                        await player.play(day)
                    await self._settle(observer, producer, day)
                    advance(day, observer.seen)
                    self._on_day(day)
                    await asyncio.sleep(max(0.0, day_began_s + self.day_s - time.monotonic()))
            await self._until_answered(observer)
            return await self._report(observer.seen, player, began)
        finally:
            await player.stop()
            await observer.stop()
            await producer.stop()

    async def _settle(self, observer: Observer, producer: AIOKafkaProducer, day: int) -> None:
        """Wait until the day's window is decided on, and what was decided is done and adopted."""
        start_ms = FIRST_DAY_MS + day * DAY_MS
        decision = await self._wait(
            observer, lambda s: s.decisions.get(start_ms), f"the decision on day {day}", "worker"
        )
        if decision.job_id is not None:
            await self._finish(observer, decision.job_id)
        if day == JANUARY_DAYS - 1 or (
            day >= JANUARY_DAYS and not any(name == STATIC for name, _ in observer.seen.published)
        ):
            await self._train_static(observer, producer, day)

    async def _finish(self, observer: Observer, job_id: str) -> None:
        await self._wait(
            observer, lambda s: s.finished(job_id) or None, f"job {job_id} and its model", "trainer"
        )

    async def _train_static(self, observer: Observer, producer: AIOKafkaProducer, day: int) -> None:
        """The model of comparison: the pipeline's own experiment, on January alone, once."""
        job_id = f"{STATIC}-once"
        own = next(iter(observer.seen.requested.values()), None)
        if job_id in observer.seen.requested or own is None:
            if job_id in observer.seen.requested:
                await self._finish(observer, job_id)
            return
        # Its decision is known, on a topic of its own; the window itself may come a moment later.
        start_ms = FIRST_DAY_MS + day * DAY_MS
        window = await self._wait(
            observer, lambda s: s.windows.get(start_ms), f"the window of day {day}", "worker"
        )
        january = msgspec.structs.replace(
            own.experiment.training,
            version=window.dataset_version,
            start_ms=FIRST_DAY_MS,
            end_ms=FIRST_DAY_MS + JANUARY_DAYS * DAY_MS,
        )
        request = JobRequested(
            job_id=job_id,
            experiment=msgspec.structs.replace(
                own.experiment, model=STATIC, training=january, evaluation=None, warm_start=False
            ),
            decision_id=None,
            requested_ms=int(time.time() * 1000),
        )
        key, value, headers = wrap(request, source="/tidemill/demo", time_ms=request.requested_ms).record()
        await producer.send_and_wait(topics.JOBS.name, key=key, value=value, headers=headers)
        await self._finish(observer, job_id)

    async def _until_answered(self, observer: Observer) -> None:
        """Wait until the service's answers stop coming in."""
        known = -1
        while known != len(observer.seen.predictions):
            known = len(observer.seen.predictions)
            await asyncio.sleep(1.0)

    async def _wait(self, observer: Observer, ready: Callable[[Seen], Any], what: str, whose: str) -> Any:
        deadline = time.monotonic() + _PATIENCE_S

        def meanwhile() -> None:
            if time.monotonic() > deadline:
                log_file = self.settings.paths.logs / f"{whose}.log"
                raise DemoStuck(
                    f"waited {_PATIENCE_S:.0f} s for {what}; the {whose}'s log is {log_file}. "
                    "Run the same command again to go on, or with --fresh to begin anew"
                )

        return await observer.wait_for(ready, meanwhile=meanwhile)

    @contextmanager
    def _progress(self, first: int) -> Iterator[Callable[[int, Seen], None]]:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} days"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            bar = progress.add_task("playing 2013", total=self.days, completed=first, said="")

            def advance(day: int, seen: Seen) -> None:
                rows = sum(w.summary.rows for w in seen.windows.values())
                models = [v for name, v in seen.published if name == PIPELINE]
                newest = max(models, default="none yet")
                said = f"{rows:,} flights in {len(seen.windows)} windows; model {newest}"
                progress.update(bar, completed=day + 1, said=said)

            yield advance

    async def _report(self, seen: Seen, player: Player, began: float) -> tuple[Report, Scores]:
        scores = await asyncio.to_thread(
            evaluate,
            seen.predictions,
            list(seen.published.values()),
            live=PIPELINE,
            static=STATIC,
            until_ms=close_of_day_ms(self.days - 1),
        )
        drawn = None
        if scores.total["live"].rows:
            drawn = await asyncio.to_thread(draw, scores, self.home / "scores.png")
        report = await asyncio.to_thread(
            summarise,
            seen,
            scores,
            Dataset(self.settings.paths.dataset / PIPELINE),
            days=self.days,
            events_in=player.events,
            restarts=self._restarts,
            wall_s=time.monotonic() - began,
            artifacts=self.settings.paths.artifacts,
            picture=drawn,
        )
        return report, scores


def _remembered_port(file: Path) -> int:
    """A free port, the same in every run of one home: published models name it."""
    if file.exists():
        return int(file.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file.write_text(str(port))
    return port


def begin_afresh(home: Path) -> None:
    """Delete what an earlier demo left in its folder, and nothing else.

    Raises:
        InvalidConfiguration: the folder holds something that no demo wrote.
    """
    if not home.exists():
        return
    ours = {"kafka", "dataset", "artifacts", "jobs", "logs", "service", "faust", "keys", "store.port",
            "scores.png", "report.json", *WROTE}  # fmt: skip
    foreign = sorted(p.name for p in home.iterdir() if p.name not in ours)
    if foreign:
        raise InvalidConfiguration(
            f"{home} holds {', '.join(foreign)}, which the demo did not write; name another folder by --home"
        )
    shutil.rmtree(home)
