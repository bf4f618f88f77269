"""What a service's followers share: a consumer, a producer, an HTTP client, and turns at what is heavy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from aiokafka import AIOKafkaConsumer

from .. import topics
from .announce import Announcer
from .log import ModelLog, Reader
from .store_client import StoreClient
from .turns import Turns

_FLUSH_S = 3.0
_DOWNLOADS, _DOWNLOAD_S = 4, 30.0
_LOADS, _LOAD_S = 1, 60.0


class Links:
    """Connections of one service, for one follower or many.

    Args:
        client: keyword arguments for aiokafka's clients, at least `bootstrap_servers`.
        stores: base addresses from which artifacts may be taken.
        service: who we are, as our events say it.
        timeout_s: longest wait for a store's connection or its next bytes.
        s3: how to reach stores on S3.

    Raises:
        InvalidConfiguration: a store is no base address, or an option of S3 is none.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        *,
        stores: Sequence[str],
        service: str,
        timeout_s: float,
        s3: Mapping[str, Any] | None,
    ) -> None:
        self._client = dict(client)
        self._log = ModelLog(client)
        self._tasks: list[asyncio.Task[None]] = []
        self.announcer = Announcer(client, topic=topics.MODELS.name, source=f"/service/{quote(service)}")
        self.stores = StoreClient(stores, timeout_s=timeout_s, s3=s3)
        self.downloads = Turns(_DOWNLOADS, longest_s=_DOWNLOAD_S)
        self.loads = Turns(_LOADS, longest_s=_LOAD_S)

    async def start(self, readers: Sequence[Reader], canaries: Sequence[Reader] = ()) -> None:
        """Begin to read for all of them and their canaries.

        Neither the cluster nor a store need be there yet.
        """
        await AIOKafkaConsumer(**self._client).stop()  # a misspelt argument is an error here and now
        roads = [self._log.run(readers), self.announcer.run()]
        if canaries:  # by a consumer of its own: what ails it holds no current model up
            roads.append(self._log.run(canaries))
        self._tasks = [asyncio.create_task(road) for road in roads]

    async def flush(self) -> None:
        """Say what is unsaid, but not for long."""
        if self._tasks:
            await self.announcer.flush(within_s=_FLUSH_S)

    async def stop(self) -> None:
        """Close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.stores.close()
