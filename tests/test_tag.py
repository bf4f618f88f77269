"""Tags: said beside a row, never instead of it."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.window import Window
from streams.check.pipeline import problems as of_pipeline
from streams.check.trigger import trigger as mistakes
from streams.summary.profiling import profiling
from streams.tag import Slice, Tag, contradicted, foretold, tags
from streams.trigger import History, Look, edge_cases, every
from tests.test_announce import PIPELINE
from tests.test_trigger import closed

NAMES = ["far", "late_start", "odd"]


def tagged(rows: pl.DataFrame, *tagging: Tag | Slice) -> list[list[str]]:
    return rows.with_columns(tags(tagging).alias("_tags")).get_column("_tags").to_list()


def test_a_row_carries_the_names_of_its_true_conditions_in_their_declared_order() -> None:
    rows = pl.DataFrame({"x": [1, 10, None]})
    big, any_ = Tag("big", pl.col("x") > 5), Tag("any", pl.lit(value=True))
    assert tagged(rows, big, any_) == [["any"], ["big", "any"], ["any"]]
    assert tagged(rows, any_, big) == [["any"], ["any", "big"], ["any"]]


def test_a_null_condition_is_false_and_no_condition_means_no_tag() -> None:
    rows = pl.DataFrame({"x": [None, 1]}, schema={"x": pl.Int64})
    assert tagged(rows, Tag("one", pl.col("x") == 1)) == [[], ["one"]]
    assert tagged(rows, Slice("x")) == [[], []]
    assert tagged(rows) == [[], []]


def test_tags_of_an_empty_frame_are_still_lists_of_text() -> None:
    rows = pl.DataFrame(schema={"x": pl.Int64})
    for tagging in ([], [Tag("a", pl.col("x") > 0)]):
        assert rows.select(tags(tagging).alias("t")).schema["t"] == pl.List(pl.String)


@settings(deadline=None, max_examples=60)
@given(truth=st.lists(st.tuples(*[st.none() | st.booleans()] * 3), max_size=20))
def test_tags_never_add_or_drop_a_row_and_say_exactly_what_is_true(
    truth: list[tuple[bool | None, ...]],
) -> None:
    rows = pl.DataFrame(truth, schema=dict.fromkeys(NAMES, pl.Boolean), orient="row")
    expected = [[name for name, true in zip(NAMES, row, strict=True) if true] for row in truth]
    assert tagged(rows, *(Tag(name, pl.col(name)) for name in NAMES)) == expected


def test_more_tags_than_are_told_apart_at_once_keep_their_order() -> None:
    rows = pl.DataFrame({"x": range(40)})
    tagging = [Tag(f"over_{n}", pl.col("x") > n) for n in range(20)]
    expected = [[f"over_{n}" for n in range(20) if x > n] for x in range(40)]
    assert tagged(rows, *tagging) == expected


def test_events_whose_labels_differ_are_counted_as_contradicted_and_those_older_than_it_as_foretold() -> None:
    # a: two that differ; b: said twice; c: the other came too late; d: one said nothing; e: one, too early.
    said = [("a", 10, 1.0), ("a", 20, 0.0), ("b", 10, 1.0), ("b", 11, 1.0), ("c", 10, 0.0), ("c", 9_000, 1.0),
            ("d", 10, 1.0), ("d", 11, None), ("e", 3, 0.0)]  # fmt: skip

    def placed(rows: pl.DataFrame, source: str) -> pl.DataFrame:
        return rows.with_columns(
            _source=pl.lit(source),
            _partition=pl.lit(0),
            _row=pl.lit(0),
            _offset=pl.int_range(pl.len()),
            _tags=pl.lit([], pl.List(pl.String)),
        )

    events = placed(pl.DataFrame({"id": list("abcde"), "_time": range(5), "at": range(5)}), "events")
    truth = placed(pl.DataFrame(said, schema=["id", "_time", "outcome"], orient="row"), "truth")
    watching = every(windows=1) | edge_cases("contradicted", rows=2)
    declared = replace(PIPELINE, tag=[contradicted(), foretold()], train_when=watching)
    assert not list(mistakes(declared, {}))
    made = profiling(declared, ["id", "at"])
    sources = {"events": events, "truth": truth, "air": pl.DataFrame()}
    shuffled = events.sample(fraction=1, shuffle=True, seed=1)
    (profile,) = made.profiles([Window(0, 5)], shuffled, sources, key=pl.lit(""))
    assert profile.tags == {"contradicted": 1, "foretold": 1}
    assert profile.label is not None
    assert profile.label.categories == {"1.0": 3, "0.0": 2}, "the first by event time counts"
    window = closed(0)
    answers = [
        edge_cases("contradicted", rows=n).evaluate(Look(window, History(), profile)).fired for n in (1, 2)
    ]
    assert answers == [True, False]
    unlabelled = replace(declared, labels=None)
    assert any("is about labels, and there are none" in p.text for p in of_pipeline(unlabelled))
