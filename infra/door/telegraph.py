"""The door's producer: idempotent, and replaced once it cannot go on.

An idempotent producer counts its batches by partition. After a batch that failed for good there is a gap in
the count and the cluster takes nothing more of it, so every failure calls for a new one.
"""

from __future__ import annotations

import asyncio
import time
from math import inf

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from infra.kafka.connection import Connection
from infra.logging import logger

log = logger(__name__)

_AGAIN_S = 0.5
_STOP_S = 5.0


class Telegraph:
    """Gives the producer to send by.

    Args:
        batch_bytes: most bytes of one batch; a larger record travels alone.
    """

    def __init__(self, connection: Connection, *, batch_bytes: int) -> None:
        self._connection, self._batch_bytes = connection, batch_bytes
        self._producer: AIOKafkaProducer | None = None
        self._heard_s = -inf
        self.replaced = 0
        """Producers that lost a batch for good."""
        self._renewing: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: the cluster does not answer.
        """
        self._producer = await self._connected()

    async def producer(self) -> AIOKafkaProducer:
        """One that works, as far as is known; waits while a new one connects."""
        while self._producer is None:
            assert self._renewing is not None, "not started"
            await asyncio.shield(self._renewing)
        return self._producer

    def connected(self) -> bool:
        """Whether there is one at this moment."""
        return self._producer is not None

    def failed(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        """That producer lost a batch for good: the next one sends by another."""
        if producer is not self._producer:
            return
        log.warning("the producer is replaced", error=str(error) or type(error).__name__)
        self._producer = None
        self.replaced += 1
        self._leave(producer)
        self._renewing = asyncio.create_task(self._renew())

    def heard(self) -> None:
        """The cluster has answered just now."""
        self._heard_s = time.monotonic()

    def contact_age_s(self) -> float:
        """Since the cluster last answered; infinite before that."""
        return time.monotonic() - self._heard_s

    async def ask(self) -> None:
        """Have the cluster say what it has; waits while it is away."""
        if await (await self.producer()).client.force_metadata_update():
            self.heard()

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has by what the cluster said last.

        Raises:
            KafkaError: it has no such topic, or does not answer.
        """
        return len(await (await self.producer()).partitions_for(topic))

    async def stop(self) -> None:
        """Wait until everything has its answer, at most for some seconds, and disconnect."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self._producer is not None:
            self._leave(self._producer)
            self._producer = None
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _leave(self, producer: AIOKafkaProducer) -> None:
        task = asyncio.create_task(_stopped(producer))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _renew(self) -> None:
        while True:
            try:
                self._producer = await self._connected()
                return
            except KafkaError as error:
                log.warning("no producer yet", error=str(error) or type(error).__name__)
            await asyncio.sleep(_AGAIN_S)

    async def _connected(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._connection.client_arguments(),
            client_id="tidemill-door",
            enable_idempotence=True,
            acks="all",
            max_batch_size=self._batch_bytes,
            metadata_max_age_ms=30_000,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self.heard()
        return producer


async def _stopped(producer: AIOKafkaProducer) -> None:
    # It flushes first, and an idempotent one would try for ever while the cluster is away.
    try:
        await asyncio.wait_for(producer.stop(), _STOP_S)
    except TimeoutError:
        log.warning("the producer is left with batches that the cluster did not confirm")
        await producer.client.close()
    except KafkaError as error:
        log.warning("the producer ended badly", error=str(error) or type(error).__name__)
