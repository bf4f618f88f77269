"""Tags that look back: what is unusual, as of an event's own time. Data, as the features beside them.

Each judges a row by the rows of its own source before it. The baseline of a row at event time t is fixed for
the whole block of `every_ms` that t lies in: the rows with event time in [block - over_ms, block). So a tag
depends on the set of rows alone, not on their order or batches, and never on a later one. A baseline of fewer
than `minimum_rows` says nothing, and no row is tagged by it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

QUARANTINED = "quarantined"
"""Rows with this tag are in the dataset, and no training sees them."""

Span = Annotated[int, Meta(gt=0, description="ms of event time")]


class Baseline(Struct, frozen=True, kw_only=True):
    """What all of them have: the tag's name, and which rows a row is held against."""

    name: str
    over_ms: Span
    every_ms: Span
    minimum_rows: Annotated[int, Meta(ge=1)] = 50

    def reads(self) -> tuple[str, ...]:
        """Columns of the source that it looks at."""
        raise NotImplementedError

    def horizon_ms(self) -> int:
        """How far back from an event's time it may look."""
        return self.over_ms + self.every_ms


class Outlier(Baseline, frozen=True, kw_only=True, tag="outlier"):
    """A number far from the baseline's middle.

    "mad": further than `reach` robust standard deviations from the median (Iglewicz and Hoaglin, 1993);
    "iqr": further than `reach` interquartile ranges beyond the quartiles (Tukey, 1977). `by` judges within
    groups; `season_ms` within the same of `phases` parts of a season, such as the hour of a day.
    """

    column: str
    method: Literal["mad", "iqr"]
    reach: Annotated[float, Meta(gt=0)]
    by: tuple[str, ...] = ()
    season_ms: Span | None = None
    phases: Annotated[int, Meta(ge=1)] = 24

    def reads(self) -> tuple[str, ...]:
        return (self.column, *self.by)


class Rare(Baseline, frozen=True, kw_only=True, tag="rare"):
    """A value that fewer than `share` of the baseline's rows have; 0: one that none has."""

    column: str
    share: Annotated[float, Meta(ge=0, lt=1)]

    def reads(self) -> tuple[str, ...]:
        return (self.column,)


class Isolated(Baseline, frozen=True, kw_only=True, tag="isolated"):
    """A row that a few random cuts through several columns set apart: the forest's score reaches `score`.

    Liu, Ting and Zhou, "Isolation Forest" (2008), on a sample of the baseline.
    """

    columns: tuple[str, ...]
    score: Annotated[float, Meta(gt=0, lt=1)] = 0.65
    trees: Annotated[int, Meta(ge=1)] = 64

    def reads(self) -> tuple[str, ...]:
        return self.columns


class Shifted(Baseline, frozen=True, kw_only=True, tag="shifted"):
    """Rows of a block behind a change point: the block before it lies apart from the baseline before that.

    Its mean is `reach` standard errors, and half a standard deviation, from the baseline's.
    """

    column: str
    reach: Annotated[float, Meta(gt=0)] = 6.0

    def reads(self) -> tuple[str, ...]:
        return (self.column,)


class Crowding(Baseline, frozen=True, kw_only=True, tag="crowding"):
    """A producer's rows beyond `share` of what all producers sent in a block of the baseline, on average."""

    column: str
    share: Annotated[float, Meta(gt=0, le=1)]

    def reads(self) -> tuple[str, ...]:
        return (self.column,)


Lookback = Outlier | Rare | Isolated | Shifted | Crowding
