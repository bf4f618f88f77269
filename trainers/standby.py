"""The warm process that jobs are forked from: run as `python -m trainers.standby`, by `trainers.process`.

It imports once what every training needs (torch and the compiler behind its optimizers take 5 to 12 s of one
core) and then does nothing but fork, kill and reap: a fork takes 15 ms, on a busy machine many times that,
and its memory is shared. So one fork is always made ahead, and a job begins in it at once. The warm process
computes nothing, so no pool of threads is up, and never touches a GPU: each fork is as good as a process of
its own. (The allocator of polars has threads, and starts them anew in each fork.)

    control   a stream socket, its descriptor in argv: commands in, news out (`trainers.channel`)
    command   b"B" + number, with two descriptors: begin a job; its own channel, and its log
              b"K" + number: kill that job with all that it started
              b"Y" + number: tell that job to make room (signal `YIELD`)
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from select import select
from typing import NamedTuple

import msgspec
from msgspec import Struct

from infra.job_user import JobUser
from trainers.channel import YIELD, packed

COMMAND = struct.Struct(">cQ")
BEGIN, KILL, MAKE_ROOM = b"B", b"K", b"Y"
WARM_NAME, SPARE_NAME, JOB_NAME = "tidemill warm", "tidemill spare", "tidemill job"
"""What `top` and `ps` call the processes: at most 15 bytes."""
_SPARE_AFTER_S, _SPARE_AGAIN_S = 0.02, 1.0
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15


class Warm(Struct, frozen=True, kw_only=True, tag="warm"):
    """All is imported. `cuda` is the CUDA version that torch was built for; None: it knows no GPU."""

    torch: str
    cuda: str | None
    warmed_s: float


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """A job's process is gone. `code` is its exit code, negative for a signal; `cpu_s` what it computed."""

    number: int
    code: int
    most_memory_bytes: int
    cpu_s: float = 0.0


News = Warm | Ended


def main(control: socket.socket, user: JobUser | None = None) -> None:
    """Serve until the trainer closes the control socket or is gone; then end all jobs."""
    began = time.perf_counter()
    gc.disable()  # a seventh of the imports' time
    cuda, version, run = _warm_up()
    # What is here now is never freed: collecting it would only copy shared pages.
    gc.freeze()
    gc.enable()
    control.sendall(packed(Warm(torch=version, cuda=cuda, warmed_s=time.perf_counter() - began)))
    Server(control, run, user).serve()


class _Spare(NamedTuple):
    """A fork that has no job yet, and the line by which it gets one: its channel and its log."""

    pid: int
    line: socket.socket


