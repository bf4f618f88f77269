"""The outbox over the dataset's log: what a commit announces goes out, also after a crash in between.

A version's announcements are awaited before the next version's are sent. So the newest version found on
the topics may be announced in part, all before it whole, all after it not at all: that one version is
announced again, without the ids that are there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer

from infra.kafka.batches import Record, partition_for, send_headed_batches
from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from schemas import topics
from schemas.contract import type_of
from schemas.decision import Decision
from schemas.envelope import NotAnAnnouncement, open_record, unwrap_as
from schemas.profile import Profile, WindowProfiled
from schemas.window import Window, WindowClosed
from streams.announce.fold import Announced, after_decision
from streams.ledger.commit import Partition
from streams.trigger import History

OUTBOX_TOPICS = (
    topics.FEATURES.name,
    topics.WINDOWS.name,
    topics.PROFILES.name,
    topics.DECISIONS.name,
    topics.JOBS.name,
)
# Of these only what the newest version announced is asked for: never more than a few records, among
# those of other pipelines and of trainers. What lies further back would be announced again, by the same id.
_TAILS = {topics.FEATURES.name: 200, topics.JOBS.name: 5_000}


@dataclass(slots=True)
class Standing:
    """What the topics say a pipeline has announced: the newest version, its ids, the trigger's history.

    `version` and `ids` are of the dataset that is live since the `epoch`-th switch, `epochs` says of each id
    from an earlier or later one of which; none: of the time before there was any.
    """

    epoch: int = 0
    version: int = -1
    ids: set[str] = field(default_factory=set)
    closed: list[WindowClosed] = field(default_factory=list)
    decisions: dict[str, Decision] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)

    def place(self, closed: WindowClosed) -> tuple[int, int, Window]:
        """Where the closing of a window stands among all that were announced."""
        announced = closed.event_id()
        return self.epochs.get(announced, 0), self.versions[announced], closed.window

    def closed_before(self) -> set[Window]:
        """Windows that closed in datasets which were live before."""
        return {closed.window for closed in self.closed if self.place(closed)[0] < self.epoch}

    def history_before(self, version: int, beginning: History) -> History:
        """The trigger's history of all windows that closed before a version."""
        history = beginning
        for closed in self.closed:
            if self.place(closed)[:2] < (self.epoch, version):
                name = f"{closed.pipeline}/{closed.window}"
                history = after_decision(
                    history,
                    closed,
                    self.decisions.get(f"{name}/decision"),
                    self.profiles.get(f"{name}/profile"),
                )
        return history


async def standing(connection: Connection, pipeline: str, epoch: int = 0) -> Standing:
    """Read back what a pipeline has announced, up to and since its `epoch`-th switch of the live dataset."""
    found = Standing(epoch=epoch)
    by_version: dict[int, set[str]] = {}
    async for record in read_to_end(connection, {topic: _TAILS.get(topic) for topic in OUTBOX_TOPICS}):
        try:
            envelope = open_record(record.key, record.value, record.headers)
        except NotAnAnnouncement:
            continue
        said = envelope.extensions
        if said.get("pipeline") != pipeline or "ledgerversion" not in said:
            continue
        version, of = int(said["ledgerversion"]), int(said.get("epoch", 0))
        if of == epoch:
            by_version.setdefault(version, set()).add(envelope.id)
        if envelope.id in found.versions:
            continue
        found.versions[envelope.id] = version
        if of:
            found.epochs[envelope.id] = of
        if envelope.type == type_of(WindowClosed):
            found.closed.append(unwrap_as(envelope, WindowClosed))
        elif envelope.type == type_of(Decision):
            found.decisions[envelope.id] = unwrap_as(envelope, Decision)
        elif envelope.type == type_of(WindowProfiled):
            found.profiles[envelope.id] = unwrap_as(envelope, WindowProfiled).profile
    found.closed.sort(key=found.place)
    if by_version:
        found.version = max(by_version)
        found.ids = by_version[found.version]
    return found


async def letters_since(
    connection: Connection, pipeline: str, positions: Mapping[Partition, int], *, most: int
) -> set[str]:
    """Ids of dead letters that went out before a crash kept their commit from being made."""
    known: set[str] = set()
    async for record in read_to_end(connection, {topics.DEAD_LETTERS.name: most}):
        letter_id = (dict(record.headers).get("ce_id") or b"").decode("utf-8", "replace")
        name, *place = letter_id.rsplit("/", 4)
        if name == pipeline and len(place) == 4 and place[1].isdigit() and place[2].isdigit():
            start = positions.get((place[0], int(place[1])))
            if start is not None and int(place[2]) >= start:
                known.add(letter_id)
    return known


class Outbox:
    """Publishes announcements, each version's whole before it returns."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def partitions_of(self, topic: str) -> set[int]:
        """Numbers of a topic's partitions."""
        return set(await self._producer.partitions_for(topic))

    async def publish(self, announced: Sequence[Announced], *, but_not: Set[str] = frozenset()) -> int:
        """Send all but those ids and wait until the cluster holds them. Gives how many were sent.

        They go out as few batches by topic and partition, in their order there. One by one, dead letters took
        a sixth of the time for which a worker holds Python's lock.
        """
        lanes: dict[tuple[str, int], list[Record]] = {}
        partitions: dict[str, int] = {}
        for each in announced:
            topic, envelope = each.topic, each.envelope
            if envelope.id in but_not:
                continue
            if topic not in partitions:
                partitions[topic] = len(await self.partitions_of(topic))
            key, value, headers = envelope.record()
            lane = (topic, partition_for(key or b"", partitions[topic]))
            lanes.setdefault(lane, []).append((key, value, headers, envelope.time_ms))
        sent: list[tuple[asyncio.Future, int]] = []
        for (topic, partition), records in lanes.items():
            sent += await send_headed_batches(self._producer, topic, partition, records)
        await asyncio.gather(*(future for future, _ in sent))
        return sum(count for _, count in sent)
