"""Ports on the loopback interface: which are free, and who holds the others."""

from __future__ import annotations

import errno
import socket

import psutil

from schemas.errors import InvalidConfiguration

from .running import MAIN_CLASS
from .storage import LISTEN_HOST


class PortInUse(InvalidConfiguration):
    """Somebody else listens on the port that the broker was told to use."""


def in_use(port: int) -> PortInUse:
    """The error for a port that the broker cannot have, with its holder if the system tells."""
    holder = holder_of(port) or ("root alone (ports below 1024)" if port < 1024 else "another process")
    return PortInUse(
        f"port {port} is in use by {holder}; stop that, or set broker.port to a free one (0 finds one)"
    )


def refuse_busy(port: int) -> None:
    """Raises PortInUse unless the broker could listen on `port`."""
    if not is_free(port):
        raise in_use(port)


def is_free(port: int) -> bool:
    """Whether the broker could listen on `port`."""
    with socket.socket() as probe:
        # As the broker will, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LISTEN_HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_port(preferred: int | None = None) -> int:
    """`preferred` if it is free, else one that is; it may be taken again before it is used."""
    if preferred and is_free(preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind((LISTEN_HOST, 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody accepts connections on `port`."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LISTEN_HOST, port)) == 0


def holder_of(port: int) -> str | None:
    """Who listens on TCP `port` here, in words; None if nobody, or if the system does not tell."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return None
    for connection in connections:
        address: tuple[str, int] | tuple[()] = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address[1:] == (port,) and connection.pid:
            try:
                process = psutil.Process(connection.pid)
                name = "an embedded Kafka broker" if MAIN_CLASS in process.cmdline() else process.name()
            except psutil.Error:
                name = "a process"
            return f"{name} (pid {connection.pid})"
    return None
