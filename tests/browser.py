"""A real Chromium, driven over its own DevTools protocol: what a test sees is what a person would."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
REQUIRED = "BROWSER_TESTS"
WAY_OUT = "no Chromium is here; install it: apt-get install --no-install-recommends chromium"


def find_chromium() -> str:
    """The browser's program. Without one the test is skipped and says the way out; failed if required."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(WAY_OUT)
    return found


class Browser:
    """One page of one browser, in a profile of its own."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
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
            [find_chromium(), *arguments, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port_file = self._profile / "DevToolsActivePort"
        await until(lambda: port_file.exists() and len(port_file.read_text().splitlines()) > 1, "the browser")
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
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; gives its result."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(60):
            while True:
                said = json.loads((await self._socket.receive()).data)
                if said.get("id") == number:
                    assert "error" not in said, (method, said["error"])
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
        assert "exceptionDetails" not in got, (expression, got["exceptionDetails"])
        return got["result"].get("value")

    async def wait(self, expression: str, *, within_s: float = 60.0) -> Any:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + within_s
        while not (found := await self.js(expression)):
            if time.monotonic() > deadline:
                shown = await self.js("document.body.innerText")
                raise AssertionError(f"not within {within_s:g} s: {expression}\n{self.errors}\n{shown}")
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


async def until(holds: Callable[[], Any], what: str, *, within_s: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)
