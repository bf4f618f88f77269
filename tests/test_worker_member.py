"""A worker under a name of its own in the group takes its partitions, whatever that name was given last."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from streams.load import load_pipeline
from tests.worker_fixtures import Cluster, Outcome, Worker, assert_exactly_once, flights, wait_until

MEMBER = "one"


class KnowsNoPartitions(RoundRobinPartitionAssignor):
    """As a leader shares out whose broker has just begun and tells of no topic yet."""

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> dict[str, Any]:
        return {member: ConsumerProtocolMemberAssignment(cls.version, [], b"") for member in members}


async def last_life(cluster: Cluster, group: str, sources: list[str]) -> None:
    """Somebody of that name shared out nothing, and was gone without a word."""
    consumer = AIOKafkaConsumer(
        *sources,
        bootstrap_servers=cluster.connection.bootstrap_servers,
        group_id=group,
        group_instance_id=MEMBER,
        partition_assignment_strategy=[KnowsNoPartitions],
        session_timeout_ms=60_000,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while consumer._coordinator.generation < 1:
                await consumer.getmany(timeout_ms=50)
        assert not consumer.assignment()
    finally:
        await consumer.stop()  # a static member does not leave


def test_what_its_name_was_given_while_no_partition_was_known_does_not_stay(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        worker = Worker(cluster, tmp_path / "named", "named", member=MEMBER)
        sources = list(load_pipeline(str(tmp_path / "named" / "named.py")).pipeline.sources())
        asyncio.run(last_life(cluster, "tidemill-named", sources))
        with worker:
            outcome = Outcome(cluster, worker.home, "named")
            cluster.push(flights(1))
            wait_until(lambda: worker.assert_runs() and outcome.holds_all(), "a day in the dataset")
        assert_exactly_once(outcome)
