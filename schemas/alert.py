"""Something that no worker may decide alone: it has stopped, and says which choices a person has."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from .contract import Announcement, announces

AlertKind = Literal[
    "records_expired",  # the topic begins behind the ledger's position: what lay between is gone
    "topic_made_anew",  # the topic ends before the ledger's position: it is not the one that was read
    "partition_gone",  # the topic lacks a partition that was read: it was deleted, or made anew with fewer
    "dataset_replaced",  # more was announced than the dataset holds: it is not the one that was announced
]


@announces("alert.raised")
class AlertRaised(Announcement, frozen=True, kw_only=True):
    """A worker stopped rather than guess. The same trouble has the same id, however often it is met."""

    pipeline: str
    kind: AlertKind
    topic: Annotated[str | None, Meta(description="null where the dataset as a whole is meant")] = None
    partition: int | None = None
    stands_at: Annotated[int, Meta(description="the ledger's next offset, or the newest announced version")]
    first: Annotated[int, Meta(description="first offset that the topic has, or the dataset's first version")]
    end: Annotated[int, Meta(description="offset behind the topic's last, or the dataset's newest version")]
    detail: Annotated[str, Meta(description="for a person: what was found")]
    choices: Annotated[list[str], Meta(description="what a person may do, each with its command or setting")]

    def event_id(self) -> str:
        place = "dataset" if self.topic is None else f"{self.topic}/{self.partition}"
        return f"{self.pipeline}/{self.kind}/{place}/{self.stands_at}"

    def subject(self) -> str:
        return self.pipeline

    def key(self) -> str:
        return self.pipeline
