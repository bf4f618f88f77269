"""Who may do what on a cluster with authorization: least rights by part, from the declarations of topics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.topics import Topic

Role = Literal["producer", "worker", "trainer", "service", "admin"]
ROLES: tuple[Role, ...] = ("producer", "worker", "trainer", "service", "admin")


@dataclass(frozen=True, slots=True)
class Acl:
    """One right: `operation` on a resource; a name that ends in `*` is a prefix."""

    role: Role
    operation: str
    resource: Literal["topic", "group", "cluster"]
    name: str

    def command(self, *, user: str) -> str:
        """As Kafka's own tool takes it; `--bootstrap-server` is to be added."""
        prefix = self.name.endswith("*")
        named = {"topic": f"--topic {self.name.rstrip('*')}", "group": f"--group {self.name.rstrip('*')}"}
        where = named.get(self.resource, "--cluster")
        pattern = " --resource-pattern-type prefixed" if prefix else ""
        return f"kafka-acls --add --allow-principal User:{user} --operation {self.operation} {where}{pattern}"


def acls(topics: Sequence[Topic]) -> tuple[Acl, ...]:
    """All rights that the parts need on these topics, each once.

    A worker and a trainer read back what they have announced: their state is the topics'. Only `admin`
    creates topics, for `tidemill topics --create`; a trainer compares those it follows.
    """
    return tuple(dict.fromkeys(_acls(topics)))


def _acls(topics: Sequence[Topic]) -> Iterator[Acl]:
    for topic in topics:
        for operation in ("Create", "Describe", "DescribeConfigs"):
            yield Acl("admin", operation, "topic", topic.name)
        if topic.unknown_fields == "refuse":  # a raw topic
            yield from _of(topic, producer=("Write", "Describe"), worker=("Read", "Describe"))
            continue
        if "worker" in topic.producer:
            yield from _of(topic, worker=("Write", "Read", "Describe"))
        elif "stream worker" in topic.consumers:
            yield from _of(topic, worker=("Read", "Describe"))
        if "trainer" in topic.producer or "trainer" in topic.consumers:
            yield from _of(topic, trainer=("Write", "Read", "Describe", "DescribeConfigs"))
        if "services" in topic.producer:
            yield from _of(topic, service=("Write", "Describe"))
        if "services" in topic.consumers:
            yield from _of(topic, service=("Read", "Describe"))
        # People look on: `tidemill watch`, `why`, `jobs`, and the page.
        yield Acl("admin", "Read", "topic", topic.name)
    yield Acl("worker", "Read", "group", "tidemill-*")
    for role in ("producer", "worker", "trainer"):
        yield Acl(role, "IdempotentWrite", "cluster", "kafka-cluster")


def _of(topic: Topic, **rights: tuple[str, ...]) -> Iterator[Acl]:
    for role, operations in rights.items():
        for operation in operations:
            yield Acl(role, operation, "topic", topic.name)  # type: ignore[arg-type]
