"""Mistakes in a pipeline's trigger: what it watches must be there, and it must be able to begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from schemas.features import FeatureSpec
from streams.declared import InvalidPipeline, Place, Problem, nearest
from streams.mend import Mend
from streams.pipeline import Pipeline
from streams.tag import LATE, OfLabels, tag_names
from streams.trigger import All, AtLeast, Condition, all_parts
from streams.trigger.compare import Comparison
from streams.trigger.drift import LabelDrift
from streams.trigger.edge import EdgeCases
from streams.trigger.pace import Stale
from streams.trigger.reference import OfTraining, Previous

Schema = Mapping[str, Any]


def trigger(pipeline: Pipeline, schema: Schema) -> Iterator[Problem]:
    """Mistakes in when to train.

    Args:
        schema: columns of the main source.
    """
    if pipeline.train_when is None:
        return
    try:
        spec = pipeline.spec()
    except InvalidPipeline:
        return  # said where the span stands
    for part in all_parts(pipeline.train_when):
        yield from _watched(pipeline, spec, part, schema)
    if not _can_begin(pipeline.train_when):
        yield Problem(
            next(
                getattr(p, "place", pipeline.place)
                for p in all_parts(pipeline.train_when)
                if isinstance(p, Comparison | Stale) or p.watched().answers
            ),
            "before a first training there is nothing to hold a window against, so none would ever be asked "
            "for; write first(windows=…) | …",
        )


def _can_begin(condition: Condition) -> bool:
    """Whether it can fire before there was a training."""
    if isinstance(condition, All | AtLeast):
        able = sum(_can_begin(part) for part in condition.parts())
        return able >= (condition.count if isinstance(condition, AtLeast) else len(condition.parts()))
    if isinstance(condition, Comparison):
        return not isinstance(condition.against, OfTraining)
    if condition.watched().answers:
        return False
    return not isinstance(condition, Stale) and all(_can_begin(part) for part in condition.parts())


def _watched(pipeline: Pipeline, spec: FeatureSpec, part: Condition, schema: Schema) -> Iterator[Problem]:
    place: Place = getattr(part, "place", pipeline.place)
    watched = part.watched()
    known = {*schema, *spec.names()}
    for column in sorted(watched.columns - known) if schema else ():
        yield Problem(
            place, f"the trigger watches column {column!r}, which is not there{nearest(column, known)}"
        )
    for column in sorted((watched.slices | watched.errors) - set(schema)) if schema else ():
        yield Problem(place, f"the trigger watches slices by {column!r}, no column{nearest(column, schema)}")
    if watched.features and not spec.names():
        yield Problem(place, "the trigger watches all features, and there are none; name columns: drift('…')")
    if isinstance(part, LabelDrift) and pipeline.labels is None:
        yield Problem(place, "the trigger watches labels, and there are none; add labels=Labels(…)")
    if getattr(part, "of", None) == "label" and pipeline.labels is None:
        yield Problem(place, "bias of labels, and there are none; add labels=Labels(…), or write of='share'")
    if watched.answers and pipeline.labels is None:
        yield Problem(
            place, "the trigger watches the live model's answers, and no labels; add labels=Labels(…)"
        )
    if isinstance(part, EdgeCases):
        tags = {*tag_names(pipeline.tag), *(tag.name for tag in spec.tags)}
        tags |= {t.name for t in pipeline.tag if isinstance(t, OfLabels)}
        tags |= {r.tag for r in pipeline.rules(pipeline.source.topic) if isinstance(r, Mend) and r.tag}
        if part.tag == LATE:
            yield Problem(
                place,
                f"rows tagged {LATE!r} come when their window has closed: they never count; take another tag",
            )
        elif part.tag not in tags:
            yield Problem(place, f"no tag is called {part.tag!r}{nearest(part.tag, tags)}")
    if isinstance(part, Comparison) and isinstance(part.against, Previous) and part.against.windows > 1_000:
        yield Problem(
            place, f"{part.against.text}: so many profiles are held in memory; a thousand windows at most"
        )
