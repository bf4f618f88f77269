"""Tell the cluster what was adopted and refused, in the background: serving never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer

from ..contract import Announcement
from ..envelope import wrap
from ..trace import TRACEPARENT, Place

log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 1.0
_REQUEST_MS = 5_000
_REMEMBERED = 1000


class Announcer:
    """Sends events in their order until the cluster holds each; an event outlives an outage of the cluster.

    After a lost answer an event may be there twice, under one id.
    """

    def __init__(self, client: Mapping[str, Any], *, topic: str, source: str) -> None:
        self._client, self._topic, self._source = dict(client), topic, source
        self._unsaid: deque[tuple[Announcement, Place | None]] = deque(maxlen=_REMEMBERED)
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()

    def say(self, event: Announcement, *, place: Place | None = None) -> None:
        """Have the event sent, at its place of a trace if it has one; returns at once."""
        self._unsaid.append((event, place))
        self._nothing.clear()
        self._something.set()

    async def flush(self, *, within_s: float) -> None:
        """Wait until all is said, but not longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._nothing.wait()

    async def run(self) -> None:
        """Send, until cancelled."""
        while True:
            # A producer's end waits for what is unsent as long as a request may take.
            producer = AIOKafkaProducer(**{"request_timeout_ms": _REQUEST_MS, **self._client}, acks="all")
            try:
                await producer.start()
                await self._send_all(producer)
            except Exception as error:
                log.warning("events of this service wait for the cluster: %s", error)
            finally:
                await asyncio.gather(producer.stop(), return_exceptions=True)
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def _send_all(self, producer: AIOKafkaProducer) -> None:
        while True:
            await self._something.wait()
            while self._unsaid:
                unsaid = self._unsaid[0]
                event, place = unsaid
                extensions = None if place is None else {TRACEPARENT: place.traceparent}
                now_ms = int(time.time() * 1000)
                envelope = wrap(event, source=self._source, time_ms=now_ms, extensions=extensions)
                key, value, headers = envelope.record()
                await producer.send_and_wait(self._topic, key=key, value=value, headers=headers)
                if self._unsaid and self._unsaid[0] is unsaid:
                    self._unsaid.popleft()
            self._something.clear()
            self._nothing.set()
