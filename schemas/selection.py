"""Which of a range's rows a training sees: a policy as data, applied by `infra.selection`.

Every policy is a function of the rows, their own identity and the seed: neither the order in which the rows
come nor how they are cut into batches changes what is chosen.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Rows = Annotated[int, Meta(ge=1, description="at most so many rows; a range with fewer is taken whole")]


class Whole(Struct, frozen=True, kw_only=True, tag_field="policy", tag="whole"):
    """Every row of the range: the last n windows, or all history."""


class Reservoir(Struct, frozen=True, kw_only=True, tag_field="policy", tag="reservoir"):
    """A uniform sample of fixed size."""

    rows: Rows


class Decay(Struct, frozen=True, kw_only=True, tag_field="policy", tag="decay"):
    """A sample in which a row's weight halves with every `half_life_ms` between it and the range's end."""

    rows: Rows
    half_life_ms: Annotated[int, Meta(ge=1)]


class Balanced(Struct, frozen=True, kw_only=True, tag_field="policy", tag="balanced"):
    """The same number of rows of each value of a column, as far as a value has so many.

    What small groups leave over goes to the others in equal parts. `by="_tags"` groups rows by the set of
    their tags; those without any are a group of their own.
    """

    rows: Rows
    by: str


class Hard(Struct, frozen=True, kw_only=True, tag_field="policy", tag="hard"):
    """A sample in which a row's weight is the live model's log-loss on it, plus `floor`.

    Without a live model, or one that cannot answer, it is a uniform sample.
    """

    rows: Rows
    floor: Annotated[float, Meta(gt=0, description="weight of a row that the live model is sure of")] = 0.1


Sample = Reservoir | Decay | Balanced | Hard
Selection = Whole | Reservoir | Decay | Balanced | Hard
