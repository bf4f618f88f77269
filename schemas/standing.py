"""How far a pipeline is: where each partition stands in the ledger, and the windows that are filling."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from .contract import Announcement, announces
from .raw import TimeMs
from .window import Window


class PartitionStands(Struct, frozen=True, kw_only=True):
    """One partition that the ledger has rows, dead letters or heartbeats of."""

    topic: str
    partition: int
    next: Annotated[int, Meta(description="offset behind the last that is in the dataset")]
    watermark_ms: Annotated[TimeMs | None, Meta(description="null: it has told no time yet")] = None
    idle: Annotated[bool, Meta(description="it is silent, and holds no window open")] = False


class OpenWindow(Struct, frozen=True, kw_only=True):
    """A window that is filling."""

    window: Window
    rows: int
    closes_at_ms: Annotated[TimeMs, Meta(description="the pipeline's watermark at which it closes")]


@announces("pipeline.stands")
class PipelineStands(Announcement, frozen=True, kw_only=True):
    """A pipeline's position at a dataset version. Said about once a second while versions come.

    A function of the dataset's log: whoever says it of a version says the same.
    """

    pipeline: str
    dataset_version: int
    committed_ms: Annotated[TimeMs, Meta(description="when the version was made, by its maker's clock")]
    watermark_ms: TimeMs | None
    partitions: list[PartitionStands]
    filling: Annotated[list[OpenWindow], Meta(description="the newest open windows, oldest first")]
    open_windows: Annotated[int, Meta(description="how many are open")]

    def event_id(self) -> str:
        return f"{self.pipeline}/stands/{self.dataset_version}"

    def subject(self) -> str:
        return self.pipeline

    def key(self) -> str:
        return self.pipeline
