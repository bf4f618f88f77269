"""The outbox over the dataset's log: what a commit announces goes out, also after a crash in between.

A version's announcements are awaited before the next version's are sent. So the newest version found on
the topics may be announced in part, all before it whole, all after it not at all: that one version is
announced again, without the ids that are there already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from schemas import topics
from schemas.decision import Decision
from schemas.envelope import Envelope, NotAnAnnouncement, open_record, unwrap_as
from schemas.window import WindowClosed
from streams.announce import Announced
from streams.trigger import History

OUTBOX_TOPICS = (topics.FEATURES.name, topics.WINDOWS.name, topics.DECISIONS.name, topics.JOBS.name)
# Feature frames are large and never more than a few to a version: their tail suffices.
_FEATURE_TAIL = 50


@dataclass(slots=True)
class Standing:
    """What the topics say a pipeline has announced: the newest version, its ids, the trigger's history."""

    version: int = -1
    ids: set[str] = field(default_factory=set)
    closed: list[WindowClosed] = field(default_factory=list)
    verdicts: dict[str, bool] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def history_before(self, version: int) -> History:
        """The trigger's history of all windows that closed before a version."""
        history = History()
        for window in self.closed:
            if self.versions[window.event_id()] < version:
                yes = self.verdicts.get(f"{window.pipeline}/{window.window}/decision", False)
                history = history.after(window, yes=yes)
        return history


async def standing(connection: Connection, pipeline: str) -> Standing:
    """Read back what a pipeline has announced."""
    found = Standing()
    by_version: dict[int, set[str]] = {}
    async for topic, envelope in _announced_by(connection, pipeline):
        version = int(envelope.extensions["ledgerversion"])
        by_version.setdefault(version, set()).add(envelope.id)
        if envelope.id in found.versions:
            continue
        found.versions[envelope.id] = version
        if topic == topics.WINDOWS.name and envelope.type == "tidemill.window.closed.v1":
            found.closed.append(unwrap_as(envelope, WindowClosed))
        elif topic == topics.DECISIONS.name:
            found.verdicts[envelope.id] = unwrap_as(envelope, Decision).verdict == "yes"
    if by_version:
        found.version = max(by_version)
        found.ids = by_version[found.version]
    return found


async def _announced_by(connection: Connection, pipeline: str) -> AsyncIterator[tuple[str, Envelope]]:
    """This pipeline's envelopes on the outbox's topics, by topic and in order."""
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(), enable_auto_commit=False, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        for topic in OUTBOX_TOPICS:
            for partition in sorted(
                consumer.partitions_for_topic(topic) or await _partitions(consumer, topic)
            ):
                tp = TopicPartition(topic, partition)
                async for record in read_to_end(
                    consumer, tp, tail=_FEATURE_TAIL if topic == topics.FEATURES.name else None
                ):
                    try:
                        envelope = open_record(record.key, record.value, record.headers)
                    except NotAnAnnouncement:
                        continue
                    said = envelope.extensions
                    if said.get("pipeline") == pipeline and "ledgerversion" in said:
                        yield topic, envelope
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    await consumer._client.add_topic(topic)
    return consumer.partitions_for_topic(topic) or set()


async def read_to_end(
    consumer: AIOKafkaConsumer, tp: TopicPartition, *, tail: int | None = None
) -> AsyncIterator[Any]:
    """Records of a partition from its beginning, or its last `tail` offsets, to where it ends now."""
    consumer.assign([tp])
    first = (await consumer.beginning_offsets([tp]))[tp]
    end = (await consumer.end_offsets([tp]))[tp]
    start = first if tail is None else max(first, end - tail)
    if start >= end:
        return
    consumer.seek(tp, start)
    while await consumer.position(tp) < end:
        batch = await consumer.getmany(tp, timeout_ms=1000)
        for record in batch.get(tp, ()):
            yield record


class Outbox:
    """Publishes announcements, each version's whole before it returns."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def publish(self, announced: Sequence[Announced], *, but_not: Set[str] = frozenset()) -> int:
        """Send all but those ids and wait until the cluster holds them. Gives how many were sent."""
        pending = []
        for each in announced:
            if each.envelope.id in but_not:
                continue
            key, value, headers = each.envelope.record()
            pending.append(
                await self._producer.send(
                    each.topic,
                    key=key,
                    value=value,
                    headers=headers,
                    timestamp_ms=each.envelope.time_ms,
                )
            )
        for sent in pending:
            await sent
        return len(pending)
