"""Find a pipeline's mistakes before anything runs: each with the line it stands on and the way out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import polars as pl

from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.lookback import Crowding, Isolated, Rare
from streams.check import trial
from streams.check.features import features, labels
from streams.check.training import training
from streams.check.trigger import trigger
from streams.clean import Cleaning, Dedupe, Mend, Rule
from streams.declared import InvalidPipeline, Place, Problem, nearest
from streams.decode.columns import schema_of
from streams.load import load_pipeline
from streams.pipeline import Pipeline, Source
from streams.tag import LATE, Behind, OfLabels, Slice, Tag

Schema = Mapping[str, Any]


def check(named: str) -> list[Problem]:
    """All mistakes of the pipeline that a module or file declares; none means that it can run.

    Raises:
        InvalidConfiguration: there is no such module or file, or it cannot be imported at all.
    """
    try:
        loaded = load_pipeline(named)
    except InvalidPipeline as error:
        return [Problem(error.place, error.problem)]
    return list(problems(loaded.pipeline))


def refuse_mistakes(pipeline: Pipeline) -> None:
    """Let nothing start on a pipeline with mistakes.

    Raises:
        InvalidConfiguration: it has some; the message lists them all.
    """
    found = list(problems(pipeline))
    if found:
        listed = "\n  ".join(map(str, found))
        raise InvalidConfiguration(f"pipeline {pipeline.name} cannot run:\n  {listed}")


def problems(pipeline: Pipeline) -> Iterator[Problem]:
    """All mistakes of a declared pipeline."""
    schemas: dict[str, Schema] = {}
    yield from _names(pipeline)
    for source in pipeline.sources().values():
        found = list(_source(pipeline, source))
        yield from found
        schemas[source.topic] = _schema(source)
    yield from _shared_names(pipeline, schemas)
    yield from _tags(pipeline, schemas[pipeline.source.topic])
    yield from _window(pipeline, schemas[pipeline.source.topic])
    yield from features(pipeline, schemas)
    yield from labels(pipeline, schemas)
    yield from trigger(pipeline, schemas[pipeline.source.topic])
    yield from training(pipeline)


def _names(pipeline: Pipeline) -> Iterator[Problem]:
    """What must be one of its kind, and what Kafka and files can be named by."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", pipeline.name):
        yield Problem(
            pipeline.place,
            f"name={pipeline.name!r} names a folder and events; write lower-case letters, digits, - _ .",
        )
    labels = [pipeline.labels.source] if pipeline.labels else []
    declared: set[str] = set()
    for source in (pipeline.source, *pipeline.context, *labels):
        if source.topic in declared:
            yield Problem(source.place, f"source {source.topic!r} is declared twice; use one Source for both")
        declared.add(source.topic)
        twice = [r for r in pipeline.rules(source.topic) if isinstance(r, Dedupe)][1:]
        for each in twice:
            yield Problem(each.place, f"{source.topic} is deduped twice; keep the rule with the longer span")


def _source(pipeline: Pipeline, source: Source) -> Iterator[Problem]:
    declared = topics.declared(source.topic)
    if declared is None:
        known = [t.name for t in topics.TOPICS]
        yield Problem(
            source.place,
            f"topic {source.topic!r} is not declared in schemas/topics.py{nearest(source.topic, known)}",
        )
    elif source.schema not in declared.contracts:
        right = ", ".join(c.__name__ for c in declared.contracts)
        yield Problem(
            source.place,
            f"topic {source.topic} carries {right}, not {source.schema.__name__}; set schema={right}",
        )
    try:
        raw = dict(schema_of(source.schema))
    except InvalidConfiguration as error:
        yield Problem(source.place, str(error))
        return
    for what, column in (("event_time", source.event_time), ("key", source.key)):
        if column not in raw:
            yield Problem(
                source.place,
                f"{what}={column!r} is no column of {source.schema.__name__}{nearest(column, raw)}",
            )
    if raw.get(source.event_time, pl.Int64()) != pl.Int64():
        yield Problem(
            source.place,
            f"event_time={source.event_time!r} is {raw[source.event_time]}; it must be epoch milliseconds",
        )
    for name in raw:
        if name.startswith("_"):
            yield Problem(
                source.place, f"field {name!r} begins with _, which Tidemill keeps for itself; rename it"
            )
    yield from _spans(source)
    for rule in pipeline.rules(source.topic):
        yield from _rule(rule, {**raw, "_time": pl.Int64()})
    for name, expression in source.derive.items():
        yield from _expression(source.place, f"derive {name!r}", expression, raw)
        if name.startswith("_"):
            yield Problem(
                source.place, f"derived column {name!r} begins with _, which Tidemill keeps for itself"
            )


def _spans(source: Source) -> Iterator[Problem]:
    for name in ("disorder_ms", "future_ms"):
        try:
            getattr(source, name)
        except InvalidPipeline as error:
            yield Problem(source.place, f"{name.removesuffix('_ms')}: {error.problem}")


def _rule(rule: Cleaning, schema: Schema) -> Iterator[Problem]:
    if isinstance(rule, Rule):
        yield from _expression(rule.place, f"rule {rule.name}", rule.keep, schema, gives=pl.Boolean())
    elif isinstance(rule, Mend):
        for condition in (rule.where, *([] if rule.known is None else [rule.known])):
            yield from _expression(rule.place, rule.name, condition, schema, gives=pl.Boolean())
        for column, value in rule.sets.items():
            yield from _mended(rule, column, value, schema)


