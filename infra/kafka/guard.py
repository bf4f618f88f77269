"""Keeps a broker no longer than the process that started it: run as a script of its own, stdlib only.

The parent holds the other end of this process's stdin. When that closes, or our parent is another one, the
parent is gone, however it died: the broker gets SIGTERM and, if it stays, SIGKILL. On Linux the broker is
killed, too, when this process itself is. (Asking the kernel to end the broker with the parent directly would
bind it to the *thread* that started it.)

    guard.py [--detached] COMMAND...      prints the command's pid; --detached leaves it running and ends
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

TERM_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    detached = arguments[0] == "--detached"
    command = arguments[1:] if detached else arguments
    parent = os.getppid()
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,  # ours is the parent's pipe
        start_new_session=detached,
        preexec_fn=None if detached else _die_with_guard,  # noqa: PLW1509  one thread here: safe
    )
    print(child.pid, flush=True)
    if detached:
        child.returncode = 0  # no longer ours to wait for
        return 0
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        readable, _, _ = select.select([0, child_ended], [], [], 1.0)
        if child_ended in readable:
            os.read(child_ended, 64)
        elif 0 in readable or os.getppid() != parent:
            child.terminate()
            try:
                child.wait(TERM_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
