"""A person's decision that nothing is to be learnt from a span of event time, and its taking back.

It enters the dataset's log as a commit without rows, so whoever folds the log announces the same event, and
a restart finds it where it was made. Workers that run go on: their next commit comes after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import polars as pl

from infra.exclusion import EXCLUSION, Decided, Exclusion, excluded_at
from schemas.errors import InvalidConfiguration
from schemas.window import Window
from streams.ingest import dataset_schema
from streams.ledger.commit import Ledger, Overtaken
from streams.pipeline import Pipeline

# Workers commit several times a second, each in some milliseconds.
_TRIES = 50


class NothingToDecide(InvalidConfiguration):
    """The span is no span, is excluded already, or is not excluded."""


def exclude(pipeline: Pipeline, uri: str, span: Window, *, reason: str, by: str) -> int:
    """Exclude a span from all trainings that are asked for from now on; gives the version that says so.

    Raises:
        NothingToDecide: it is no span, no reason is given, or it lies within one that is excluded.
        Overtaken: workers were always quicker; try again.
        DatasetNotWritable: nothing was written.
    """
    if span.start_ms >= span.end_ms:
        raise NothingToDecide(f"{span} is no span: it ends before it begins")
    if not reason.strip():
        raise NothingToDecide("say why, by --reason: whoever meets the gap in a model's data will ask")

    def decide(standing: tuple[Exclusion, ...]) -> tuple[Exclusion, ...]:
        for each in standing:
            if each.span.start_ms <= span.start_ms and span.end_ms <= each.span.end_ms:
                raise NothingToDecide(
                    f"{span} is excluded already, with {each.span} by {each.by}: {each.reason}"
                )
        own = Exclusion(span=span, reason=reason, by=by, at_ms=int(time.time() * 1000))
        return tuple(sorted((*standing, own), key=lambda each: each.span))

    return _commit(pipeline, uri, span, decide, excludes=True, reason=reason, by=by)


def include(pipeline: Pipeline, uri: str, span: Window, *, reason: str, by: str) -> int:
    """Take the exclusion of exactly that span back; gives the version that says so.

    Raises:
        NothingToDecide: that span is not excluded.
        Overtaken: workers were always quicker; try again.
        DatasetNotWritable: nothing was written.
    """

    def decide(standing: tuple[Exclusion, ...]) -> tuple[Exclusion, ...]:
        left = tuple(each for each in standing if each.span != span)
        if len(left) == len(standing):
            there = ", ".join(str(each.span) for each in standing) or "none"
            raise NothingToDecide(f"{span} is not excluded; excluded spans of {pipeline.name}: {there}")
        return left

    return _commit(pipeline, uri, span, decide, excludes=False, reason=reason, by=by)


def _commit(
    pipeline: Pipeline,
    uri: str,
    span: Window,
    decide: Callable[[tuple[Exclusion, ...]], tuple[Exclusion, ...]],
    *,
    excludes: bool,
    reason: str,
    by: str,
) -> int:
    ledger = Ledger(uri, dataset_schema(pipeline))
    for attempt in range(1, _TRIES + 1):
        # What stands is read at the very version that the commit is made on: another's decision in between
        # makes it fail.
        standing = decide(excluded_at(uri, ledger.version()))
        decided = Decided(excludes=excludes, span=span, reason=reason, by=by, standing=standing)
        try:
            return ledger.commit(
                pl.DataFrame(schema=ledger.schema),
                advances={},
                watermarks={},
                metadata={
                    "offsets": {},
                    EXCLUSION: msgspec.to_builtins(decided),
                    "committed_ms": int(time.time() * 1000),
                    "watermark_ms": ledger.pipeline_watermark(),
                },
                marks=(EXCLUSION,),
            )
        except Overtaken:
            if attempt == _TRIES:
                raise
    raise AssertionError("the last try returns or raises")
