"""Three brokers side by side: with one of them killed the cluster goes on, and what it acknowledged stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from infra.kafka import Ensemble


def test_an_ensemble_has_one_or_three_brokers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or 3 brokers, not 2"):
        Ensemble(tmp_path, brokers=2)


async def send(servers: str, values: range) -> None:
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait("t", str(value).encode(), partition=0)


async def held(servers: str) -> list[int]:
    tp = TopicPartition("t", 0)
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        found: list[int] = []
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(tp, timeout_ms=1_000)).values():
                found += [int(record.value or b"") for record in records]
        return found


async def leader(servers: str, *, make: bool = False) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        if make:
            await admin.create_topics([NewTopic("t", 1, 3)], timeout_ms=10_000)
        while True:
            (topic,) = await admin.describe_topics(["t"])
            leaders = [p["leader"] for p in topic["partitions"]]
            if leaders and leaders[0] > 0:
                return leaders[0]
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


def test_what_was_acknowledged_stays_when_the_leader_is_killed(tmp_path: Path) -> None:
    with Ensemble(tmp_path, start_timeout_s=180) as ensemble:
        servers = ensemble.bootstrap_servers
        assert len({broker.port for broker in ensemble.brokers}) == 3
        first = asyncio.run(leader(servers, make=True))
        asyncio.run(send(servers, range(20)))
        killed = ensemble.brokers[first - 1]
        port = killed.port
        killed.kill()
        left = ",".join(b.bootstrap_servers for b in ensemble.brokers if b is not killed)
        asyncio.run(send(left, range(20, 40)))
        assert asyncio.run(held(left)) == list(range(40))
        assert asyncio.run(leader(left)) != first
        killed.start()
        assert killed.port == port
