"""The warm process that jobs are forked from: run as `python -m trainers.standby`, by `trainers.process`.

It imports once what every training needs (torch and the compiler behind its optimizers take 5 to 12 s of one
core) and then does nothing but fork, kill and reap: a fork takes some 15 ms and its memory is shared. It
computes nothing, so no pool of threads is up, and never touches a GPU: each fork is as good as a process of
its own. (The allocator of polars has threads, and starts them anew in each fork.)

    control   a stream socket, its descriptor in argv: commands in, news out (`trainers.channel`)
    command   b"F" + number, with two descriptors: fork a job; its own channel, and its log
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
import warnings
from collections.abc import Callable
from select import select

from msgspec import Struct

from trainers.channel import packed

COMMAND = struct.Struct(">cQ")
FORK, KILL, MAKE_ROOM = b"F", b"K", b"Y"
YIELD = signal.SIGUSR1
"""Asks a job's process to keep its state and end. Before it has a handler it ends: it has no state yet."""
_PR_SET_PDEATHSIG = 1


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


def main(control: socket.socket) -> None:
    """Serve until the trainer closes the control socket or is gone; then end all jobs."""
    began = time.perf_counter()
    gc.disable()  # a seventh of the imports' time
    cuda, version, run = _warm_up()
    # What is here now is never freed: collecting it would only copy shared pages.
    gc.freeze()
    gc.enable()
    control.sendall(packed(Warm(torch=version, cuda=cuda, warmed_s=time.perf_counter() - began)))
    Server(control, run).serve()


class Server:
    """Forks and reaps; `run` is what a fork does with its channel."""

    def __init__(self, control: socket.socket, run: Callable[[socket.socket], None]) -> None:
        self._control = control
        self._run = run
        self._pids: dict[int, int] = {}
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Until the other side of the control socket is closed."""
        try:
            while True:
                readable, _, _ = select([self._control, self._woken], [], [])
                if self._woken in readable:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                self._reap()
                if self._control in readable and not self._command():
                    return
        except ConnectionError:
            return
        finally:
            for number in list(self._pids):
                self._kill(number)

    def _command(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, 2)
        if len(data) < COMMAND.size:
            return False
        kind, number = COMMAND.unpack(data)
        if kind == FORK:
            self._fork(number, *descriptors)
        elif kind == MAKE_ROOM:
            if pid := self._pids.get(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, YIELD)
        else:
            self._kill(number)
        return True

    def _fork(self, number: int, channel: int, log: int) -> None:
        server = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of any thread; the allocator's know about forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._become_the_job(server, channel, log)  # never returns
        os.close(channel)
        os.close(log)
        self._pids[number] = pid

    def _become_the_job(self, server: int, channel: int, log: int) -> None:
        code = 1
        try:
            os.setsid()  # a group of its own: it is killed with all that it starts
            if self._prctl is not None:
                self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                return
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._woken)
            os.close(self._wake)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            with socket.socket(fileno=channel) as own:
                self._run(own)
            code = 0
        finally:
            # Never back into the server's loop, whatever was raised.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _kill(self, number: int) -> None:
        if pid := self._pids.get(number):
            _kill_group(pid)

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
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
    main(socket.socket(fileno=int(sys.argv[1])))
    # Libraries that were never used complain when they are taken down; nothing here needs to be.
    os._exit(0)
