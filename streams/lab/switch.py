"""A switch of a pipeline's live dataset, from end to end: nothing is lost, nothing announced twice.

In this order, each step harmless when it is done again: what is excluded in the live dataset is excluded in
the other; the live dataset ends by a commit that fences its workers; what it has still to announce is
announced, by its own rules, its end last; and the pipeline's name tells of the other. Killed in between, the
same command goes on: until it is through no worker begins on either.
"""

from __future__ import annotations

from pathlib import Path

from aiokafka import AIOKafkaProducer

from infra.exclusion import excluded_at
from infra.kafka.connection import Connection
from infra.kafka.topics import partitions_of
from infra.switched import Switched, live_dataset, switch_of_epoch
from streams.announce.herald import Herald
from streams.announce.outbox import Outbox, standing
from streams.ledger.exclude import exclude, include
from streams.ledger.switch import fence, point
from streams.load import Loaded


async def switch(
    live: Loaded,
    new: Loaded,
    dataset_dir: Path,
    connection: Connection,
    *,
    to: str,
    reason: str,
    by: str,
    keep: bool = False,
) -> Switched:
    """Make `to` the live dataset of the pipeline, by the rules `new` from now on.

    Workers of the dataset that was live end by themselves. Those of the new rules read on from where `to`
    stands, so what was appended since its replay is not lost.

    Args:
        live: the rules of the dataset that is live until then.

    Raises:
        NothingToSwitch: see `fence`.
        Overtaken, DatasetNotWritable: nothing was switched; try again.
    """
    name = live.pipeline.name
    folder, switched = live_dataset(dataset_dir, name)
    said = await standing(connection, name)
    if (
        switched is None
        or (switched.to, switched.rules_sha256) != (to, new.sha256)
        or switched.event_id(name) in said.versions
    ):
        if not keep and (dataset_dir / to / "_delta_log").is_dir():
            _exclude_alike(new, folder, dataset_dir / to, by)
        switched = fence(
            live.pipeline,
            dataset_dir,
            to=to,
            partitions=(await partitions_of(connection)).get(live.pipeline.source.topic, 0),
            rules_sha256=new.sha256,
            reason=reason,
            by=by,
            keep=keep,
            rules=new.file,
        )
    producer = AIOKafkaProducer(
        **connection.client_arguments(), enable_idempotence=True, max_request_size=16_777_216
    )
    await producer.start()
    try:
        ends = Herald(
            live.pipeline,
            str(dataset_dir / switched.before),
            connection,
            Outbox(producer),
            configuration_sha256=live.sha256,
            since=switch_of_epoch(dataset_dir, name, switched.epoch - 1),
        )
        await ends.finish()
    finally:
        await producer.stop()
    point(new.pipeline, dataset_dir, switched)
    return switched


def _exclude_alike(new: Loaded, live: Path, other: Path, by: str) -> None:
    standing = {each.span: each for each in excluded_at(str(live))}
    there = {each.span for each in excluded_at(str(other))}
    for span in sorted(there - standing.keys()):
        include(new.pipeline, str(other), span, reason=f"it is not excluded in {live.name}", by=by)
    for span in sorted(standing.keys() - there):
        why = f"{standing[span].reason} (by {standing[span].by}, in {live.name})"
        exclude(new.pipeline, str(other), span, reason=why, by=by)
