"""The browser of the page's tests: there, or they are skipped and say the way out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.page import browser
from schemas.errors import InvalidConfiguration

REQUIRED = "BROWSER_TESTS"


def find_chromium() -> str:
    """The browser's program. Without one the test is skipped and says the way out; failed if required."""
    try:
        return browser.find()
    except InvalidConfiguration as error:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(str(error))


async def until(holds: Callable[[], Any], what: str, *, within_s: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)
