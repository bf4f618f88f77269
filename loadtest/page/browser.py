"""A real Chromium, driven over its own DevTools protocol: what is seen is what a person would see."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp

from schemas.errors import InvalidConfiguration, Retryable

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WAY_OUT = "no Chromium is here; install it: apt-get install --no-install-recommends chromium"
_STARTS_WITHIN_S = 60.0


class NotSeen(Retryable):
    """The browser does not show what is waited for."""


def find() -> str:
    """The browser's program.

    Raises:
        InvalidConfiguration: there is none.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise InvalidConfiguration(WAY_OUT)
    return found


class Browser:
    """One page of one browser, in a profile of its own: `async with Browser(find(), folder) as browser`."""

    _process: subprocess.Popen[bytes]
    _session: aiohttp.ClientSession
    _socket: aiohttp.ClientWebSocketResponse

    def __init__(self, program: str, profile: Path) -> None:
        self._program, self._profile = program, profile
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        """Exceptions and errors of the page's console."""

    async def __aenter__(self) -> Browser:
        # As root there is no sandbox to be had.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        arguments = [
            "--headless=new",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-port=0",
            *sandbox,
        ]
        self._profile.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(  # noqa: ASYNC220  (it forks, and that is all)
            [self._program, *arguments, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port_file = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while not (port_file.exists() and len(port_file.read_text().splitlines()) > 1):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise NotSeen(f"{self._program} did not start within {_STARTS_WITHIN_S:g} s")
            await asyncio.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as got:
            target = next(each for each in await got.json() if each["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**27)
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            await self.command(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()
        await self._session.close()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; gives its result.

        Raises:
            NotSeen: the browser refuses it, or has ended.
        """
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(60):
            while True:
                message = await self._socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise NotSeen(f"the browser has ended, asked for {method}")
                said = json.loads(message.data)
                if said.get("id") == number:
                    if "error" in said:
                        raise NotSeen(f"{method}: {said['error']}")
                    return said["result"]
                self._heard(said)

    def _heard(self, said: dict[str, Any]) -> None:
        params = said.get("params", {})
        if said.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif said.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def js(self, expression: str) -> Any:
        """What an expression comes to in the page."""
        got = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in got:
            raise NotSeen(f"{expression}: {got['exceptionDetails']}")
        return got["result"].get("value")

    async def wait(self, expression: str, *, within_s: float = 60.0) -> Any:
        """Wait until an expression is true in the page; gives it.

        Raises:
            NotSeen: it does not come in time; the message has the page's errors and text.
        """
        deadline = time.monotonic() + within_s
        while not (found := await self.js(expression)):
            if time.monotonic() > deadline:
                shown = await self.js("document.body.innerText")
                raise NotSeen(f"not within {within_s:g} s: {expression}\n{self.errors}\n{shown}")
            await asyncio.sleep(0.1)
        return found

    async def press(self, key: str) -> None:
        """A key goes down and up."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            await self.command(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text
            )
