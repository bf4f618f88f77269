"""Serves the artifact store over HTTP, with range requests, so that a broken download goes on."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from aiohttp import web

from infra import atomic_file
from infra.logging import logger
from schemas.errors import InvalidConfiguration

PORT_FILE = ".store-port"

log = logger(__name__)


class StoreServer:
    """GET /<sha256>.safetensors from one folder; nothing else, no listing.

    Published models name its address for ever. So with port 0 the port that was free at the first start is
    written down beside the artifacts and taken again at the next.
    """

    def __init__(self, folder: Path, *, host: str, port: int, public_url: str | None = None) -> None:
        self._folder, self._host, self._port = folder, host, port
        self._public_url = public_url
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Begin serving; gives the address that model events name, with a slash at its end.

        Raises:
            InvalidConfiguration: the port is taken, or the folder cannot be used.
        """
        app = web.Application()
        app.router.add_get("/{name:[0-9a-f]{64}\\.safetensors}", self._artifact)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            await self._listen(self._runner)
            host, port = self._runner.addresses[0][:2]
            if self._port == 0:
                atomic_file.write_text(self._folder / PORT_FILE, str(port))
        except OSError as error:
            await self.stop()
            raise InvalidConfiguration(
                f"the artifact store cannot serve {self._folder} on {self._host}:{self._port}: {error}; "
                "set store.host and store.port to an address that is free, or store.port to 0"
            ) from error
        return (self._public_url or f"http://{host}:{port}").rstrip("/") + "/"

    async def _listen(self, runner: web.AppRunner) -> None:
        former = 0
        if self._port == 0:
            with contextlib.suppress(OSError, ValueError):
                former = int((self._folder / PORT_FILE).read_text(encoding="ascii"))
        try:
            await web.TCPSite(runner, self._host, self._port or former).start()
        except OSError as error:
            if former == 0 or error.errno != errno.EADDRINUSE:
                raise
            log.warning(
                "the store's former port is taken: models that name it cannot be fetched until it is free",
                former=former,
                way_out="set store.port to a port that stays free, or store.public_url",
            )
            await web.TCPSite(runner, self._host, 0).start()

    async def _artifact(self, request: web.Request) -> web.StreamResponse:
        path = self._folder / request.match_info["name"]
        if not path.is_file():
            raise web.HTTPNotFound(text="no such artifact")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
