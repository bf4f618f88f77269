"""A feature that is the label in other words is found, an honest one is not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from schemas.features import AsOf, FeatureSpec, Label
from trainers.sanity import findings

ROWS = 4_000
SPEC = FeatureSpec(
    source="asked",
    key="id",
    columns=("x", "place", "flag"),
    label=Label(source="answered", column="late", key="id", within_ms=1_000_000),
)


def labelled(**columns: object) -> pl.DataFrame:
    random = np.random.default_rng(1)
    late = (random.random(ROWS) < 0.3).astype(float)
    honest = {
        "_time": np.arange(ROWS) * 1000,
        "_label_time": np.arange(ROWS) * 1000 + 500,
        "late": late,
        "x": late + random.normal(size=ROWS),  # tells a lot, as a good feature should
        "place": random.choice(["A", "B", "C"], ROWS),
        "flag": np.where(late == 1, random.choice(["u", "v"], ROWS), random.choice(["v", "w"], ROWS)),
    }
    return pl.DataFrame({**honest, **{name: make(late) for name, make in columns.items()}})  # type: ignore[operator]


def test_honest_features_are_not_accused() -> None:
    assert findings(labelled(), SPEC) == []
    # A word of its own for each row names every label, and tells nothing.
    assert findings(labelled(place=lambda late: [f"p{i}" for i in range(ROWS)]), SPEC) == []


@pytest.mark.parametrize(
    ("feature", "make"),
    [
        ("x", lambda late: late),
        ("x", lambda late: -late),
        ("x", lambda late: late * 40 + np.random.default_rng(2).random(ROWS) * 30),  # minutes late, say
        ("x", lambda late: np.where(np.arange(ROWS) == 7, 1 - late, late)),  # but for a mistake
        ("x", lambda late: pl.Series(np.where(late == 1, 1.0, np.nan)).fill_nan(None)),
        ("place", lambda late: np.where(late == 1, "yes", "no")),
        ("place", lambda late: np.where(late == 1, np.where(np.arange(ROWS) % 2, "very", "a bit"), "no")),
        ("flag", lambda late: pl.Series(late == 1)),
    ],
)
def test_a_feature_that_tells_the_label_is_found_unless_it_is_trusted(feature: str, make) -> None:
    rows = labelled(**{feature: make})
    (found,) = findings(rows, SPEC)
    assert (found.check, found.subject) == ("feature_tells_label", feature)
    assert found.value >= found.limit
    assert findings(rows, SPEC, trusted=[feature]) == []
    assert findings(rows, SPEC, trusted=["*"]) == []


def test_labels_before_their_events_are_found_and_a_few_wrong_clocks_are_not() -> None:
    wrong = labelled(_label_time=lambda late: np.arange(ROWS) * 1000 - (np.arange(ROWS) % 20 == 0))
    (found,) = findings(wrong, SPEC)
    assert found.check == "label_before_event"
    assert found.value == pytest.approx(0.05)
    assert (
        findings(labelled(_label_time=lambda late: np.arange(ROWS) * 1000 - (np.arange(ROWS) < 3)), SPEC)
        == []
    )


def test_a_label_at_the_very_instant_is_no_secret_to_a_feature_that_looks_at_its_source() -> None:
    same = labelled(_label_time=lambda late: np.arange(ROWS) * 1000)
    looks = FeatureSpec(
        source="asked",
        key="id",
        columns=("x",),
        features=(AsOf(source="answered", by=(), columns={"place": "place"}, max_age_ms=1000),),
        label=SPEC.label,
    )
    assert findings(same, SPEC) == []
    assert [f.check for f in findings(same, looks)] == ["label_before_event"]
