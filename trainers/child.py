"""A job's own process, just forked from the standby: one assignment in, reports out, then it ends.

Its standard output and error are the job's log. Whatever user code does here ends with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from schemas.errors import Rejected, Retryable
from trainers.assignment import Assignment, Began, Done, Failed, Progress, Report, Skipped, Yielded
from trainers.channel import YIELD, decoder, packed, receive
from trainers.checkpoint import Checkpoints, MadeRoom
from trainers.ranks import in_ranks, lost_a_rank
from trainers.rows import NothingToTrainOn
from trainers.work import perform

_PROGRESS_EVERY_S = 0.1
NICENESS = 5
_FIRST_TO_GO = b"500"
_WALLS_HINT = (
    "; jobs write to temporary files and to the folders that trainer.job_writes names, and read neither keys "
    "nor other jobs' folders (trainer.job_walls)"
)
decoder(Assignment)  # made while the warm process imports this, for all that are forked from it


def run(channel: socket.socket) -> None:
    """Take the assignment from the channel, do it, say what came of it."""
    assignment = receive(channel, Assignment)
    if assignment is not None:
        work_on(assignment, channel.sendall, pid=os.getpid())


def work_on(assignment: Assignment, send: Callable[[bytes], object], *, pid: int) -> None:
    """Do it, and say so by `send`; `pid` is what the trainer is to watch."""
    say = _Reporter(send)
    checkpoints = Checkpoints(
        Path(assignment.checkpoint) if assignment.checkpoint else None, assignment.run_key
    )
    signal.signal(YIELD, lambda *_: checkpoints.ask())
    say(Began(pid=pid, started_ms=int(time.time() * 1000)))
    _settle_in(assignment)
    ranks = assignment.job.experiment.resources.ranks
    if ranks == 1:
        _do(assignment, say, checkpoints)
        return
    try:
        in_ranks(ranks, lambda rank: _do(assignment, say, checkpoints, rank), name=assignment.job.job_id)
    except Exception as error:  # what the agent raises once it begins them no more
        traceback.print_exc()
        say(Failed(reason=f"its ranks died time and again: {type(error).__name__}", retryable=True))


def _do(assignment: Assignment, say: _Reporter, checkpoints: Checkpoints, rank: int = 0) -> None:
    """All of the work, or one rank's share of it; rank 0 says what came of it."""
    if rank > 0:
        perform(assignment, say.progress, checkpoints, rank)
        return
    try:
        outcome = perform(assignment, say.progress, checkpoints)
        assert outcome is not None
        say(Done(outcome=outcome))
    except MadeRoom:
        say(Yielded(checkpointed=True))
    except NothingToTrainOn as reason:
        say(Skipped(reason=str(reason)))
    except (Rejected, Retryable) as error:
        traceback.print_exc()
        say(Failed(reason=str(error), retryable=isinstance(error, Retryable)))
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        # The device's fault, or its neighbours': another device, or a later time, may serve.
        traceback.print_exc()
        say(Failed(reason=f"{type(error).__name__}: {error}"[:2000], retryable=True))
    except BaseException as error:  # user code may raise anything, SystemExit too
        if assignment.job.experiment.resources.ranks > 1 and lost_a_rank(error):
            raise  # the agent begins all of them again
        traceback.print_exc()
        behind_walls = isinstance(error, PermissionError) and assignment.walls is not None
        say(Failed(reason=f"{type(error).__name__}: {error}"[:2000] + (_WALLS_HINT if behind_walls else "")))


def _settle_in(assignment: Assignment) -> None:
    """A good neighbour: a lower priority than the streams, first to go when memory ends, no core dumps."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_FIRST_TO_GO)
    os.environ["POLARS_MAX_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(assignment.threads)
    if assignment.gpu_uuids:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(assignment.gpu_uuids)
    if assignment.walls is not None:
        assignment.walls.go_up()  # a fork has one thread: they hold for all that come


class _Reporter:
    """Sends reports; progress at most some times a second, since user code may call it in its inner loop."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._said_s = -_PROGRESS_EVERY_S

    def __call__(self, report: Report) -> None:
        with self._lock:
            self._send(packed(report))

    def progress(self, step: int, of: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._said_s < _PROGRESS_EVERY_S and step < of:
            return
        self._said_s = now
        # JSON has no NaN; a curve with a hole says it as well.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self(Progress(step=step, of=of, metrics=finite))
