"""Work beside the answering of questions, in a thread of this process, that holds no answer up.

A thread that runs Python keeps the interpreter for 5 ms before it lets another one have it, and an answer
needs it back after each call into torch: while a model is built, every answer would take some times 5 ms
longer. So for that while threads take turns ten times as often; what that costs is paid by the building.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TURN_S = 0.0005

_lock = threading.Lock()
_inside = 0
_before_s = 0.0


@contextmanager
def aside() -> Iterator[None]:
    """Inside, this process's threads take turns quickly; the last one out sets it back."""
    global _inside, _before_s  # noqa: PLW0603  (the interval is the process's, too)
    with _lock:
        if _inside == 0:
            _before_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_before_s, _TURN_S))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                sys.setswitchinterval(_before_s)
