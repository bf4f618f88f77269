"""Follow announcements as lines for a person, or as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer
from rich.console import Console

from infra.kafka.cluster import find_cluster
from infra.settings import Settings
from schemas.envelope import JSON, Envelope, NotAnAnnouncement, open_record
from schemas.errors import InvalidConfiguration
from schemas.topics import TOPICS

_WIDTH = 160


async def follow(
    settings: Settings, names: Sequence[str], console: Console, *, from_beginning: bool, as_json: bool
) -> None:
    """Print each announcement until cancelled.

    Raises:
        InvalidConfiguration: no cluster is there, or a topic is not declared.
    """
    connection = find_cluster(settings)
    if connection is None:
        raise InvalidConfiguration("no broker runs here; start one by `tidemill up`, or name your cluster")
    announced = [t.name for t in TOPICS if t.name.startswith("tidemill.")]
    if unknown := sorted(set(names) - {t.name for t in TOPICS}):
        raise InvalidConfiguration(f"topic {unknown[0]} is not declared; `tidemill topics` lists them")
    consumer = AIOKafkaConsumer(
        *(names or announced),
        **connection.client_arguments(),
        auto_offset_reset="earliest" if from_beginning else "latest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        async for record in consumer:
            try:
                envelope = open_record(record.key, record.value, record.headers)
            except NotAnAnnouncement:
                continue
            if as_json:
                print(json.dumps(_as_json(envelope)), flush=True)
            else:
                console.print(_as_line(envelope), highlight=False, markup=False, soft_wrap=True)
    finally:
        await consumer.stop()


def _as_json(envelope: Envelope) -> dict[str, object]:
    data = json.loads(envelope.data) if envelope.content_type == JSON else f"{len(envelope.data)} bytes"
    return {"id": envelope.id, "type": envelope.type, "time_ms": envelope.time_ms, "data": data}


def _as_line(envelope: Envelope) -> str:
    at = datetime.fromtimestamp(envelope.time_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    kind = envelope.type.removeprefix("tidemill.").rpartition(".v")[0]
    said = ""
    if envelope.content_type == JSON:
        data = json.loads(envelope.data)
        said = " ".join(
            f"{name}={value}" for name, value in data.items() if isinstance(value, str | int | float)
        )
    return f"{at}  {kind:<20} {envelope.subject}  {said}"[:_WIDTH]
