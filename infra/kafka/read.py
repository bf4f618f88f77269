"""Reading topics from where they begin to where they end now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection


async def read_to_end(connection: Connection, tails: Mapping[str, int | None]) -> AsyncIterator[Any]:
    """Records of whole topics, or of the last so many offsets of each partition, to where they end now."""
    consumer = AIOKafkaConsumer(
        *tails,
        **connection.client_arguments(),
        enable_auto_commit=False,
        isolation_level="read_committed",
        # A fetch that waits for more holds up every other question on its connection: half a second each.
        fetch_max_wait_ms=20,
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(t, n) for t in tails for n in consumer.partitions_for_topic(t) or ()]
        consumer.unsubscribe()
        consumer.assign(partitions)
        firsts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        unread = set()
        for tp in partitions:
            tail = tails[tp.topic]
            start = firsts[tp] if tail is None else max(firsts[tp], ends[tp] - tail)
            if start < ends[tp]:
                unread.add(tp)
                consumer.seek(tp, start)
            else:
                consumer.pause(tp)
        while unread:
            for tp, records in (await consumer.getmany(*unread, timeout_ms=1000)).items():
                for record in records:
                    if record.offset < ends[tp]:
                        yield record
            unread -= {tp for tp in unread if await consumer.position(tp) >= ends[tp]}
    finally:
        await consumer.stop()