class Server:
    """Forks and reaps; `run` is what a fork does with its channel, as `user` if one is named."""

    def __init__(
        self, control: socket.socket, run: Callable[[socket.socket], None], user: JobUser | None = None
    ) -> None:
        self._control = control
        self._run = run
        self._user = user
        self._pids: dict[int, int] = {}
        self._spare: _Spare | None = None
        self._no_spare_before_s = 0.0
        self._lost: set[int] = set()
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._call_myself(WARM_NAME)

    def serve(self) -> None:
        """Until the other side of the control socket is closed."""
        try:
            while True:
                wait_s = None if self._spare else max(0.0, self._no_spare_before_s - time.monotonic())
                readable, _, _ = select([self._control, self._woken], [], [], wait_s)
                if not readable:  # nobody waits: time for the next one's process
                    self._prepare()
                    continue
                if self._woken in readable:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                self._reap()
                if self._control in readable and not self._command():
                    return
        except ConnectionError:
            return
        finally:
            if self._spare is not None:
                _kill_group(self._spare.pid)
            for number in list(self._pids):
                self._kill(number)

    def _command(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, 2)
        if len(data) < COMMAND.size:
            return False
        kind, number = COMMAND.unpack(data)
        if kind == BEGIN:
            try:
                self._begin(number, descriptors)
            finally:
                for each in descriptors:
                    os.close(each)
        elif kind == MAKE_ROOM:
            if pid := self._pids.get(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, YIELD)
        else:
            self._kill(number)
        return True

    def _prepare(self) -> None:
        try:
            self._spare = self._fork()
        except OSError as error:
            # Nothing hangs on it yet.
            self._no_spare_before_s = time.monotonic() + _SPARE_AGAIN_S
            print(f"no process can be made ahead: {error}", file=sys.stderr, flush=True)

    def _begin(self, number: int, descriptors: list[int]) -> None:
        """Give a job to the spare; to a new fork if that was killed meanwhile, or is not there yet."""
        self._no_spare_before_s = time.monotonic() + _SPARE_AFTER_S  # the job's own start goes first
        if self._spare is not None:
            spare, self._spare = self._spare, None
            if self._hand_over(spare, number, descriptors):
                return
            self._lost.add(spare.pid)
        try:
            fork = self._fork()
        except OSError as error:
            print(f"no process for a job: {error}", file=sys.stderr, flush=True)
            # As if it had been killed at once: for want of memory, mostly. It is tried again.
            self._control.sendall(packed(Ended(number=number, code=-signal.SIGKILL, most_memory_bytes=0)))
            return
        if not self._hand_over(fork, number, descriptors):
            self._pids[number] = fork.pid  # its end will be told

    def _hand_over(self, fork: _Spare, number: int, descriptors: list[int]) -> bool:
        with fork.line:
            try:
                socket.send_fds(fork.line, [BEGIN], descriptors)
            except OSError:
                return False
        self._pids[number] = fork.pid
        return True

    def _fork(self) -> _Spare:
        server = os.getpid()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                with warnings.catch_warnings():
                    # Python 3.12 and later warn of any thread; the allocator's know about forks.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                ours.close()
                self._become_a_job(server, theirs)  # never returns
        return _Spare(pid, ours)

    def _become_a_job(self, server: int, line: socket.socket) -> None:
        code = 1
        try:
            os.setsid()  # a group of its own: it is killed with all that it starts
            if self._user is not None:
                self._user.become()
                if self._prctl is not None:
                    self._prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own /proc/self is root's
            if self._prctl is not None:
                self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                return
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._woken)
            os.close(self._wake)
            self._call_myself(SPARE_NAME)
            _, descriptors, _, _ = socket.recv_fds(line, 1, 2)
            line.close()
            code = 0
            if len(descriptors) < 2:
                return  # there is no job, and no warm process
            code = 1
            self._call_myself(JOB_NAME)
            channel, log = descriptors
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            with socket.socket(fileno=channel) as own:
                self._run(own)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            # Never back into the server's loop, whatever was raised.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _call_myself(self, name: str) -> None:
        if self._prctl is not None:
            self._prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)

    def _kill(self, number: int) -> None:
        if pid := self._pids.get(number):
            _kill_group(pid)

    def _reap(self) -> None:
        if self._spare is not None and _is_over(self._spare.pid):
            # Killed from outside, perhaps for want of memory: not at once again.
            self._spare.line.close()
            self._lost.add(self._spare.pid)
            self._spare, self._no_spare_before_s = None, time.monotonic() + _SPARE_AGAIN_S
        for pid in [pid for pid in self._lost if _is_over(pid)]:
            os.waitpid(pid, 0)
            self._lost.remove(pid)
        for number, pid in list(self._pids.items()):
            if not _is_over(pid):
                continue
            _kill_group(pid)  # what it left behind; its id is not given to others before it is reaped
            _, status, usage = os.wait4(pid, 0)
            del self._pids[number]
            ended = Ended(
                number=number,
                code=os.waitstatus_to_exitcode(status),
                most_memory_bytes=usage.ru_maxrss * 1024,
                cpu_s=usage.ru_utime + usage.ru_stime,
            )
            self._control.sendall(packed(ended))


def _is_over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # it may not have made its group yet


def _warm_up() -> tuple[str | None, str, Callable[[socket.socket], None]]:
    # A pool of threads would not survive the fork.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import numpy.ctypeslib  # noqa: F401  what turning arrays into tensors imports when first used
    import polars.ml.torch  # noqa: F401  # pyright: ignore[reportMissingImports]
    import torch

    from trainers import child

    # Making an optimizer imports torch's compiler; using one would start threads.
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
    return torch.version.cuda, str(torch.__version__), child.run


if __name__ == "__main__":
    main(
        socket.socket(fileno=int(sys.argv[1])),
        msgspec.json.decode(sys.argv[2], type=JobUser) if len(sys.argv) > 2 else None,
    )
    # Libraries that were never used complain when they are taken down; nothing here needs to be.
    os._exit(0)
