"""Where reading starts, and what it means when the cluster no longer has what lies there."""

from __future__ import annotations

from schemas.alert import AlertKind, AlertRaised
from schemas.errors import InvalidConfiguration


class PositionLost(InvalidConfiguration):
    """What lies at the ledger's position is not there any more. Only a person can say how to go on.

    Attributes:
        kind: what happened; see `schemas.alert`.
        choices: what a person may do.
    """

    def __init__(
        self,
        kind: AlertKind,
        found: str,
        choices: list[str],
        *,
        stands_at: int,
        first: int,
        end: int,
        topic: str | None = None,
        partition: int | None = None,
    ) -> None:
        super().__init__(f"{found}; {', or '.join(choices)}")
        self.kind: AlertKind = kind
        self.found, self.choices = found, choices
        self.stands_at, self.first, self.end = stands_at, first, end
        self.topic, self.partition = topic, partition

    def alert(self, pipeline: str) -> AlertRaised:
        """What is announced of it."""
        return AlertRaised(
            pipeline=pipeline,
            kind=self.kind,
            topic=self.topic,
            partition=self.partition,
            stands_at=self.stands_at,
            first=self.first,
            end=self.end,
            detail=self.found,
            choices=self.choices,
        )


def check_position(topic: str, partition: int, at: int | None, *, first: int, end: int) -> None:
    """Hold the ledger's position against what the cluster has. Nothing is ever reset silently.

    Raises:
        PositionLost: it is not within [first, end].
    """
    if at is not None and at < first:
        raise expired(topic, partition, at, first=first, end=end)
    if at is not None and at > end:
        raise made_anew(topic, partition, at, first=first, end=end)


def expired(topic: str, partition: int, at: int, *, first: int, end: int) -> PositionLost:
    """Records between the ledger's position and the topic's first are gone."""
    return PositionLost(
        "records_expired",
        f"{topic}/{partition}: the ledger stands at offset {at}, but the topic begins at {first}: "
        f"{first - at} records expired unread",
        [
            f"go on without them: `tidemill dataset accept-gap --topic {topic} --partition {partition}`",
            "give the pipeline a new name to begin with what is there",
        ],
        topic=topic,
        partition=partition,
        stands_at=at,
        first=first,
        end=end,
    )


def made_anew(topic: str, partition: int, at: int, *, first: int, end: int) -> PositionLost:
    """The topic's offsets began again: an offset no longer says which record is meant."""
    return PositionLost(
        "topic_made_anew",
        f"{topic}/{partition}: the ledger stands at offset {at}, but the topic ends at {end}: it was deleted "
        "and made anew, or lost its newest records",
        [
            "give the pipeline a new name to read it from its beginning",
            "restore the topic's records and start again",
        ],
        topic=topic,
        partition=partition,
        stands_at=at,
        first=first,
        end=end,
    )


def partition_gone(topic: str, partition: int, at: int) -> PositionLost:
    """The topic lacks a partition that the ledger knows."""
    return PositionLost(
        "partition_gone",
        f"{topic}/{partition}: the ledger stands at offset {at}, but the topic has no such partition: it was "
        "deleted, or made anew with fewer",
        [
            "give the pipeline a new name to read what is there from its beginning",
            "restore the topic's records and start again",
        ],
        topic=topic,
        partition=partition,
        stands_at=at,
        first=0,
        end=0,
    )


def replaced(pipeline: str, uri: str, announced: int, newest: int) -> PositionLost:
    """The dataset lacks versions that were announced."""
    return PositionLost(
        "dataset_replaced",
        f"pipeline {pipeline} has announced dataset version {announced}, but the dataset at {uri} ends at "
        f"{newest}: it is not the one that was announced",
        ["restore it", "run the pipeline under a new name"],
        stands_at=announced,
        first=0,
        end=newest,
    )
