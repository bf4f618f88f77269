"""Sends events to a door as fast as it answers: many keep-alive connections, a process of its own.

    python -m loadtest.door.sender '{"port": …, "form": …, "connections": …, "events": …, …}'

Each connection has one request under way. Sockets are bare: an HTTP client would cost more than the door.
What was refused for now, or broke off, is sent again. The sender says "warm" once answers come steadily,
ends when its standard input does, and then says in one line of JSON what it saw; each acknowledgement is a
row (number, partition, offset) of the array in the file `to`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import selectors
import socket
import sys
import time
from array import array
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.door.form import SINGLE, Acknowledged, read, request

_WARM_S = 1.0
_AGAIN_S = 0.1
_PATIENCE_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_READ_BYTES = 1 << 18
_COME_AGAIN = (429, 503)


class Line:
    """One connection and the request that is under way on it."""

    __slots__ = ("inbox", "numbers", "outbox", "sent_s", "socket")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.numbers: list[int] = []
        self.inbox, self.outbox, self.sent_s = b"", b"", 0.0


class Sender:
    """All connections to one door.

    Args:
        events: of one request; 1 for a form that takes one.
        first: number of the first event.
    """

    def __init__(self, *, port: int, form: str, connections: int, events: int, first: int) -> None:
        self._at, self._form = ("127.0.0.1", port), form
        self._each = 1 if form in SINGLE else events
        self._next = first
        self._again: deque[int] = deque()
        self._ready = selectors.DefaultSelector()
        self._ready.register(sys.stdin, selectors.EVENT_READ)
        self._ties = itertools.count()
        self._paused: list[tuple[float, int, Line]] = [
            (0.0, next(self._ties), Line()) for _ in range(connections)
        ]
        self._under_way = 0
        self.acknowledged = array("q")
        self.refused: Counter[int] = Counter()
        self.broken = 0
        self.latencies_ms = array("d")

    def run(self) -> dict[str, Any]:
        """Send until the standard input ends, then wait for what is under way; gives what was seen."""
        warm_s = stop_s = 0.0
        before, after, ended = 0, 0, float("inf")
        while not stop_s or (self._under_way and time.perf_counter() < ended):
            now_s = time.perf_counter()
            while not stop_s and self._paused and self._paused[0][0] <= now_s:
                self._begin(heapq.heappop(self._paused)[2])
            for key, mask in self._ready.select(0.02 if self._paused else 0.2):
                if key.data is None:
                    stop_s = time.perf_counter()
                    ended, after = stop_s + _PATIENCE_S, len(self.acknowledged) // 3
                    self._ready.unregister(sys.stdin)
                else:
                    self._turn(key.data, mask, going_on=not stop_s)
            if not warm_s and self.acknowledged:
                warm_s = time.perf_counter() + _WARM_S
            elif warm_s and not before and time.perf_counter() >= warm_s:
                warm_s, before = time.perf_counter(), len(self.acknowledged) // 3
                self.latencies_ms = array("d")
                print("warm", flush=True)
        used = time.process_time()
        return {
            "acknowledged": len(self.acknowledged) // 3,
            "between": after - before,
            "between_s": stop_s - warm_s,
            "refused": dict(self.refused),
            "broken": self.broken,
            "unanswered": self._under_way,
            "next": self._next,
            "cpu_s": used,
            "latency_ms": dict(
                zip(
                    ("p50", "p99", "max"),
                    np.percentile(self.latencies_ms or [0.0], (50, 99, 100)),
                    strict=True,
                )
            ),
        }

    def _begin(self, line: Line) -> None:
        """Connect if need be, and send the next request."""
        if line.socket is None:
            line.socket = opened = socket.socket()
            opened.settimeout(2.0)
            try:
                opened.connect(self._at)
            except OSError:
                self._drop(line)
                return
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setblocking(False)
            self._ready.register(opened, selectors.EVENT_READ, line)
        self._send(line)

    def _send(self, line: Line) -> None:
        numbers = [self._again.popleft() for _ in range(min(self._each, len(self._again)))]
        fresh = self._each - len(numbers)
        line.numbers = [*numbers, *range(self._next, self._next + fresh)]
        self._next += fresh
        self._under_way += 1
        line.sent_s = time.perf_counter()
        line.outbox = request(self._form, line.numbers)
        self._flush(line)

    def _flush(self, line: Line) -> None:
        assert line.socket is not None
        try:
            line.outbox = line.outbox[line.socket.send(line.outbox) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(line)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.outbox else 0)
        if self._ready.get_key(line.socket).events != wanted:
            self._ready.modify(line.socket, wanted, line)

    def _turn(self, line: Line, mask: int, *, going_on: bool) -> None:
        assert line.socket is not None
        if mask & selectors.EVENT_WRITE:
            self._flush(line)
        if line.socket is None or not mask & selectors.EVENT_READ:
            return
        try:
            came = line.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._drop(line)
            return
        line.inbox += came
        head = line.inbox.find(b"\r\n\r\n")
        if head < 0 or (length := _LENGTH.search(line.inbox, 0, head)) is None:
            return
        whole = head + 4 + int(length[1])
        if len(line.inbox) >= whole:
            self._answered(line, int(line.inbox[9:12]), line.inbox[head + 4 : whole], going_on=going_on)

    def _answered(self, line: Line, status: int, body: bytes, *, going_on: bool) -> None:
        now_s = time.perf_counter()
        self.latencies_ms.append((now_s - line.sent_s) * 1000)
        pause_s = 0.0
        for number, one in zip(line.numbers, read(self._form, status, body, line.numbers), strict=True):
            if isinstance(one, Acknowledged):
                self.acknowledged.extend(one)
            else:
                self.refused[one] += 1
                if one in _COME_AGAIN:
                    self._again.append(number)
                    pause_s = _AGAIN_S
        closes = b"connection: close" in line.inbox[:500].lower()
        line.numbers, line.inbox = [], b""
        self._under_way -= 1
        if closes:
            self._drop(line)
        elif pause_s:
            heapq.heappush(self._paused, (now_s + pause_s, next(self._ties), line))
        elif going_on:
            self._send(line)

    def _drop(self, line: Line) -> None:
        """The connection is gone; whether the request under way arrived is not known."""
        if line.socket is not None:
            with contextlib.suppress(KeyError):
                self._ready.unregister(line.socket)
            line.socket.close()
        if line.numbers:
            self.broken += 1
            self._under_way -= 1
            self._again.extend(line.numbers)
        line.socket, line.numbers, line.inbox, line.outbox = None, [], b"", b""
        heapq.heappush(self._paused, (time.perf_counter() + _AGAIN_S, next(self._ties), line))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    to = Path(asked.pop("to"))
    sender = Sender(**asked)
    seen = sender.run()
    np.save(to, np.frombuffer(sender.acknowledged, dtype=np.int64).reshape(-1, 3))
    print(json.dumps(seen), flush=True)
