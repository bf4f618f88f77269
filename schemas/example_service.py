"""An example of a service: answers each frame of feature rows with every model that it follows.

    python -m tidemill.example_service --bootstrap-servers localhost:9092 --store http://localhost:8700/ \
        --model flights

A frame's position is committed after its answers are held by the cluster. After a crash some frames are
answered again, under the same ids.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import signal
import sys
import time
from pathlib import Path

import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from . import topics
from .client import LoadedModel, ModelFollower
from .envelope import Envelope, NotAnAnnouncement, open_record, wrap
from .prediction import Predictions


def answer(model: LoadedModel, envelope: Envelope, rows: pl.DataFrame, *, service: str) -> Predictions:
    """One model's answers to one frame of feature rows."""
    scores = model.predict({name: rows.get_column(name) for name in rows.columns})
    return Predictions(
        service=service,
        name=model.manifest.name,
        version=model.version,
        sha256=model.sha256,
        features_id=envelope.id,
        keys=rows.get_column(envelope.extensions["key"]).to_list(),
        times_ms=rows.get_column("_time").to_list(),
        scores=[float(score) for score in scores],
        newest_event_ms=int(rows.get_column("_time").max()),  # type: ignore[arg-type]
        answered_ms=int(time.time() * 1000),
    )


async def serve(arguments: argparse.Namespace) -> None:
    """Follow the models and answer frames until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    client = {"bootstrap_servers": arguments.bootstrap_servers}
    followers = [
        ModelFollower(
            name,
            client=client,
            stores=arguments.store,
            service=arguments.service,
            cache_dir=arguments.cache_dir,
        )
        for name in [arguments.model, *arguments.also]
    ]
    async with contextlib.AsyncExitStack() as stack:
        for follower in followers:
            await stack.enter_async_context(follower)
        answering = asyncio.create_task(_answer_forever(client, followers, arguments.service))
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait({answering, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if answering.done():
            answering.result()
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def _answer_forever(client: dict, followers: list[ModelFollower], service: str) -> None:
    consumer = AIOKafkaConsumer(
        topics.FEATURES.name,
        **client,
        group_id=f"{service}-answers",
        group_instance_id=f"{service}-1",
        session_timeout_ms=10_000,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=20,
    )
    producer = AIOKafkaProducer(**client, enable_idempotence=True, acks="all", max_request_size=16_777_216)
    await producer.start()
    await consumer.start()
    answered: set[str] = set()
    try:
        async for record in consumer:
            try:
                envelope = open_record(record.key, record.value, record.headers)
            except NotAnAnnouncement as error:
                print(f"frame at offset {record.offset} is skipped: {error}", file=sys.stderr)
                continue
            if envelope.id in answered:
                continue
            answered.add(envelope.id)
            rows = pl.read_ipc_stream(io.BytesIO(envelope.data))
            # One read of each reference: the whole frame is answered by one version, also amid a swap.
            for model in [f.current for f in followers if f.current is not None]:
                event = await asyncio.to_thread(answer, model, envelope, rows, service=service)
                said = wrap(event, source=f"/service/{service}", time_ms=event.answered_ms).record()
                key, value, headers = said
                await producer.send_and_wait(topics.PREDICTIONS.name, key=key, value=value, headers=headers)
            await consumer.commit()
    finally:
        await consumer.stop()
        await producer.stop()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="Answer feature rows with followed models.")
    parser.add_argument("--bootstrap-servers", required=True, help="host:port of the Kafka cluster")
    parser.add_argument("--store", action="append", required=True, help="base address of an artifact store")
    parser.add_argument("--model", required=True, help="name of the model to follow")
    parser.add_argument("--also", action="append", default=[], help="one more model to answer with")
    parser.add_argument("--service", default="example", help="this service's name in its events")
    parser.add_argument("--cache-dir", type=Path, default=Path("model-cache"), help="where downloads lie")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
