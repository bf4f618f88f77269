"""A door from its first connection to its last answer."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web
from aiokafka.errors import KafkaError
from rich.console import Console

from infra.door.intake import Intake
from infra.door.server import Handler
from infra.door.stream import FRAMING_BYTES, Stream
from infra.door.telegraph import Telegraph
from infra.door.tokens import tokens_of
from infra.kafka.connection import Connection
from infra.kafka.reach import ask, await_cluster
from infra.kafka.topics import ensure
from infra.logging import logger
from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.observe.server import Readiness, serve_metrics
from infra.settings import Settings
from infra.stopping import asked_to_stop
from schemas.errors import InvalidConfiguration, Retryable
from schemas.topics import raw_topics

log = logger(__name__)

_BATCH_BYTES = 512 * 1024
_YOUNG_OBJECTS = 50_000
"""So many more than there were begin a collection: an event in flight has some ten."""
_LATEST_S = 5.0
"""On top of `door.answer_within_s`: by then every request has its answer."""
CLOSES_WITHIN_S = 15.0
"""On top of the same: by then a door that was asked to close has."""
OPEN = "the door is open at"


@dataclass(frozen=True, kw_only=True)
class Open:
    """A door that is open."""

    url: str
    intake: Intake
    streams: tuple[str, ...]


@contextlib.asynccontextmanager
async def open_door(
    settings: Settings, connection: Connection, *, shares_port: bool = False
) -> AsyncIterator[Open]:
    """A door for the time of the block. Then nothing new is let in, and what is inside gets its answer.

    Args:
        shares_port: other doors listen on the same port.

    Raises:
        InvalidConfiguration: the port is taken, tokens are missing, or a topic is not as declared.
        ClusterUnreachable, ClusterRefuses: no broker answers, or none that takes us.
    """
    door, tokens = settings.door, tokens_of(settings.door)
    streams = {t.name: Stream(t, most_bytes=door.event_bytes) for t in raw_topics()}
    server = await await_cluster(connection, patience_s=settings.kafka.patience_s)
    await ensure(raw_topics(), connection, replication_factor=settings.kafka.replication_factor)
    host, _, port = server.rpartition(":")
    cluster_id = (await ask(connection, host, int(port), timeout_s=5.0)).cluster_id
    smallest = min(stream.most_bytes for stream in streams.values())
    telegraph = Telegraph(connection, batch_bytes=min(_BATCH_BYTES, smallest + FRAMING_BYTES))
    instruments = Instruments("door")
    intake = Intake(
        telegraph,
        tuple(streams),
        most_records=door.in_flight_records,
        most_bytes=door.in_flight_bytes,
        answer_within_s=door.answer_within_s,
        confirmed=lambda seconds: instruments.took(metrics.DOOR_CONFIRM_SECONDS, seconds),
    )
    try:
        await telegraph.start()
        await intake.start()
    except KafkaError as error:
        await intake.stop()
        raise Retryable(
            f"the cluster does not let the door in ({error}); try again, or `tidemill doctor`"
        ) from error
    handler = Handler(door, intake, streams, tokens, cluster_id=cluster_id)
    http = web.Server(handler, access_log=None)
    runner = web.ServerRunner(http, shutdown_timeout=door.answer_within_s + _LATEST_S)
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, door.host, door.port, reuse_port=shares_port or None).start()
        except OSError as error:
            raise InvalidConfiguration(
                f"the door cannot listen on {door.host}:{door.port}: {error}; set door.host and door.port "
                "to an address that is free"
            ) from error
        at, number = runner.addresses[0][:2]
        url = f"http://{f'[{at}]' if ':' in at else at}:{number}"
        _read_by(handler, intake, instruments)
        async with serve_metrics(
            instruments,
            lambda: _readiness(intake, settings.metrics.contact_ms / 1000),
            options=settings.metrics,
            port=door.metrics_port,
            setting="door.metrics_port",
        ):
            yield Open(url=url, intake=intake, streams=tuple(streams))
    finally:
        # In this order: nobody comes in, who is inside is answered, what was taken is flushed.
        for site in list(runner.sites):
            await site.stop()
        await handler.farewell(lambda: len(http.connections))
        await runner.cleanup()
        await intake.stop()


def _collect_seldom() -> None:
    """What is loaded by now stays: looking through it for garbage took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def _read_by(handler: Handler, intake: Intake, instruments: Instruments) -> None:
    telegraph = intake.telegraph
    instruments.read(metrics.CONTACT_AGE, lambda: {(): telegraph.contact_age_s()})
    instruments.read(metrics.DOOR_REQUESTS, lambda: handler.answered)
    instruments.read(metrics.DOOR_EVENTS, lambda: handler.events)
    instruments.read(metrics.DOOR_RECORDS, lambda: {(): intake.records})
    instruments.read(metrics.DOOR_BYTES, lambda: {(): intake.size_bytes})
    instruments.read(metrics.DOOR_PRODUCERS, lambda: {(): telegraph.replaced})


def _readiness(intake: Intake, contact_s: float) -> Readiness:
    telegraph = intake.telegraph
    if not telegraph.connected():
        return Readiness(False, "no producer is connected to the cluster")
    if (age_s := telegraph.contact_age_s()) > contact_s:
        return Readiness(False, f"no broker has answered for {age_s:.0f} s")
    return Readiness(True)


async def run_door(
    settings: Settings, connection: Connection, console: Console, *, shares_port: bool = False
) -> None:
    """Keep a door open until Ctrl-C or SIGTERM. Raises what `open_door` raises."""
    with asked_to_stop() as stop:
        async with open_door(settings, connection, shares_port=shares_port) as door:
            console.print(f"{OPEN} {door.url}/v1/events/STREAM", highlight=False, soft_wrap=True)
            console.print(f"streams: {', '.join(door.streams)}", highlight=False, soft_wrap=True)
            _collect_seldom()
            await stop.wait()
            console.print("closing: what was let in is answered first")
    console.print("closed; every event that was acknowledged is on the cluster")
