"""A window closed, was amended by rows that came after it had closed, or is no longer to be learnt from."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from msgspec import Meta, Struct, field

from .contract import Announcement, announces
from .raw import TimeMs


class Window(Struct, frozen=True, order=True, omit_defaults=True):
    """Half-open span of event time [start_ms, end_ms); a session by key is of that key's rows alone."""

    start_ms: TimeMs
    end_ms: TimeMs
    key: Annotated[str, Meta(description="whose session it is; empty: of all rows")] = ""

    def __str__(self) -> str:
        span = f"{self.start_ms}-{self.end_ms}"
        return f"{quote(self.key, safe='')}@{span}" if self.key else span


class Moments(Struct, frozen=True):
    """Mergeable count, mean and sum of squared deviations (Chan et al., 1983) with the extremes."""

    count: int
    mean: float
    m2: float
    min: float
    max: float


class Summary(Struct, frozen=True, kw_only=True):
    """What is known of a window's rows. The merge of its commits' summaries, whatever their order."""

    rows: int = 0
    rejected: Annotated[dict[str, int], Meta(description="dead letters by rule")] = field(
        default_factory=dict
    )
    dropped: Annotated[dict[str, int], Meta(description="duplicates and such by rule")] = field(
        default_factory=dict
    )
    tags: dict[str, int] = field(default_factory=dict)
    columns: dict[str, Moments] = field(default_factory=dict)


class WindowStatement(Announcement, frozen=True, kw_only=True):
    """What closed and amended have in common."""

    pipeline: str
    window: Window
    summary: Summary
    labelled: Annotated[int, Meta(description="rows of the window whose label had come by then")]
    watermark_ms: TimeMs
    dataset_uri: str
    dataset_version: Annotated[int, Meta(description="the dataset version that this statement reads")]

    def subject(self) -> str:
        return f"{self.pipeline}/{self.window}"

    def key(self) -> str:
        return self.pipeline


@announces("window.closed")
class WindowClosed(WindowStatement, frozen=True, kw_only=True):
    """The watermark passed the window's end plus its lateness. Said once for each window."""

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.window}/closed"


@announces("window.amended")
class WindowAmended(WindowStatement, frozen=True, kw_only=True):
    """Rows came for a window that had closed: they are in the dataset, tagged `late`."""

    late_rows: Annotated[int, Meta(description="rows that this amendment adds")]

    def event_id(self) -> str:
        # Versions of two datasets of one pipeline may be the same number.
        replayed = self.dataset_uri.rpartition("/")[2].partition("@")[2]
        version = f"{replayed}.{self.dataset_version}" if replayed else self.dataset_version
        return f"{self.pipeline}/{self.window}/amended/{version}"


class ExclusionStatement(Announcement, frozen=True, kw_only=True):
    """What excluded and included have in common: a person's decision about a span of event time."""

    pipeline: str
    window: Annotated[Window, Meta(description="the span; not necessarily a window of the pipeline")]
    reason: str
    decided_by: str
    decided_ms: TimeMs
    dataset_version: Annotated[int, Meta(description="the version whose commit holds the decision")]

    def subject(self) -> str:
        return f"{self.pipeline}/{self.window}"

    def key(self) -> str:
        return self.pipeline


@announces("window.excluded")
class WindowExcluded(ExclusionStatement, frozen=True, kw_only=True):
    """Trainings that are asked for from now on neither learn from nor judge by events of this span."""

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.window}/excluded/{self.dataset_version}"


@announces("dataset.switched")
class DatasetSwitched(Announcement, frozen=True, kw_only=True):
    """From here on another dataset is the pipeline's live one. Taken back by another of these."""

    pipeline: str
    epoch: Annotated[int, Meta(description="which switch of the pipeline it is, from 1")]
    before: Annotated[str, Meta(description="name of the dataset that was live; this is its last word")]
    dataset: Annotated[str, Meta(description="name of the dataset that is live now")]
    rules_sha256: Annotated[str, Meta(description="of the pipeline's file by which workers go on")]
    reason: str
    decided_by: str
    decided_ms: TimeMs
    dataset_version: Annotated[int, Meta(description="version of `before` whose commit holds the decision")]

    def event_id(self) -> str:
        return f"{self.pipeline}/switched/{self.epoch}"

    def subject(self) -> str:
        return f"{self.pipeline}/{self.dataset}"

    def key(self) -> str:
        return self.pipeline


@announces("window.included")
class WindowIncluded(ExclusionStatement, frozen=True, kw_only=True):
    """The exclusion of this span is taken back, for trainings that are asked for from now on."""

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.window}/included/{self.dataset_version}"
