"""The process that jobs are forked from, with work of its own choosing instead of torch."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from trainers.channel import receive
from trainers.standby import BEGIN, COMMAND, JOB_NAME, KILL, SPARE_NAME, Ended, News

T = TypeVar("T")

# A job says who it is, and does what it hears.
SERVER = """
import os, socket, sys
from trainers.standby import Server

def run(own):
    own.sendall(b"%d" % os.getpid())
    if own.recv(1) == b"x":
        os._exit(7)

Server(socket.socket(fileno=int(sys.argv[1])), run).serve()
"""


@dataclass
class Standby:
    control: socket.socket
    process: psutil.Process
    log: Path
    jobs: int = 0

    def begin(self) -> tuple[int, socket.socket]:
        """A job's number and our end of its channel."""
        self.jobs += 1
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        with theirs, self.log.open("ab") as log:
            socket.send_fds(self.control, [COMMAND.pack(BEGIN, self.jobs)], [theirs.fileno(), log.fileno()])
        return self.jobs, ours

    def news(self) -> Ended:
        said = receive(self.control, News)  # type: ignore[arg-type]
        assert isinstance(said, Ended)
        return said

    def spare(self, but_not: int = 0) -> psutil.Process:
        """The process that is made ahead; another than one that is known."""
        return until(
            lambda: next(
                (p for p in self.process.children() if named(p, SPARE_NAME) and p.pid != but_not), None
            )
        )


def named(process: psutil.Process, name: str) -> bool:
    try:
        return process.name() == name and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(holds: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 30
    while (found := holds()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(theirs.fileno())], pass_fds=(theirs.fileno(),)
        )
    with ours, server:
        yield Standby(ours, psutil.Process(server.pid), tmp_path / "log")
        ours.shutdown(socket.SHUT_RDWR)
        server.wait(30)


def test_a_job_begins_in_the_process_that_was_made_ahead_and_the_next_is_made_at_once(
    standby: Standby,
) -> None:
    spare = standby.spare()
    number, channel = standby.begin()
    with channel:
        assert int(channel.recv(20)) == spare.pid
        assert spare.name() == JOB_NAME
        assert standby.spare(but_not=spare.pid).pid != spare.pid
        channel.sendall(b"x")
        assert (ended := standby.news()).number == number
        assert ended.code == 7


def test_two_jobs_at_once_have_a_process_each_and_one_is_killed_alone(standby: Standby) -> None:
    (first, one), (second, two) = standby.begin(), standby.begin()
    with one, two:
        assert int(one.recv(20)) != int(two.recv(20))
        standby.control.sendall(COMMAND.pack(KILL, first))
        assert (standby.news().number, standby.jobs) == (first, second)
        two.sendall(b"x")
        ended = standby.news()
        assert (ended.number, ended.code) == (second, 7)
        assert ended.most_memory_bytes > 2**20


def test_a_spare_that_is_killed_costs_no_job(standby: Standby) -> None:
    spare = standby.spare()
    spare.kill()  # were it given a job this very moment, that would be a job killed: told of, and tried again
    until(lambda: None if named(spare, SPARE_NAME) else True)
    _, channel = standby.begin()
    with channel:
        assert int(channel.recv(20)) != spare.pid
        channel.sendall(b"x")
        assert standby.news().code == 7
    until(lambda: None if psutil.pid_exists(spare.pid) else True)  # reaped


def test_what_is_forked_ends_with_the_warm_process_whatever_ends_that(standby: Standby) -> None:
    _, channel = standby.begin()
    with channel:
        job = psutil.Process(int(channel.recv(20)))
        spare = standby.spare(but_not=job.pid)
        standby.process.kill()
        _, alive = psutil.wait_procs([job, spare], timeout=30)
        assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
