"""A real Apache Kafka with no step by hand, or the cluster that is already there."""

from __future__ import annotations

from .broker import BrokerAlreadyRuns, BrokerFailed, EmbeddedBroker, PortInUse
from .jars import KAFKA_VERSION, JarUnavailable, provide_jars
from .java import JavaRuntime, NoJava, find_java
from .running import RunningBroker, running_on
from .storage import StaleData

__all__ = [
    "EmbeddedBroker",
    "RunningBroker",
    "running_on",
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
