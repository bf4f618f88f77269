"""The process `tidemill page`: one view, its follower and its server, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from infra.kafka.connection import Connection
from infra.page.access import port_of, token_of, url_of
from infra.page.follow import Follower
from infra.page.server import PageServer
from infra.page.view import SECTIONS, View
from infra.settings import Settings
from schemas.errors import TidemillError
from schemas.signature import TrustedKeys


def address(settings: Settings) -> str:
    """Where the page is, or will be: what a person opens, with the token if there is one."""
    return url_of(settings.page.host, port_of(settings), token_of(settings))


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
    await server.start()
    following = asyncio.create_task(follower.run())
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, told.set)
    ended = asyncio.create_task(told.wait())
    try:
        await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        ended.cancel()
        await server.stop()
        await follower.end(following)


async def read_once(settings: Settings, connection: Connection) -> dict[str, Any]:
    """All sections as the topics have them now."""
    view = _view(settings)
    follower = Follower(connection, view)
    following = asyncio.create_task(follower.run())
    try:
        await follower.caught_up.wait()
        while follower.heard_s == 0.0 or (not view.road.ends and view.road.sources()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
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