def _mended(mend: Mend, column: str, value: pl.Expr, schema: Schema) -> Iterator[Problem]:
    """A mended value must be of its column's kind: the contract's types do not change."""
    if column not in schema:
        yield Problem(
            mend.place, f"{mend.name} sets column {column!r}, which is not there{nearest(column, schema)}"
        )
        return
    found = list(_expression(mend.place, mend.name, value, schema))
    yield from found
    if not found:
        got, wanted = trial.type_of(value, schema), schema[column]
        if got != wanted and not (got.is_numeric() and wanted.is_numeric()):
            yield Problem(
                mend.place, f"{mend.name} gives {got}, but {column!r} is {wanted}; give one of its kind"
            )


def _expression(
    place: Place, what: str, expression: pl.Expr, schema: Schema, *, gives: pl.DataType | None = None
) -> Iterator[Problem]:
    unknown = [c for c in expression.meta.root_names() if c not in schema]
    if unknown:
        yield Problem(
            place, f"{what} reads column {unknown[0]!r}, which is not there{nearest(unknown[0], schema)}"
        )
        return
    try:
        got = trial.type_of(expression, schema)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        yield Problem(place, f"{what} cannot be computed on these columns: {first}")
        return
    if gives is not None and got != gives:
        yield Problem(place, f"{what} gives {got}, not true or false; compare it with something")
    if trial.looks_at_other_rows(expression, schema):
        yield Problem(
            place, f"{what} looks at other rows than its own, and they come in any batches; use the row alone"
        )


def _schema(source: Source) -> Schema:
    """The source's columns with those derived; without them where they cannot be computed."""
    try:
        raw = pl.DataFrame(schema=dict(schema_of(source.schema)))
        return dict(raw.with_columns(**source.derive).schema)
    except (pl.exceptions.PolarsError, InvalidConfiguration):
        return {}


def _shared_names(pipeline: Pipeline, schemas: Mapping[str, Schema]) -> Iterator[Problem]:
    """One flat dataset holds all sources: a name may stand for one type only."""
    seen: dict[str, tuple[Any, str]] = {}
    for topic, schema in schemas.items():
        for name, dtype in schema.items():
            other = seen.setdefault(name, (dtype, topic))
            if other[0] != dtype:
                yield Problem(
                    pipeline.sources()[topic].place,
                    f"column {name!r} is {dtype} here, {other[0]} in {other[1]}; rename one in derive",
                )


def _tags(pipeline: Pipeline, schema: Schema) -> Iterator[Problem]:
    names: set[str] = set()
    for each in pipeline.tag:
        if isinstance(each, Slice):
            if schema and each.column not in schema:
                yield Problem(
                    each.place, f"slice column {each.column!r} is not there{nearest(each.column, schema)}"
                )
            continue
        if isinstance(each, Behind):
            yield from _behind(each, names, schema)
            names.add(each.lookback.name)
            continue
        if each.name == LATE:
            yield Problem(
                each.place, f"tag {LATE!r} is Tidemill's own, for rows of closed windows; choose another"
            )
        if each.name in names:
            yield Problem(each.place, f"tag {each.name!r} is declared twice; rename one")
        names.add(each.name)
        if isinstance(each, Tag):
            yield from _tag(each, schema)
        if isinstance(each, OfLabels) and pipeline.labels is None:
            yield Problem(each.place, f"tag {each.name!r} is about labels, and there are none; add labels=…")


def _behind(tag: Behind, names: Collection[str], schema: Schema) -> Iterator[Problem]:
    """Mistakes in a tag that judges a row by those before it."""
    declared = tag.lookback
    if declared.name in names or declared.name == LATE:
        yield Problem(tag.place, f"tag {declared.name!r} is declared twice; give one another name=")
    absent = [c for c in declared.reads() if schema and c not in schema]
    for column in absent:
        yield Problem(
            tag.place, f"tag {declared.name!r} reads column {column!r}, not there{nearest(column, schema)}"
        )
    if absent or not schema or isinstance(declared, Rare | Crowding):
        return
    numbers = declared.columns if isinstance(declared, Isolated) else (declared.column,)
    for column in numbers:
        if not schema[column].is_numeric():
            yield Problem(
                tag.place, f"tag {declared.name!r} needs numbers; {column!r} is {schema[column]}; try rare()"
            )


def _window(pipeline: Pipeline, schema: Schema) -> Iterator[Problem]:
    by = pipeline.window.by
    if by is None or not schema:
        return
    if by not in schema:
        yield Problem(
            pipeline.window.place, f"sessions are by column {by!r}, which is not there{nearest(by, schema)}"
        )
    elif schema[by].is_float() or schema[by].is_nested():
        yield Problem(
            pipeline.window.place,
            f"sessions are by column {by!r}, which is {schema[by]}; choose one of text or whole numbers",
        )


def _tag(tag: Tag, schema: Schema) -> Iterator[Problem]:
    reads = tag.columns()
    if "_tags" in reads or (tag.name in reads and tag.name not in schema):
        yield Problem(
            tag.place, f"tag {tag.name!r} reads tags, perhaps itself; let it read columns of the event"
        )
    elif schema:
        yield from _expression(tag.place, f"tag {tag.name!r}", tag.when, schema, gives=pl.Boolean())
