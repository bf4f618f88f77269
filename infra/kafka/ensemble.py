"""Several brokers side by side on this machine: a cluster that goes on when one of them is gone."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from . import ports, storage
from .broker import EmbeddedBroker

_REPLICATED: Mapping[str, str] = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    # A follower that stands still is left behind after so long; 30 s by default.
    "replica.lag.time.max.ms": "5000",
    "controller.quorum.election.timeout.ms": "1000",
    "controller.quorum.fetch.timeout.ms": "2000",
}
"""With three brokers, one may be gone: what is acknowledged is on two."""


class Ensemble:
    """Apache Kafka on one or three nodes, each broker and controller, each on a data folder of its own.

    A context manager; or `start()` and `stop()`. `brokers` are the single ones, to be killed and started
    again: a node that comes back keeps its port.

    data_dir: one folder a node in it.
    brokers: 1 or 3: a quorum of two bears no more than one does.
    advertised: by node id, `host:port` that clients are told to connect to; default: the listeners.
    each: further arguments of every `EmbeddedBroker`.
    """

    def __init__(
        self, data_dir: Path, *, brokers: int = 3, advertised: Mapping[int, str] | None = None, **each: Any
    ) -> None:
        if brokers not in (1, 3):
            raise ValueError(f"an ensemble has 1 or 3 brokers, not {brokers}")
        nodes = range(1, brokers + 1)
        controller_ports: dict[int, int] = {}
        for node in nodes:
            while (port := ports.free_port()) in controller_ports.values():
                pass
            controller_ports[node] = port
        settings = {**(_REPLICATED if brokers == 3 else {}), **each.pop("broker_settings", {})}
        cluster_id = each.pop("cluster_id", None) or storage.new_cluster_id()
        self.brokers = tuple(
            EmbeddedBroker(
                data_dir / f"node-{node}",
                node_id=node,
                controller_ports=controller_ports,
                cluster_id=cluster_id,
                broker_settings=settings,
                advertised=(advertised or {}).get(node),
                **each,
            )
            for node in nodes
        )

    @property
    def bootstrap_servers(self) -> str:
        """All brokers' addresses for clients."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    def start(self) -> Ensemble:
        """Start all and wait until each serves: together, since none serves before there is a quorum.

        Raises what `EmbeddedBroker.start` does; nothing runs then.
        """
        with ThreadPoolExecutor(len(self.brokers)) as pool:
            started = [pool.submit(broker.start) for broker in self.brokers]
        try:
            for each in started:
                each.result()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all, cleanly where they still can."""
        with ThreadPoolExecutor(len(self.brokers)) as pool:
            list(pool.map(EmbeddedBroker.stop, self.brokers))

    def __enter__(self) -> Ensemble:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()
