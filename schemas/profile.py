"""What a closed window's rows look like, column by column: small, mergeable, the same whoever computes it.

It lies beside the window's own event, on a topic of its own, since it is larger than all else that is said
of a window. Drift is judged between two profiles; the reference of a trigger is the merge of several.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from .contract import Announcement, announces
from .window import Window


class ColumnProfile(Struct, frozen=True, kw_only=True):
    """One column: numbers as a quantile sketch, everything else as counts by value."""

    rows: Annotated[int, Meta(description="rows of the window, those without a value included")]
    missing: Annotated[int, Meta(description="rows without a value: null, NaN or infinite")] = 0
    kll: Annotated[
        bytes, Meta(description="Apache DataSketches KLL sketch of float32, serialized; empty: no numbers")
    ] = b""
    rank_error: Annotated[
        float, Meta(description="by how much a rank of the sketch may be wrong, 0 to 1")
    ] = 0.0
    categories: Annotated[
        dict[str, int], Meta(description="rows by value, the most frequent first, at most 256")
    ] = field(default_factory=dict)
    other: Annotated[int, Meta(description="rows with a value that is not among `categories`")] = 0


class SliceProfile(Struct, frozen=True, kw_only=True):
    """One value of a slice column."""

    rows: int
    labelled: int = 0
    label_sum: Annotated[float, Meta(description="sum of the labels: of 0 and 1, how many are 1")] = 0.0


class Profile(Struct, frozen=True, kw_only=True):
    """The rows of one window, or of several together."""

    rows: int = 0
    columns: dict[str, ColumnProfile] = field(default_factory=dict)
    tags: Annotated[dict[str, int], Meta(description="rows by tag, of the tags that look back")] = field(
        default_factory=dict
    )
    label: Annotated[ColumnProfile | None, Meta(description="of the labels that had come by then")] = None
    slices: Annotated[
        dict[str, dict[str, SliceProfile]], Meta(description="by slice column and its value")
    ] = field(default_factory=dict)


@announces("window.profiled")
class WindowProfiled(Announcement, frozen=True, kw_only=True):
    """The profile of a window as it closed: rows that came later are not in it."""

    pipeline: str
    window: Window
    profile: Profile
    dataset_version: Annotated[int, Meta(description="the dataset version that was profiled")]

    def event_id(self) -> str:
        return f"{self.pipeline}/{self.window}/profile"

    def subject(self) -> str:
        return f"{self.pipeline}/{self.window}"

    def key(self) -> str:
        return self.pipeline
