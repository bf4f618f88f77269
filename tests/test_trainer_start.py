"""A trainer that is started while its cluster is still starting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.reach import ClusterUnreachable
from infra.settings import Settings
from infra.settings_model import Kafka, Paths
from trainers.service import await_topics


def settings(home: Path, *, patience_s: float) -> Settings:
    return Settings(paths=Paths(home=home), kafka=Kafka(patience_s=patience_s))


async def test_a_trainer_waits_for_a_cluster_that_comes_after_it(tmp_path: Path) -> None:
    port = free_port()
    broker = EmbeddedBroker(tmp_path / "kafka", port=port)
    connection = Connection(bootstrap_servers=f"127.0.0.1:{port}")
    waiting = asyncio.create_task(await_topics(settings(tmp_path, patience_s=120), connection))
    try:
        await asyncio.sleep(0)
        await asyncio.to_thread(broker.start)
        await waiting
    finally:
        waiting.cancel()
        await asyncio.to_thread(broker.stop)


async def test_a_cluster_that_does_not_come_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnreachable, match="nobody listens there"):
        await await_topics(
            settings(tmp_path, patience_s=0), Connection(bootstrap_servers=f"127.0.0.1:{free_port()}")
        )
