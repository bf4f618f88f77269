"""Is the broker ready? Asked by Kafka's own protocol: a port that answers is not yet a broker that serves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

T = TypeVar("T")


async def serving_cluster(
    bootstrap_servers: str, *, timeout_ms: int = 3_000, **connection: Any
) -> str | None:
    """The id of the cluster that answers at `bootstrap_servers` with a live broker; None if none does yet."""
    client = AIOKafkaAdminClient(
        bootstrap_servers=bootstrap_servers,
        request_timeout_ms=timeout_ms,
        client_id="tidemill-ready",
        **connection,
    )
    with _quiet():
        try:
            await client.start()
            answer = await client.describe_cluster()
        except (KafkaError, OSError, TimeoutError):
            return None
        finally:
            await client.close()
    return answer["cluster_id"] if answer["brokers"] else None


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread and loop of its own, so that callers may be inside a loop already."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(asyncio.run(work()))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="kafka-ready")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """aiokafka logs each refused connection as an error; while a broker starts they are expected."""
    logger = logging.getLogger("aiokafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
