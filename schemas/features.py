"""Features and labels as data: what a model sees of an event, and when it could have known it.

The same declarations run in three places: live (a feature row goes out as soon as all sources have
passed its event time), in training (over a dataset version), and in a reader's head. None can look
ahead: a value at event time t comes from rows whose own event time is at most t.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from .lookback import Lookback

Aggregate = Literal["mean", "sum", "min", "max", "count"]


class AsOf(Struct, frozen=True, kw_only=True, tag="as_of"):
    """Newest row of another source that was known at the event's time.

    A row further back than `max_age_ms` counts as absent: its columns are null.
    `columns` maps a feature's name to the source's column; `age`, if named, is the feature that says how
    old that row was, in ms.
    """

    source: Annotated[str, Meta(description="topic of the source that is looked up")]
    by: tuple[str, ...]
    columns: dict[str, str]
    max_age_ms: Annotated[int, Meta(gt=0)]
    age: str = ""

    def names(self) -> list[str]:
        """Features that it gives."""
        return [*self.columns, *([self.age] if self.age else [])]


class Trailing(Struct, frozen=True, kw_only=True, tag="trailing"):
    """Aggregates over another source's rows with event time in (t - over_ms, t].

    `aggregates` maps a feature's name to (aggregate, column); a count's column is ignored.
    An empty `by` aggregates over all rows. No rows: count is 0, everything else null.
    """

    source: str
    by: tuple[str, ...]
    over_ms: Annotated[int, Meta(gt=0)]
    aggregates: dict[str, tuple[Aggregate, str]]

    def names(self) -> list[str]:
        """Features that it gives."""
        return list(self.aggregates)


Feature = AsOf | Trailing


class Label(Struct, frozen=True, kw_only=True):
    """The truth about an event, which comes later on a source of its own and is joined by key.

    A label that arrives more than `within_ms` of event time after its event is not awaited.
    """

    source: str
    column: str
    key: str
    within_ms: Annotated[int, Meta(gt=0)]


class FeatureSpec(Struct, frozen=True, kw_only=True):
    """All that turns a dataset's rows into examples.

    `columns` are taken from the event's own row; `features` from other sources; `label` may be absent.
    """

    source: str
    key: str
    columns: tuple[str, ...]
    features: tuple[Feature, ...] = field(default_factory=tuple)
    label: Label | None = None
    tags: Annotated[
        tuple[Lookback, ...], Meta(description="tags of the events that are judged by the rows before them")
    ] = ()

    def horizon_ms(self) -> int:
        """How far back in event time a feature or a tag may look."""
        spans = [f.max_age_ms if isinstance(f, AsOf) else f.over_ms for f in self.features]
        spans += [tag.horizon_ms() for tag in self.tags]
        return max(spans, default=0)

    def names(self) -> list[str]:
        """Feature columns in their declared order."""
        names = list(self.columns)
        for feature in self.features:
            names += feature.names()
        return names
