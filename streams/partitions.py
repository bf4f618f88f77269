"""The partitions of a pipeline's topics, as the cluster has them: some are added, one may be gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from aiokafka import AIOKafkaProducer

from streams.ledger.commit import Partition
from streams.ledger.positions import partition_gone

# How often they are looked at, and how long one must be gone before that is believed.
_COUNT_S = 3.0
_GONE_S = 10.0


class Partitions:
    """Those that count for the watermark, whoever reads them. Asking for them tells of the cluster, too.

    `position` says where the ledger is with one.
    """

    def __init__(self, topics: Iterable[str], position: Callable[[Partition], int | None]) -> None:
        self.known: set[Partition] = set()
        self._topics = list(topics)
        self._position = position
        self._counted_at = 0.0
        self._gone_since: dict[Partition, float] = {}

    def contact_age_s(self) -> float:
        """Seconds since a broker last answered; infinite before the first answer."""
        return time.monotonic() - self._counted_at if self._counted_at else float("inf")

    async def begin(self, producer: AIOKafkaProducer) -> None:
        """Ask for them the first time, by a producer that has started; it is asked from then on."""
        self._client = producer.client
        for topic in self._topics:
            self.known |= {(topic, number) for number in await producer.partitions_for(topic)}

    async def count_now_and_then(self) -> None:
        """As `count`, unless that was a moment ago."""
        if time.monotonic() - self._counted_at > _COUNT_S:
            await self.count()

    async def count(self) -> None:
        """Take in what was added.

        Raises:
            PositionLost: a partition that was read has been gone for a while.
        """
        if not await self._client.force_metadata_update():
            return  # the cluster is away
        now = self._counted_at = time.monotonic()
        for topic in self._topics:
            there = {(topic, n) for n in self._client.cluster.partitions_for_topic(topic) or ()}
            missing = {p for p in self.known if p[0] == topic} - there
            self.known |= there
            self._gone_since = {p: since for p, since in self._gone_since.items() if p not in there}
            for partition in sorted(missing):
                at = self._position(partition)
                if at is not None and now - self._gone_since.setdefault(partition, now) > _GONE_S:
                    raise partition_gone(*partition, at)
