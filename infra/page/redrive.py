"""A dead letter's bytes go back to where they came from: same topic, partition, key, headers.

The record is pushed first and the event said then: a crash in between leaves a record that was pushed and not
said, and whoever re-drives the letter again pushes a repeat, which `dedupe` drops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from infra.kafka.connection import Connection
from schemas import topics
from schemas.dead_letter import DeadLetter, RecordRedriven
from schemas.envelope import open_record, unwrap, wrap
from schemas.errors import Rejected

_MOST_BYTES = 16 * 2**20
_WITHIN_S = 20.0


class NotRedrivable(Rejected):
    """The letter is not there any more, or does not hold its bytes."""


async def letter_at(connection: Connection, offset: int) -> DeadLetter:
    """The letter at an offset of the dead letters' topic.

    Raises:
        NotRedrivable: it is not there any more.
    """
    tp = TopicPartition(topics.DEAD_LETTERS.name, 0)
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(), enable_auto_commit=False, max_partition_fetch_bytes=_MOST_BYTES
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        first = (await consumer.beginning_offsets([tp]))[tp]
        if offset < first:
            raise NotRedrivable(f"the letter has expired: its topic begins at offset {first}")
        consumer.seek(tp, offset)
        async with asyncio.timeout(_WITHIN_S):
            record = await consumer.getone(tp)
    except TimeoutError as error:
        raise NotRedrivable(f"no letter is at offset {offset} of {tp.topic}") from error
    finally:
        await consumer.stop()
    found = unwrap(open_record(record.key, record.value, record.headers))
    if record.offset != offset or not isinstance(found, DeadLetter):
        raise NotRedrivable(f"no letter is at offset {offset} of {tp.topic}")
    return found


async def redrive(connection: Connection, letters: Sequence[DeadLetter]) -> list[dict[str, Any]]:
    """Push the letters' bytes again; gives for each its id and the new offset, or why not.

    One that cannot be pushed keeps no other back.
    """
    producer = AIOKafkaProducer(
        **connection.client_arguments(), enable_idempotence=True, acks="all", max_request_size=_MOST_BYTES
    )
    await producer.start()
    try:
        return [await _one(producer, letter) for letter in letters]
    finally:
        await producer.stop()


async def _one(producer: AIOKafkaProducer, letter: DeadLetter) -> dict[str, Any]:
    letter_id = letter.event_id()
    if letter.record_value is None and letter.record_key is None:
        return {
            "id": letter_id,
            "error": f"the letter does not hold its bytes: they were too many, or none. Read them at offset "
            f"{letter.offset} of {letter.topic}, partition {letter.partition}",
        }
    try:
        pushed = await producer.send_and_wait(
            letter.topic,
            letter.record_value,
            key=letter.record_key,
            partition=letter.partition,
            headers=letter.record_headers,
        )
        now_ms = int(time.time() * 1000)
        event = RecordRedriven(
            letter_id=letter_id,
            topic=letter.topic,
            partition=letter.partition,
            to_offset=pushed.offset,
            redriven_ms=now_ms,
        )
        key, value, headers = wrap(event, source="/tidemill/redrive", time_ms=now_ms).record()
        await producer.send_and_wait(topics.DEAD_LETTERS.name, value, key=key, headers=headers)
    except Exception as error:  # whatever the client raises: it is the answer to this one letter
        return {"id": letter_id, "error": f"{type(error).__name__}: {error}"}
    return {"id": letter_id, "offset": pushed.offset}
