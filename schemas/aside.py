"""Work beside the answering of questions, in a thread of this process, that holds no answer up.

Three things would. A thread that runs Python keeps the interpreter for 5 ms before it lets another one have
it, and an answer needs it back after each call into torch: so while a model is built, threads take turns ten
times as often. Turns alone would still be shared half and half: so the building pauses for some times as long
as it has worked, and for as long as an answer is computed, but not for ever. And a full round of the garbage
collector holds the interpreter for as long as it takes to look at every object there is, over 100 ms with
torch imported: so what is imported is taken out of its rounds.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TURN_S = 0.0005
_WORK_S = 0.0003
_PAUSES = 8.0
_ANSWER_S = 0.010
_WAY_S = 0.004

_lock = threading.Lock()
_inside = 0
_before_s = 0.0
_here = threading.local()
_answering: set[int] = set()


@contextmanager
def aside() -> Iterator[None]:
    """Inside, this process's threads take turns quickly; the last one out sets it back."""
    global _inside, _before_s  # noqa: PLW0603  (the interval is the process's, too)
    with _lock:
        if _inside == 0:
            _before_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_before_s, _TURN_S))
        _inside += 1
    _here.worked_until_s = time.thread_time()
    try:
        yield
    finally:
        vars(_here).pop("worked_until_s", None)
        with _lock:
            _inside -= 1
            if _inside == 0:
                sys.setswitchinterval(_before_s)


@contextmanager
def answering() -> Iterator[None]:
    """Inside, this thread computes an answer, and work aside waits for it: see `breathe`."""
    if hasattr(_here, "worked_until_s"):  # the first answer of a model that is being built is part of that
        yield
        return
    thread = threading.get_ident()
    _answering.add(thread)
    try:
        yield
    finally:
        _answering.discard(thread)


def breathe() -> None:
    """Between two steps of work aside: pause for some times as long as this thread has worked since the last.

    And for as long as an answer is computed, up to 10 ms: a service that computes without end takes up new
    models all the same. Elsewhere it does nothing.
    """
    since_s = getattr(_here, "worked_until_s", None)
    if since_s is None:
        return
    worked_s = time.thread_time() - since_s
    if worked_s < _WORK_S and not _answering:
        return
    time.sleep(_PAUSES * worked_s)
    until_s = time.monotonic() + _ANSWER_S
    while _answering and time.monotonic() < until_s:
        time.sleep(_WORK_S)
    _here.worked_until_s = time.thread_time()


async def give_way() -> None:
    """Between two steps of work on the event loop itself: what waits there for its answer is served first."""
    await asyncio.sleep(_WAY_S)


def spare_imports() -> None:
    """Take all objects that are there out of the garbage collector's rounds, after a last one.

    They are modules, classes and functions, which stay for as long as the process. What is made later is
    looked at as ever. A service that has done this itself, or runs without the collector, is left as it is;
    `gc.unfreeze()` takes it back.
    """
    if gc.isenabled() and gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()
        # At the end of the process it may look at all: some extensions complain of what nobody collected.
        atexit.register(gc.unfreeze)
