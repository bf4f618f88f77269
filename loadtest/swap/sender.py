"""Asks a service at a steady rate, whatever it answers: an open loop, a process of its own.

    python -m loadtest.swap.sender '{"address": …, "rate_per_s": …, "rows": …, "to": …}'

Each request has a moment at which it is due, and its latency is counted from there: a service that stands
still is not asked any less. The sender says a line once it begins, and ends when its standard input does.
Then it writes what it saw to the file `to`, one line of JSON a request: [due_ms since the epoch, latency_ms,
version or null, scores or why it failed].
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from loadtest.swap.question import question

_PATIENCE_S = 10.0


async def send(asked: dict[str, Any]) -> None:
    """Ask until the standard input ends."""
    body = json.dumps(question(asked["rows"])).encode()
    apart_s = 1.0 / asked["rate_per_s"]
    seen: list[tuple[float, float, int | None, Any]] = []
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    epoch_s = time.time() - time.perf_counter()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)
    ) as http:

        async def ask(due_s: float) -> None:
            version, said = None, None
            try:
                async with http.post(asked["address"], data=body) as answer:
                    got = await answer.json() if answer.status == 200 else {}
                    version, said = got.get("version"), got.get("scores", f"status {answer.status}")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                said = repr(error)
            seen.append(((due_s + epoch_s) * 1000, (time.perf_counter() - due_s) * 1000, version, said))

        print("asking", flush=True)
        due_s = time.perf_counter()
        # Left only when each request has its answer, or was given up.
        async with asyncio.TaskGroup() as open_requests:
            while not ended.done():
                due_s += apart_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                open_requests.create_task(ask(due_s))
    lines = "".join(json.dumps(each) + "\n" for each in seen)
    await asyncio.to_thread(Path(asked["to"]).write_text, lines, encoding="ascii")


if __name__ == "__main__":
    asyncio.run(send(json.loads(sys.argv[1])))
