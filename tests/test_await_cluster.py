"""A process that is started while its cluster is still starting."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.ports import free_port
from infra.kafka.reach import ClusterUnreachable, await_cluster


async def test_a_cluster_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    broker = EmbeddedBroker(tmp_path / "kafka", port=port)
    connection = Connection(bootstrap_servers=f"127.0.0.1:{port}")
    waiting = asyncio.create_task(await_cluster(connection, patience_s=120))
    try:
        await asyncio.sleep(0)
        await asyncio.to_thread(broker.start)
        assert await waiting == f"127.0.0.1:{port}"
    finally:
        waiting.cancel()
        await asyncio.to_thread(broker.stop)


async def test_patience_ends() -> None:
    connection = Connection(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(ClusterUnreachable, match="nobody listens there"):
        await await_cluster(connection, patience_s=0)


def test_a_worker_without_a_cluster_says_that_it_waits_and_then_what_is_wrong(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "infra.command", "worker"],
        env={
            **os.environ,
            "TIDEMILL_PATHS__HOME": str(tmp_path),
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
            "TIDEMILL_KAFKA__PATIENCE_S": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert "no broker answers yet, waiting" in said
    assert "nobody listens there" in said
