"""A record that was refused, with all that is needed to mend it and push it again."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from .contract import Announcement, announces
from .raw import TimeMs

Reason = Literal[
    "malformed",  # not decodable, or breaks the contract's types
    "missing",  # a required field or key is absent or null
    "out_of_range",  # NaN, infinite, or outside a rule's range
    "future_event_time",  # further ahead of the clock than the source allows
    "unknown_schema",  # a content type or schema id that the source does not take
    "too_large",  # the record or its decompressed batch passes the limit
    "rule",  # a cleaning rule of the pipeline refused it, or failed on it
]


@announces("record.rejected")
class DeadLetter(Announcement, frozen=True, kw_only=True):
    """One refused record. Its origin (topic, partition, offset, row) is its identity."""

    pipeline: str
    topic: str
    partition: int
    offset: int
    row: Annotated[int, Meta(description="row inside an Arrow record; 0 for a record of one event")] = 0
    timestamp_ms: Annotated[int, Meta(description="the Kafka record's own timestamp")] = -1
    reason: Reason
    rule: Annotated[str, Meta(description="the rule or the contract's field that refused it")]
    detail: Annotated[str, Meta(description="for a person: what was wrong and what would be right")]
    record_key: Annotated[bytes | None, Meta(description="original key, base64 in JSON")] = None
    record_value: Annotated[bytes | None, Meta(description="original bytes, base64 in JSON")] = None
    record_headers: list[tuple[str, bytes]] = field(default_factory=list)

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.topic}/{self.partition}/{self.offset}/{self.row}"

    def subject(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    def key(self) -> str:
        return f"{self.topic}/{self.partition}"


@announces("record.redriven")
class RecordRedriven(Announcement, frozen=True, kw_only=True):
    """A person pushed a dead letter's bytes to its topic again, after a fix."""

    letter_id: Annotated[str, Meta(description="id of the dead letter")]
    topic: str
    partition: int
    to_offset: Annotated[int, Meta(description="where on that partition the bytes lie now")]
    redriven_ms: TimeMs

    def event_id(self) -> str:
        return f"{self.letter_id}/redriven/{self.to_offset}"

    def subject(self) -> str:
        return f"{self.topic}/{self.partition}/{self.to_offset}"

    def key(self) -> str:
        return f"{self.topic}/{self.partition}"
