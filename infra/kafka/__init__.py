"""A real Apache Kafka with no step by hand, or the cluster that is already there."""

from __future__ import annotations

from .broker import BrokerAlreadyRuns, BrokerFailed, EmbeddedBroker
from .cluster import embedded_broker, find_cluster, open_cluster
from .connection import Connection, connect_to
from .ensemble import Ensemble
from .jars import KAFKA_VERSION, JarUnavailable, provide_jars
from .java import JavaRuntime, NoJava, find_java
from .ports import PortInUse
from .reach import ClusterRefuses, ClusterUnreachable, reach
from .running import RunningBroker, running_on
from .storage import StaleData

__all__ = [
    "open_cluster",
    "find_cluster",
    "embedded_broker",
    "Connection",
    "connect_to",
    "EmbeddedBroker",
    "Ensemble",
    "RunningBroker",
    "running_on",
    "reach",
    "ClusterUnreachable",
    "ClusterRefuses",
    "BrokerFailed",
    "BrokerAlreadyRuns",
    "PortInUse",
    "StaleData",
    "KAFKA_VERSION",
    "provide_jars",
    "JarUnavailable",
    "JavaRuntime",
    "find_java",
    "NoJava",
]
