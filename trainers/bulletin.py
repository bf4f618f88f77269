"""The trainer's topics: read from the beginning, followed, and written so that nothing said is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from infra.logging import logger
from infra.observe import metrics
from infra.observe.instruments import Instruments
from schemas import topics
from schemas.contract import Announcement, type_of
from schemas.envelope import Envelope, NotAnAnnouncement, open_record, unwrap, wrap
from schemas.errors import Rejected, Retryable
from schemas.job import JobEvent, JobRequested, JobSucceeded
from schemas.model import ModelPublished, ModelRefused, SignedModel
from schemas.signature import TrustedKeys, schema_of
from schemas.trace import TRACEPARENT, Place, place_of
from trainers.registry import Registry

FOLLOWED = (topics.JOBS, topics.MODELS, topics.MODELS_CURRENT, topics.MODELS_CANARIES)
SOURCE = "/tidemill/trainer"
_HOPELESS = (
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
)
_AGAIN_AFTER_S = 1.0
_POLL_MS = 200
_CONTACT_S = 3.0
_ANSWER_S = 10.0

log = logger(__name__)


class Bulletin:
    """Keeps a registry as the topics say, and announces.

    An announcement that the cluster does not take is sent again until it does, by a new producer: it may then
    stand on the topic twice, with one id. With `trusted` keys, a model that none of them signed is no
    champion: who may write to the topic is not yet who may say what is live.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        trusted: TrustedKeys | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self.registry = Registry()
        self.places: dict[str, Place] = {}
        """Where jobs were asked for, by id, as far as their traces were told."""
        self.has_caught_up = False
        self._instruments = instruments or Instruments("trainer")
        self._answered_at: float | None = None
        self._trusted = trusted
        self.changed = asyncio.Event()
        self._connection = connection
        self._now_ms = now_ms
        self._producer: AIOKafkaProducer | None = None
        self._producing = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None
        self._at: dict[TopicPartition, int] = {}
        self._moved = asyncio.Condition()
        self._following: asyncio.Task[None] | None = None
        self._in_contact: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read all that the topics hold, then go on following them."""
        self._consumer = AIOKafkaConsumer(
            **self._connection.client_arguments(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
        )
        await self._consumer.start()
        tps = [TopicPartition(t.name, number) for t in FOLLOWED for number in range(t.partitions)]
        self._consumer.assign(tps)
        await self._consumer.seek_to_beginning(*tps)
        self._following = asyncio.create_task(self._follow())
        await self.caught_up()
        self.has_caught_up = True
        self._in_contact = asyncio.create_task(self._keep_contact())

    async def _keep_contact(self) -> None:
        """Know whether the cluster answers: following a dead one looks like following a quiet one."""
        assert self._consumer is not None
        while True:
            await asyncio.sleep(_CONTACT_S)
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    await self._consumer.end_offsets(list(self._consumer.assignment()))
                self._answered_at = time.monotonic()

    def contact_age_s(self) -> float:
        """Seconds since a broker last answered; infinite before the first answer."""
        return float("inf") if self._answered_at is None else time.monotonic() - self._answered_at

    async def _follow(self) -> None:
        assert self._consumer is not None
        while True:
            try:
                batches = await self._consumer.getmany(timeout_ms=_POLL_MS)
            except KafkaError as error:
                log.warning("cannot read, will try again", error=str(error))
                await asyncio.sleep(_AGAIN_AFTER_S)
                continue
            for tp, records in batches.items():
                for record in records:
                    with contextlib.suppress(NotAnAnnouncement):
                        envelope = open_record(record.key, record.value, record.headers)
                        event = unwrap(envelope)
                        self._note_place(envelope, event)
                        self.registry.note(tp.topic, event, trusted=self._is_trusted(envelope, event))
            if batches:
                self.changed.set()
            async with self._moved:
                self._at = {tp: await self._consumer.position(tp) for tp in self._consumer.assignment()}
                self._moved.notify_all()

    def _note_place(self, envelope: Envelope, event: Announcement) -> None:
        if isinstance(event, JobRequested):
            place = place_of(envelope.extensions.get(TRACEPARENT))
            if place is not None:
                self.places[event.job_id] = place

    def _is_trusted(self, envelope: Envelope, event: Announcement) -> bool:
        if self._trusted is None or not isinstance(event, SignedModel):
            return True
        try:
            self._trusted.manifest(envelope.data, schema_of(event))
        except (Rejected, Retryable) as error:
            log.warning("a model event is not trusted", event_id=envelope.id, reason=str(error))
            return False
        return True

    async def caught_up(self) -> None:
        """Wait until all is read that the topics hold now."""
        assert self._consumer is not None
        while True:
            try:
                ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
                self._answered_at = time.monotonic()
                break
            except KafkaError as error:
                log.warning("cannot ask where the topics end, will try again", error=repr(error))
                await asyncio.sleep(_AGAIN_AFTER_S)
        async with self._moved:
            await self._moved.wait_for(lambda: all(self._at.get(tp, 0) >= end for tp, end in ends.items()))

    def check(self) -> None:
        """Raises what ended the following, if anything did."""
        if self._following is not None and self._following.done():
            self._following.result()

    async def say(self, topic: str, event: Announcement, *, place: Place | None = None) -> None:
        """Announce, at its place of a trace if it has one; on return the cluster holds it.

        Raises:
            KafkaError: it never will: too large, or no permission.
        """
        extensions = None if place is None else {TRACEPARENT: place.traceparent}
        envelope = wrap(event, source=SOURCE, time_ms=self._now_ms(), extensions=extensions)
        key, value, headers = envelope.record()
        producer = None
        while True:
            try:
                producer = await self._a_producer()
                await producer.send_and_wait(topic, key=key, value=value, headers=headers)
                break
            except _HOPELESS:
                raise
            except KafkaError as error:
                log.warning("cannot announce, will try again", topic=topic, error=repr(error))
                if self._producer is producer:
                    await self._drop_producer()
                await asyncio.sleep(_AGAIN_AFTER_S)
        self._count(topic, event)
        # Noted here too: the next decision need not wait for the topic's echo.
        self.registry.note(topic, event)
        self.changed.set()

    def _count(self, topic: str, event: Announcement) -> None:
        count = self._instruments.count
        match event:
            case JobEvent():
                count(metrics.JOB_EVENTS, 1, type_of(type(event)).split(".")[-2])
                if isinstance(event, JobSucceeded):
                    self._instruments.took(metrics.TRAINING_SECONDS, event.train_s)
            case ModelPublished() if topic == topics.MODELS.name:
                count(metrics.MODELS, 1, event.name, "published")
            case ModelRefused():
                count(metrics.MODELS, 1, event.name, "refused")
            case _:
                pass

    async def _a_producer(self) -> AIOKafkaProducer:
        async with self._producing:
            if self._producer is None:
                self._producer = await self._new_producer()
            return self._producer

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._connection.client_arguments(),
            enable_idempotence=True,
            acks="all",
            max_request_size=2_097_152,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(5.0):
                    await producer.stop()

    async def stop(self) -> None:
        """Let go of the cluster."""
        for task in (self._in_contact, self._following):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()
        await self._drop_producer()
