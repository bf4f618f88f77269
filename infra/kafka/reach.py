"""Why a cluster cannot be reached: name, connection, TLS and credentials are told apart, step by step."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from infra.logging import logger
from schemas.errors import InvalidConfiguration, Retryable

from .connection import Connection

CLOSE_TIMEOUT_S = 0.1
_LOOK_AGAIN_S = 1.0

log = logger(__name__)

T = TypeVar("T")


class ClusterUnreachable(Retryable):
    """No broker answered; it may later."""


class ClusterRefuses(InvalidConfiguration):
    """A broker answered and will not have us: TLS or credentials are wrong."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one broker says about its cluster."""

    cluster_id: str
    brokers: tuple[tuple[int, str, int], ...]
    """(node id, host, port) of each live broker, as clients are told to connect."""


async def reach(connection: Connection, *, timeout_s: float = 5.0) -> str:
    """The first bootstrap server, as `host:port`, that answers Kafka's protocol and accepts us.

    Every broker that it names is tried as well, since clients talk to those, not to the bootstrap servers.
    Raises ClusterUnreachable, or ClusterRefuses as soon as one refuses; the message names server and way out.
    """
    problems: list[str] = []
    try:
        hosts = collect_hosts(connection.bootstrap_servers, randomize=False)
    except ValueError as error:
        raise InvalidConfiguration(
            f"kafka.bootstrap_servers {connection.bootstrap_servers!r} is not host:port,host:port"
        ) from error
    for host, port, _family in hosts:
        try:
            answer = await ask(connection, host, port, timeout_s=timeout_s)
        except ClusterUnreachable as problem:
            problems.append(str(problem))
            continue
        others = [broker for broker in answer.brokers if broker[1:] != (host, port)]
        await asyncio.gather(*(_try_advertised(connection, broker, timeout_s) for broker in others))
        return f"{host}:{port}"
    raise ClusterUnreachable("; ".join(problems))


async def await_cluster(connection: Connection, *, patience_s: float) -> str:
    """As `reach`, but a cluster that is starting again, as after a power cut, is waited for.

    Raises ClusterUnreachable once the patience is at an end, ClusterRefuses at once.
    """
    return await patiently(partial(reach, connection), patience_s=patience_s)


async def patiently(step: Callable[[], Awaitable[T]], *, patience_s: float) -> T:
    """What a step of a start gives that needs the cluster, tried again while no broker answers.

    One that answered the step before may have died since, and comes back. Raises what the step raised once
    the patience is at an end; what would be no other the next time, at once.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return await step()
        except (ClusterUnreachable, KafkaError) as error:
            may_pass = isinstance(error, ClusterUnreachable) or error.retriable
            if not may_pass or time.monotonic() > deadline_s:
                raise
            log.warning("no broker answers yet, waiting", error=str(error), at_most_s=patience_s)
        await asyncio.sleep(_LOOK_AGAIN_S)


async def ask(connection: Connection, host: str, port: int, *, timeout_s: float) -> Answer:
    """What the broker at `host:port` says about its cluster. Raises ClusterUnreachable or ClusterRefuses."""
    arguments = connection.client_arguments()
    del arguments["bootstrap_servers"]
    arguments["request_timeout_ms"] = int(timeout_s * 1000)
    with _explained(connection, f"{host}:{port}", timeout_s):
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answering = AIOKafkaConnection(host, port, **arguments)
        try:
            await answering.connect()
            response = await answering.send(MetadataRequest([]))
        finally:
            # The socket closes a moment later; a loop that ends before that leaves it open with a warning.
            if closed := answering.close():
                await asyncio.wait([closed], timeout=CLOSE_TIMEOUT_S)
    assert response is not None
    metadata = response.to_object()
    brokers = tuple((broker["node_id"], broker["host"], broker["port"]) for broker in metadata["brokers"])
    return Answer(cluster_id=metadata["cluster_id"], brokers=brokers)


async def _try_advertised(connection: Connection, broker: tuple[int, str, int], timeout_s: float) -> None:
    node_id, host, port = broker
    try:
        await ask(connection, host, port, timeout_s=timeout_s)
    except ClusterUnreachable as problem:
        raise ClusterUnreachable(
            f"broker {node_id} tells clients to connect to {problem} (its advertised.listeners must be an "
            "address that this machine reaches)"
        ) from problem


@contextmanager
def _explained(connection: Connection, where: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as error:
        raise ClusterUnreachable(
            f"{where}: no such host ({error.strerror}); correct kafka.bootstrap_servers, or check "
            "the name service"
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise ClusterRefuses(
            f"{where}: its certificate is not trusted ({error.verify_message}); name the authority that "
            "signed it by kafka.ssl_ca_file"
        ) from error
    except ssl.SSLError as error:
        raise ClusterRefuses(
            f"{where}: no TLS there ({error.reason}); check that this is the TLS listener's port and that "
            f"kafka.security_protocol {connection.security_protocol} is what it speaks"
        ) from error
    except UnsupportedSaslMechanismError as error:
        raise ClusterRefuses(
            f"{where}: SASL mechanism {connection.sasl_mechanism} is not offered there; set "
            "kafka.sasl_mechanism to one that is"
        ) from error
    except SaslAuthenticationFailed as error:
        raise ClusterRefuses(
            f"{where}: refuses user {connection.sasl_username!r} ({error}); check kafka.sasl_username, "
            "kafka.sasl_password and kafka.sasl_mechanism"
        ) from error
    except IllegalSaslStateError as error:
        raise ClusterRefuses(
            f"{where}: does not expect SASL; set kafka.security_protocol to what that listener speaks"
        ) from error
    except TimeoutError as error:
        raise ClusterUnreachable(
            f"{where}: no answer within {timeout_s:g} s; a firewall drops packets, or the listener "
            f"wants TLS and kafka.security_protocol is {connection.security_protocol}"
        ) from error
    except ConnectionRefusedError as error:
        raise ClusterUnreachable(
            f"{where}: nobody listens there; start the cluster, or correct kafka.bootstrap_servers"
        ) from error
    except (KafkaConnectionError, ConnectionError) as error:
        raise ClusterUnreachable(
            f"{where}: closed the connection during the first exchange; kafka.security_protocol "
            f"{connection.security_protocol} is probably not what that listener speaks, or it wants a client "
            "certificate (kafka.ssl_certificate_file)"
        ) from error
    except (KafkaError, OSError) as error:
        raise ClusterUnreachable(f"{where}: {error}") from error
