"""The process `tidemill trainer`: one trainer and its artifact store, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from infra.kafka.connection import Connection
from infra.kafka.reach import patiently
from infra.kafka.topics import ensure
from infra.observe.instruments import Instruments
from infra.observe.server import Readiness, serve_metrics
from infra.observe.traces import begin
from infra.settings import Settings
from schemas.errors import InvalidConfiguration
from trainers.bulletin import FOLLOWED
from trainers.store_server import StoreServer
from trainers.stores import Stores
from trainers.trainer import Trainer

LOCK_FILE = "trainer.lock"


async def run_trainer(settings: Settings, connection: Connection) -> None:
    """Run a trainer until SIGTERM or SIGINT. Jobs at work then are run again at the next start.

    Raises:
        InvalidConfiguration: another trainer works in the same folder, a port is taken, a topic differs.
        StandbyDied: no process for jobs comes up.
        ClusterUnreachable: no broker answers, also after `kafka.patience_s`.
    """
    with _alone(settings.paths.jobs):
        async with _observed(settings) as observed:
            await _run(settings, connection, observed)


@dataclass
class _Observed:
    """What is served from the first moment on, and what it comes to be read of."""

    instruments: Instruments
    trainer: Trainer | None = None

    def readiness(self) -> Readiness:
        if self.trainer is None:
            return Readiness(False, "the cluster's topics are not reached yet")
        return self.trainer.readiness()


@contextlib.asynccontextmanager
async def _observed(settings: Settings) -> AsyncIterator[_Observed]:
    """Metrics and probes, where a port is set for them."""
    begun = _Observed(Instruments("trainer"))
    async with serve_metrics(
        begun.instruments,
        begun.readiness,
        options=settings.metrics,
        port=settings.trainer.metrics_port,
        setting="trainer.metrics_port",
    ):
        yield begun


async def _run(settings: Settings, connection: Connection, observed: _Observed) -> None:
    await await_topics(settings, connection)
    stores = Stores.of(settings)
    server, address = None, stores.address
    if address is None:
        server = StoreServer(
            settings.paths.artifacts,
            host=settings.store.host,
            port=settings.store.port,
            public_url=settings.store.public_url,
        )
        address = await server.start()
    traces = begin(settings.traces, part="trainer")
    trainer = Trainer(
        settings,
        connection,
        store_url=address,
        stores=stores,
        instruments=observed.instruments,
        traces=traces,
    )
    observed.trainer = trainer
    try:
        await _until_told(_work(trainer))
    finally:
        await trainer.stop()
        if traces is not None:
            await asyncio.to_thread(traces.end)
        if server is not None:
            await server.stop()


async def await_topics(settings: Settings, connection: Connection) -> None:
    """The trainer's topics. A cluster that is starting again, as after a power cut, is waited for."""
    replicas = settings.kafka.replication_factor
    asked = partial(ensure, FOLLOWED, connection, replication_factor=replicas)
    await patiently(asked, patience_s=settings.kafka.patience_s)


async def _work(trainer: Trainer) -> None:
    await trainer.start()
    await trainer.run()


async def _until_told(work: asyncio.Future[None] | object) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, told.set)
    working = asyncio.ensure_future(work)  # type: ignore[arg-type]
    waiting = asyncio.create_task(told.wait())
    done, _ = await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working not in done:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    else:
        await working


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two trainers over one folder would each run every job."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InvalidConfiguration(
            f"another trainer works in {folder}; stop it, or give this one a paths.jobs of its own"
        ) from error
    with lock:
        yield
