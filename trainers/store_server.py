"""Serves the artifact store over HTTP, with range requests, so that a broken download goes on."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from schemas.errors import InvalidConfiguration


class StoreServer:
    """GET /<sha256>.safetensors from one folder; nothing else, no listing."""

    def __init__(self, folder: Path, *, host: str, port: int, public_url: str | None = None) -> None:
        self._folder, self._host, self._port = folder, host, port
        self._public_url = public_url
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Begin serving; gives the address that model events name.

        Raises:
            InvalidConfiguration: the port is taken.
        """
        app = web.Application()
        app.router.add_get("/{name:[0-9a-f]{64}\\.safetensors}", self._artifact)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, self._host, self._port)
            await site.start()
        except OSError as error:
            raise InvalidConfiguration(
                f"the artifact store cannot listen on {self._host}:{self._port}: {error.strerror}; "
                "set store.port to a free port, or to 0"
            ) from error
        host, port = self._runner.addresses[0][:2]
        return (self._public_url or f"http://{host}:{port}").rstrip("/") + "/"

    async def _artifact(self, request: web.Request) -> web.StreamResponse:
        path = self._folder / request.match_info["name"]
        if not path.is_file():
            raise web.HTTPNotFound(text="no such artifact")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
