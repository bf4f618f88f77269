"""Is the broker ready? Asked by Kafka's own protocol: a port that answers is not yet a broker that serves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .connection import Connection
from .reach import ClusterUnreachable, ask

T = TypeVar("T")


async def serving_cluster(host: str, port: int, *, timeout_s: float = 3.0) -> str | None:
    """The id of the cluster that answers at this listener with a live broker; None if none does yet.

    The broker's advertised address is not used: it may be a proxy's that does not run yet.
    """
    try:
        answer = await ask(Connection(bootstrap_servers=f"{host}:{port}"), host, port, timeout_s=timeout_s)
    except ClusterUnreachable:
        return None
    return answer.cluster_id if answer.brokers else None


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread and loop of its own, so that callers may be inside a loop already."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(asyncio.run(work()))
        except BaseException as error:  # handed over to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=body, name="kafka-ready")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
