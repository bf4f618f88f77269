"""Topics come to be as declared, once, whoever asks; and one that differs is an error that says in what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.reach import ClusterUnreachable
from infra.kafka.topics import Difference, TopicMismatch, compare, ensure
from schemas.errors import InvalidConfiguration
from schemas.topics import TOPICS, Topic, Version


@pytest.fixture
def connection(kafka: EmbeddedBroker) -> Connection:
    return Connection(bootstrap_servers=kafka.bootstrap_servers)


@pytest.fixture
def declared(topic: Callable[[str], str]) -> Topic:
    return Topic(
        name=topic("declared"),
        purpose="a test's",
        producer="the test",
        consumers=("the test",),
        key="none",
        versions=(Version(number=1, contracts=()),),
        partitions=3,
        settings={"cleanup.policy": "compact,delete", "retention.ms": "3600000"},
    )


async def test_every_declared_topic_of_the_house_can_be_created_and_then_matches(connection):
    await ensure(TOPICS, connection)
    assert await compare(TOPICS, connection) == ((), ())


async def test_a_missing_topic_is_created_as_declared_and_a_second_call_changes_nothing(connection, declared):
    assert await ensure([declared], connection) == (declared.name,)
    assert await ensure([declared], connection) == ()
    assert await compare([declared], connection) == ((), ())
    differences, _ = await compare(
        [replace(declared, partitions=4, settings={"cleanup.policy": "delete,compact", "retention.ms": "1"})],
        connection,
    )
    assert differences == (
        Difference(topic=declared.name, setting="partitions", declared="4", actual="3"),
        Difference(topic=declared.name, setting="retention.ms", declared="1", actual="3600000"),
    )


async def test_what_was_just_created_takes_records_at_once(connection, declared):
    await ensure([declared], connection)
    async with AIOKafkaProducer(**connection.client_arguments()) as producer:
        await producer.send_and_wait(declared.name, b"v", key=b"k", partition=2)
    arguments = connection.client_arguments() | {"auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(declared.name, **arguments) as consumer:
        assert (await consumer.getone()).value == b"v"


async def test_an_old_event_is_kept_as_long_as_a_new_one(connection, topic):
    raw = replace(TOPICS[0], name=topic("raw"))
    assert raw.settings["retention.ms"] == str(30 * 86_400_000)
    await ensure([raw], connection)
    async with AIOKafkaProducer(**connection.client_arguments()) as producer:
        before_ms = int(time.time() * 1000)
        written = await producer.send_and_wait(raw.name, b"of 2013", timestamp_ms=1_357_020_000_000)
    assert written.timestamp is not None
    assert written.timestamp >= before_ms  # retention counts from here, not from the event's own time


async def test_many_that_create_at_once_agree(connection, declared):
    created = await asyncio.gather(*(ensure([declared], connection) for _ in range(4)))
    assert sorted(created, key=len) == [(), (), (), (declared.name,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"partitions": 5},
            r"partitions is 3, declared is 5 .*kafka-topics --alter --topic .* --partitions 5",
        ),
        ({"partitions": 2}, r"partitions is 3, declared is 2 .*partitions cannot be taken away"),
        (
            {"settings": {"retention.ms": "7200000"}},
            r"retention\.ms is 3600000, declared is 7200000 .*--add-config retention\.ms=7200000",
        ),
        (
            {"settings": {"cleanup.policy": "delete"}},
            r"cleanup\.policy is compact,delete, declared is delete",
        ),
    ],
)
async def test_a_topic_that_differs_is_refused_with_the_setting_and_the_way_out(
    connection, declared, change, message
):
    await ensure([declared], connection)
    with pytest.raises(TopicMismatch, match=rf"topic {declared.name}: {message}"):
        await ensure([replace(declared, **change)], connection)


async def test_a_declaration_that_the_cluster_refuses_is_named(connection, declared):
    with pytest.raises(InvalidConfiguration, match=rf"{declared.name}: .*retention\.ms"):
        await ensure([replace(declared, settings={"retention.ms": "soon"})], connection)
    with pytest.raises(InvalidConfiguration, match=r"replication.factor"):
        await ensure([declared], connection, replication_factor=7)


async def test_an_unreachable_cluster_is_said_to_be_so(declared):
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:9: nobody listens there"):
        await ensure([declared], Connection(bootstrap_servers="127.0.0.1:9"))
