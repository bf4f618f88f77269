"""A service as a team would write it: one process that follows a model and answers questions over HTTP.

    python -m loadtest.swap.service '{"name": …, "bootstrap_servers": …, "store": …, "trusted_keys": …,
        "folder": …}'

It says its address in one line of JSON once a first model answers, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from aiohttp import web

from schemas.client import ModelFollower


async def serve(asked: dict[str, str]) -> None:
    """Follow and answer until the standard input ends."""
    following = ModelFollower(
        asked["name"],
        client={"bootstrap_servers": asked["bootstrap_servers"]},
        stores=[asked["store"]],
        service="swap-bench",
        cache_dir=Path(asked["folder"]),
        trusted_keys=Path(asked["trusted_keys"]),
    )

    async def predict(request: web.Request) -> web.Response:
        columns = await request.json()
        model = following.current
        if model is None:
            raise web.HTTPServiceUnavailable
        return web.json_response({"version": model.version, "scores": model.predict(columns).tolist()})

    app = web.Application()
    app.router.add_post("/predict", predict)
    runner = web.AppRunner(app, access_log=None)
    async with following:
        await following.ready()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        print(json.dumps({"address": f"http://{host}:{port}/predict"}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(json.loads(sys.argv[1])))
