"""Topics as declared: created when missing, compared when there, never changed behind anybody's back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, for_code

from schemas.errors import InvalidConfiguration, Retryable
from schemas.topics import Topic

from .connection import Connection
from .reach import reach

NO_ERROR = 0
ALREADY_EXISTS = 36
CREATE_TIMEOUT_S = 30.0


class TopicMismatch(InvalidConfiguration):
    """A topic is there with other settings than its declaration's. `differences` has them all."""

    def __init__(self, differences: Collection[Difference]) -> None:
        super().__init__("; ".join(str(difference) for difference in differences))
        self.differences = tuple(differences)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting of one topic."""

    topic: str
    setting: str
    declared: str
    actual: str

    def __str__(self) -> str:
        return f"{self.fact}; {self.way_out}"

    @property
    def fact(self) -> str:
        """What differs."""
        return (
            f"topic {self.topic}: {self.setting} is {self.actual}, declared is {self.declared} "
            "(in schemas/topics.py)"
        )

    @property
    def way_out(self) -> str:
        """What a person may do about it."""
        if self.setting != "partitions":
            return (
                f"correct the declaration, or the topic: kafka-configs --alter --entity-type topics "
                f"--entity-name {self.topic} --add-config {self.setting}={self.declared}"
            )
        if int(self.actual) < int(self.declared):
            return (
                f"correct the declaration, or add partitions (keys then move between them): kafka-topics "
                f"--alter --topic {self.topic} --partitions {self.declared}"
            )
        return "correct the declaration, or delete the topic and its records: partitions cannot be taken away"


async def ensure(
    topics: Iterable[Topic], connection: Connection, *, replication_factor: int = -1
) -> tuple[str, ...]:
    """Create what is missing of `topics` and compare what is there; the names that this call created.

    `replication_factor` -1 is the cluster's own default. May run from several processes at once, and again.
    Raises TopicMismatch for all differences together, ClusterUnreachable, ClusterRefuses, or
    InvalidConfiguration when the cluster refuses to create a topic.
    """
    declared = {topic.name: topic for topic in topics}
    admin = await _admin(connection)
    try:
        there = await _partition_counts(admin)
        missing = [topic for name, topic in declared.items() if name not in there]
        created = await _create(admin, missing, replication_factor) if missing else ()
        if missing:
            there = await _until_known(admin, declared)
        differences = await _compare(admin, declared, there)
    finally:
        await admin.close()
    if differences:
        raise TopicMismatch(differences)
    return created


async def compare(
    topics: Iterable[Topic], connection: Connection
) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    """(what differs from the declarations, which topics are not there yet). Changes nothing."""
    declared = {topic.name: topic for topic in topics}
    admin = await _admin(connection)
    try:
        there = await _partition_counts(admin)
        known = {name: topic for name, topic in declared.items() if name in there}
        return await _compare(admin, known, there), tuple(name for name in declared if name not in there)
    finally:
        await admin.close()


async def _admin(connection: Connection) -> AIOKafkaAdminClient:
    admin = AIOKafkaAdminClient(client_id="tidemill-topics", **connection.client_arguments())
    try:
        await admin.start()
    except KafkaConnectionError:
        await admin.close()
        await reach(connection)  # says why
        raise
    return admin


async def partitions_of(connection: Connection) -> dict[str, int]:
    """How many partitions each topic of the cluster has.

    Raises:
        ClusterUnreachable, ClusterRefuses: see `reach`.
    """
    admin = await _admin(connection)
    try:
        return await _partition_counts(admin)
    finally:
        await admin.close()


async def _partition_counts(admin: AIOKafkaAdminClient) -> dict[str, int]:
    described = await admin.describe_topics()
    return {
        topic["topic"]: len(topic["partitions"]) for topic in described if topic["error_code"] == NO_ERROR
    }


async def _create(
    admin: AIOKafkaAdminClient, missing: list[Topic], replication_factor: int
) -> tuple[str, ...]:
    # -1 is only accepted beside an assignment that is not None; an empty one leaves it to the cluster.
    assignment: dict[int, list[int]] | None = {} if replication_factor == -1 else None
    wanted = [
        NewTopic(topic.name, topic.partitions, replication_factor, assignment, dict(topic.settings))
        for topic in missing
    ]
    response = await admin.create_topics(wanted, timeout_ms=int(CREATE_TIMEOUT_S * 1000))
    created, refused = [], []
    for name, code, *message in response.topic_errors:  # pyright: ignore[reportAttributeAccessIssue]
        if code == NO_ERROR:
            created.append(name)
        elif code != ALREADY_EXISTS:  # somebody else was quicker; it is compared like any other
            reason = next((text for text in message if text), for_code(code).__name__)
            refused.append(f"topic {name}: {reason}")
    if refused:
        raise InvalidConfiguration(
            f"the cluster refuses to create {'; '.join(refused)}; correct its declaration in "
            "schemas/topics.py, kafka.replication_factor, or the permissions of this user"
        )
    return tuple(created)


async def _until_known(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, int]:
    """Creation is acknowledged by the controller; the brokers learn of it a moment later."""
    deadline = time.monotonic() + CREATE_TIMEOUT_S
    while True:
        there = await _partition_counts(admin)
        unknown = [name for name in names if name not in there]
        if not unknown:
            return there
        if time.monotonic() > deadline:
            raise Retryable(
                f"topics {', '.join(unknown)} were created, but the brokers do not know them after "
                f"{CREATE_TIMEOUT_S:.0f} s; check the cluster's health and start again"
            )
        await asyncio.sleep(0.02)


async def _compare(
    admin: AIOKafkaAdminClient, declared: Mapping[str, Topic], there: Mapping[str, int]
) -> tuple[Difference, ...]:
    if not declared:
        return ()
    actual = await _settings_of(admin, declared)
    differences = []
    for name, topic in declared.items():
        pairs = {"partitions": (str(topic.partitions), str(there[name]))}
        for setting, value in topic.settings.items():
            pairs[setting] = (value, actual[name].get(setting, "unknown to this cluster"))
        differences += [
            Difference(topic=name, setting=setting, declared=wanted, actual=found)
            for setting, (wanted, found) in pairs.items()
            if _listed(wanted) != _listed(found)
        ]
    return tuple(differences)


async def _settings_of(
    admin: AIOKafkaAdminClient, declared: Mapping[str, Topic]
) -> dict[str, dict[str, str]]:
    asked = [
        ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(topic.settings))
        for name, topic in declared.items()
        if topic.settings
    ]
    found: dict[str, dict[str, str]] = {name: {} for name in declared}
    for response in await admin.describe_configs(asked) if asked else ():
        for code, message, _type, name, entries in response.resources:  # pyright: ignore[reportAttributeAccessIssue]
            if code != NO_ERROR:
                raise InvalidConfiguration(
                    f"topic {name}: its settings cannot be read ({message or for_code(code).__name__}); "
                    "give this user the permission to describe topic configurations"
                )
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _listed(value: str) -> list[str]:
    """Some settings are lists, in any order: compact,delete is delete,compact."""
    return sorted(part.strip() for part in value.split(","))
