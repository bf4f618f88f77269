"""An example of a service: answers each frame of feature rows with every model that it follows.

    python -m tidemill.example_service --bootstrap-servers localhost:9092 --store http://localhost:8700/ \
        --model flights

A frame's position is committed after the cluster holds its answers. So after a crash no frame is left out,
and those that are answered again are answered under the same ids. A frame that comes before a model's first
version is not answered by that model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.errors import KafkaError
from polars.exceptions import PanicException, PolarsError

from . import topics
from .client import Answering, ModelFollowers, StalenessBound
from .envelope import ARROW_STREAM, Envelope, open_record, wrap
from .errors import Rejected
from .prediction import Predictions

log = logging.getLogger("tidemill.example_service")

_REMEMBERED = 10_000
_MOST_FRAMES = 64
_MOST_BYTES = 16_777_216


class NotAFrame(Rejected):
    """The record holds no feature rows that can be answered."""


def read(record: ConsumerRecord[Any, Any]) -> tuple[Envelope, pl.DataFrame]:
    """The feature rows in a record: a column of keys, `_time`, and a column a feature.

    Raises:
        Rejected: there are none.
    """
    envelope = open_record(record.key, record.value, record.headers)
    if envelope.content_type != ARROW_STREAM:
        raise NotAFrame(f"frame {envelope.id} is {envelope.content_type}, not an Arrow stream")
    try:
        rows = pl.read_ipc_stream(io.BytesIO(envelope.data))
    except (PolarsError, PanicException, OSError) as error:
        raise NotAFrame(f"frame {envelope.id} is not a readable Arrow stream: {error}") from error
    if "key" not in envelope.extensions:
        raise NotAFrame(f"frame {envelope.id} has no header ce_key, which names the column of keys")
    if missing := {"_time", envelope.extensions["key"]} - set(rows.columns):
        raise NotAFrame(f"frame {envelope.id} has no column {', '.join(sorted(missing))}")
    return envelope, rows


def answer(
    answering: Answering, envelope: Envelope, rows: pl.DataFrame, *, service: str, canary: bool = False
) -> Predictions:
    """One model's answers to one frame of feature rows: which version gave them, and why it is stale if so.

    Of a canary `rows` are those of its share.

    Raises:
        UnfitColumns: the frame lacks a feature that the model takes.
    """
    model = answering.model
    scores = model.predict(rows.to_dict())
    times_ms = rows.get_column("_time").to_list()
    return Predictions(
        service=service,
        name=model.manifest.name,
        version=model.version,
        sha256=model.sha256,
        features_id=envelope.id,
        keys=rows.get_column(envelope.extensions["key"]).cast(pl.String).to_list(),
        times_ms=times_ms,
        scores=[float(score) for score in scores],
        newest_event_ms=max(times_ms),
        answered_ms=int(time.time() * 1000),
        stale=answering.why,
        canary=canary,
    )


class ExampleService:
    """Consumes frames, publishes answers. `counts` says what became of the frames."""

    def __init__(self, client: dict[str, Any], followers: ModelFollowers, *, name: str, instance: str):
        self.name = name
        self.counts: Counter[str] = Counter()
        self._client, self._followers, self._instance = client, followers, instance

    async def run(self) -> None:
        """Answer until cancelled; while the cluster is away, try again."""
        # After a restart, frames wait for the model that was there before it.
        await self._followers.settled()
        while True:
            try:
                await self._answer_frames()
            except KafkaError as error:
                log.warning("beginning again from the last committed frame: %s", error)
            await asyncio.sleep(1.0)

    async def _answer_frames(self) -> None:
        consumer = AIOKafkaConsumer(
            topics.FEATURES.name,
            **self._client,
            group_id=f"{self.name}-answers",
            # A restarted process takes its old place at once.
            group_instance_id=f"{self.name}-{self._instance}",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        # Without idempotence: such a producer waits for a dead cluster for ever, even when told to stop;
        # and a repeated answer has the first one's id.
        producer = AIOKafkaProducer(
            **self._client, acks="all", max_request_size=_MOST_BYTES, request_timeout_ms=5_000
        )
        recent: dict[str, None] = {}
        try:
            await producer.start()
            await consumer.start()
            while True:
                batches = await consumer.getmany(timeout_ms=1000, max_records=_MOST_FRAMES)
                sent = []
                for record in (record for records in batches.values() for record in records):
                    for event in await self._answers(record, recent):
                        envelope = wrap(event, source=f"/service/{self.name}", time_ms=event.answered_ms)
                        key, value, headers = envelope.record()
                        sent.append(
                            await producer.send(
                                topics.PREDICTIONS.name, key=key, value=value, headers=headers
                            )
                        )
                await asyncio.gather(*sent)
                if batches:
                    await consumer.commit()
        finally:
            await asyncio.gather(consumer.stop(), producer.stop(), return_exceptions=True)

    async def _answers(self, record: ConsumerRecord[Any, Any], recent: dict[str, None]) -> list[Predictions]:
        """The answers of all models that are there. A bad frame is logged and passed by.

        A frame waits here for a stale model where the service lets them wait. If the cluster then takes this
        member for gone, frames are read again from the last committed one, and answered under the same ids.
        """
        answers = []
        try:
            envelope, rows = await asyncio.to_thread(read, record)
            if envelope.id in recent or rows.is_empty():
                self.counts["repeated or empty"] += 1
                return []
            recent[envelope.id] = None
            if len(recent) > _REMEMBERED:
                del recent[next(iter(recent))]
            for follower in self._followers.values():
                # One look: the whole frame is answered by one version, also amid a swap; and a frame that lay
                # here while we were away by the model of its own time, not by one that knows what followed.
                if (answering := await follower.answering(envelope.time_ms)) is None:
                    self.counts[f"no {follower.name} yet"] += 1
                    log.info("frame %s is not answered by %s: no version yet", envelope.id, follower.name)
                    continue
                one = await asyncio.to_thread(answer, answering, envelope, rows, service=self.name)
                answers.append(one)
                self.counts[f"answered by {follower.name}"] += 1
                # The current version has answered every row, so both can be compared on those of the share.
                if (trial := follower.canary_of(one.keys, envelope.time_ms)) is not None:
                    canary, share = Answering(trial[0], beside=answering.model), rows[trial[1]]
                    answers.append(
                        await asyncio.to_thread(
                            answer, canary, envelope, share, service=self.name, canary=True
                        )
                    )
                    self.counts[f"answered by a canary of {follower.name}"] += 1
        except Rejected as error:
            self.counts["refused"] += 1
            log.warning("frame at offset %s is not answered: %s", record.offset, error)
        return answers


async def serve(arguments: argparse.Namespace) -> None:
    """Follow the models and answer frames until SIGTERM or SIGINT."""
    client = {"bootstrap_servers": arguments.bootstrap_servers}
    followers = ModelFollowers(
        (arguments.model, *arguments.also),
        client=client,
        stores=arguments.store,
        service=arguments.service,
        cache_dir=arguments.cache_dir,
        trusted_keys=arguments.trusted_keys,
        inputs=_columns(arguments.input),
        canaries=True,
        staleness=StalenessBound(
            age_s=arguments.max_age_s,
            behind_s=arguments.max_behind_s,
            unconfirmed_s=arguments.max_unconfirmed_s,
            then=arguments.when_stale,
        ),
    )
    async with followers:
        service = ExampleService(client, followers, name=arguments.service, instance=arguments.instance)
        running = asyncio.create_task(service.run())
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, running.cancel)
        log.info("following %s", ", ".join(followers))
        with contextlib.suppress(asyncio.CancelledError):
            await running
        log.info("stopped; frames: %s", ", ".join(f"{n} {what}" for what, n in service.counts.items()))


def _columns(given: list[str]) -> dict[str, str] | None:
    """`NAME:TYPE` of each column; None where none is given."""
    parted = [each.rpartition(":") for each in given]
    return {name: kind for name, _, kind in parted} or None


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="Answer feature rows with followed models.")
    parser.add_argument("--bootstrap-servers", required=True, help="host:port of the Kafka cluster")
    parser.add_argument("--store", action="append", required=True, help="base address of an artifact store")
    parser.add_argument("--model", required=True, help="name of the model to follow")
    parser.add_argument("--also", action="append", default=[], help="one more model to answer with")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME:TYPE",
        help="a column that the frames have, and its type (string, float or int); a model that takes another "
        "is refused. Without any, a frame that lacks what a model takes is not answered",
    )
    parser.add_argument("--service", default="example", help="this service's name in its events")
    parser.add_argument("--instance", default="1", help="this process's name among those of the service")
    parser.add_argument(
        "--trusted-keys",
        type=Path,
        help="file of the public keys whose models are taken, as the trainer's keys/trusted.txt; "
        "without it, whoever may write to the cluster is trusted",
    )
    for bound, since in (
        ("age", "the model was published"),
        ("behind", "a newer version is known that is not held"),
        ("unconfirmed", "the end of the models' log was last confirmed"),
    ):
        parser.add_argument(
            f"--max-{bound}-s",
            type=float,
            metavar="S",
            help=f"a model is stale so many seconds after {since}",
        )
    parser.add_argument(
        "--when-stale",
        choices=("serve", "flag", "wait"),
        default="flag",
        help="answer as before, say in each answer why it is stale, or answer once it no longer is",
    )
    parser.add_argument("--cache-dir", type=Path, default=Path("model-cache"), help="where downloads lie")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
