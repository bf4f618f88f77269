"""A pipeline as its engineer declares it: one object that is checked, run live, and replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import polars as pl

from schemas.envelope import CONFLUENT_AVRO, JSON
from schemas.features import Feature, FeatureSpec, Label
from streams.clean import Cleaning
from streams.declared import Place, here
from streams.duration import to_ms
from streams.tag import Behind, Tagging
from streams.training import Publish, Training, better_than_champion
from streams.trigger import Condition
from streams.window import Windowing


@dataclass(frozen=True)
class Source:
    """A raw topic: how its records are read and which rows are kept.

    Args:
        topic: name of the topic.
        schema: contract of one record.
        event_time: column of epoch milliseconds, UTC.
        key: column that identifies an event.
        clean: rules in order; the first that a row fails is its reason.
        derive: columns computed from the record's own, after cleaning.
        disorder: how far behind the newest event of its partition an event may come without being late.
        future: how far ahead of the clock an event time may lie.
        records: what a record without a content type holds: JSON, or Avro in Confluent's framing, whose usual
            serializers say nothing in a header.
    """

    topic: str
    schema: type[msgspec.Struct]
    event_time: str
    key: str
    clean: Sequence[Cleaning] = ()
    derive: Mapping[str, pl.Expr] = field(default_factory=dict)
    disorder: str = "0s"
    future: str = "1d"
    records: Literal["json", "avro"] = "json"
    place: Place = field(default_factory=here, compare=False)

    @property
    def disorder_ms(self) -> int:
        """`disorder` in milliseconds."""
        return 0 if self.disorder == "0s" else to_ms(self.disorder)

    @property
    def content_type(self) -> str:
        """Content type of a record that names none."""
        return CONFLUENT_AVRO if self.records == "avro" else JSON

    @property
    def future_ms(self) -> int:
        """`future` in milliseconds."""
        return to_ms(self.future)


@dataclass(frozen=True)
class Labels:
    """A source whose rows carry the truth about the main source's events, joined by key.

    `column` is the label: a column of the source or one that it derives; 1 and 0, or true and false.
    """

    source: Source
    column: str
    within: str = "2d"
    place: Place = field(default_factory=here, compare=False)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From raw topics to the trigger. See `streams/pipelines/flights.py` for one in full.

    Args:
        name: names the dataset, the worker's group and, unless said otherwise, the model.
        source: the events that are windowed, predicted on and trained on.
        context: other sources that features look up.
        labels: where the truth comes from.
        clean, tag: rules and tags of the main source.
        columns: columns of the event itself that are features.
        features: features from the sources, as of event time.
        window: how events are grouped: `Tumbling`, `Sliding` or `Session`.
        train_when: the trigger; None only ingests.
        train: what a yes trains.
        publish_when: the gate.
    """

    name: str
    source: Source
    window: Windowing
    context: Sequence[Source] = ()
    labels: Labels | None = None
    clean: Sequence[Cleaning] = ()
    tag: Sequence[Tagging] = ()
    columns: Sequence[str] = ()
    features: Sequence[Feature] = ()
    train_when: Condition | None = None
    train: Training | None = None
    publish_when: Publish = field(default_factory=better_than_champion)
    place: Place = field(default_factory=here, compare=False)

    def sources(self) -> dict[str, Source]:
        """All sources by topic; the main one first."""
        every = [self.source, *self.context, *([self.labels.source] if self.labels else [])]
        return {source.topic: source for source in every}

    def rules(self, topic: str) -> Sequence[Cleaning]:
        """Cleaning of a source; the pipeline's own rules are the main source's."""
        source = self.sources()[topic]
        return (*source.clean, *self.clean) if topic == self.source.topic else source.clean

    def spec(self) -> FeatureSpec:
        """The features and the label as data, as they ride in a job's event."""
        label = self.labels and Label(
            source=self.labels.source.topic,
            column=self.labels.column,
            key=self.source.key,
            within_ms=to_ms(self.labels.within),
        )
        return FeatureSpec(
            source=self.source.topic,
            key=self.source.key,
            columns=tuple(self.columns),
            features=tuple(self.features),
            label=label,
            tags=tuple(t.lookback for t in self.tag if isinstance(t, Behind)),
        )

    def horizon_ms(self) -> int:
        """How far back from the watermark the worker must remember rows."""
        return self.spec().horizon_ms() + 1
