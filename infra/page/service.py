"""The process `tidemill page`: one view, its follower and its server, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from math import inf
from typing import Any

from infra.kafka.connection import Connection
from infra.kafka.reach import reach
from infra.observe import metrics
from infra.observe.instruments import Instruments
from infra.observe.server import Readiness, serve_metrics
from infra.page.access import TOKEN_FILE, port_of, token_of, url_of
from infra.page.follow import Follower, TopicsMissing
from infra.page.server import PageServer
from infra.page.view import SECTIONS, View
from infra.settings import Settings
from schemas.errors import TidemillError
from schemas.signature import TrustedKeys

_LOOK_S = 0.05
_ENDS_WITHIN_S = 5.0


def whereabouts(settings: Settings, *, to_a_person: bool) -> str:
    """Where the page is, or will be: what a person opens.

    A log keeps what it is told, and others read it: there the token is not part of the address.
    """
    token = token_of(settings)
    url = url_of(settings.page.host, port_of(settings), token if to_a_person else None)
    if token is None or to_a_person:
        return f"the page is at [bold]{url}[/]"
    kept = "page.token" if settings.page.token is not None else settings.paths.home / TOKEN_FILE
    return f"the page is at [bold]{url}[/]; add ?token= and the token, which is in {kept}"


async def serve(settings: Settings, connection: Connection) -> None:
    """Serve the page until told to end.

    Raises:
        InvalidConfiguration: its port is taken, or its token cannot be kept.
    """
    view = _view(settings)
    follower = Follower(connection, view)
    server = PageServer(
        view,
        follower,
        connection,
        host=settings.page.host,
        port=port_of(settings),
        token=token_of(settings),
        most_viewers=settings.page.most_viewers,
    )
    instruments = Instruments("page")
    _read_by(server, follower, instruments)
    await server.start()
    following = asyncio.create_task(follower.run())
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, told.set)
    ended = asyncio.create_task(told.wait())
    try:
        async with serve_metrics(
            instruments,
            lambda: _readiness(follower),
            options=settings.metrics,
            port=settings.page.metrics_port,
            setting="page.metrics_port",
        ):
            await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        ended.cancel()
        await server.stop()
        await follower.end(following)


def _read_by(server: PageServer, follower: Follower, instruments: Instruments) -> None:
    read = instruments.read
    read(metrics.CONTACT_AGE, lambda: {(): time.monotonic() - follower.heard_s if follower.heard_s else inf})
    read(metrics.PAGE_REQUESTS, lambda: server.answered)
    read(metrics.PAGE_VIEWERS, lambda: {(): server.viewers})
    read(metrics.PAGE_RECORDS, lambda: follower.records)
    read(metrics.PAGE_CAUGHT_UP, lambda: {(): float(follower.caught_up.is_set())})
    read(metrics.PAGE_REDRIVEN, lambda: {(): server.redriven})


def _readiness(follower: Follower) -> Readiness:
    if not follower.is_connected:
        age_s = time.monotonic() - follower.heard_s if follower.heard_s else inf
        return Readiness(False, f"no broker has answered for {age_s:.0f} s")
    if follower.problem:
        return Readiness(False, follower.problem)
    if not follower.caught_up.is_set():
        return Readiness(False, "the topics are read from their beginning on")
    return Readiness(True)


async def read_once(settings: Settings, connection: Connection) -> dict[str, Any]:
    """All sections as the topics have them now.

    Raises:
        ClusterUnreachable, InvalidConfiguration: no cluster answers.
        TopicsMissing: it lacks topics that the page follows.
    """
    await reach(connection)
    view = _view(settings)
    follower = Follower(connection, view)
    following = asyncio.create_task(follower.run())
    try:
        while not follower.caught_up.is_set():
            if follower.problem:
                raise TopicsMissing(follower.problem)
            await asyncio.sleep(_LOOK_S)
        # The lags too, but for those of topics that do not answer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDS_WITHIN_S):
                while view.road.sources() - view.road.ends.keys():  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
    finally:
        await follower.end(following)
    return {section: view.as_json(section) for section in SECTIONS}


def _view(settings: Settings) -> View:
    file = settings.paths.signing_keys / "trusted.txt"

    def trusted() -> TrustedKeys | None:
        try:
            return TrustedKeys(file) if file.exists() else None
        except TidemillError:  # as `tidemill models` without keys: nothing counts as trusted
            return None

    return View(trusted=trusted)
