"""What each step of a pipeline costs: CPU time an event, each step by itself on the same rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import polars as pl
from msgspec import Struct

from streams.clean import Dedupe
from streams.decode.avro import Writers
from streams.decode.records import Decoder
from streams.dedupe import Seen
from streams.locate import locate
from streams.pipeline import Pipeline
from streams.sift import Tally, derived, sifted, tagged
from streams.tag import Tag
from streams.transport.frame import Frame

_LEAST_S = 0.03
_MOST_TIMES = 200


class Cost(Struct, frozen=True, kw_only=True):
    """CPU time of one step, all threads together; `events` is on how many it was measured."""

    source: str
    step: str
    us_per_event: float
    events: int


def costs(pipeline: Pipeline, frames: Sequence[Frame], *, writers: Writers | None = None) -> list[Cost]:
    """Measure decoding, each rule, derived column and tag on these frames' rows.

    A step sees what those before it left, as live. The figures are good for comparing steps with each other:
    together they come to more than the whole, which takes rules and tags at once.
    """
    found: list[Cost] = []
    for topic, source in pipeline.sources().items():
        own = [frame for frame in frames if frame.topic == topic]
        events = sum(map(len, own))
        if not events:
            continue

        def timed(step: str, work: Callable[[], object], topic: str = topic, events: int = events) -> None:
            us = _cpu_s(work) / events * 1e6
            found.append(Cost(source=topic, step=step, us_per_event=us, events=events))

        decoder = Decoder(source.schema, writers=writers, unmarked=source.content_type)
        timed("decode", lambda decoder=decoder, own=own: decoder.decode(own))
        rows = locate(own, decoder.decode(own).rows, event_time=source.event_time)
        rows = rows.filter(pl.col("_time").is_not_null(), pl.col(source.key).is_not_null())
        for step in pipeline.rules(topic):
            if isinstance(step, Dedupe):
                seen = Seen(source.key, step.within_ms)
                timed("dedupe", lambda seen=seen, rows=rows: seen.repeats(seen.keys(rows)))
                continue
            timed(step.name, lambda step=step, rows=rows, own=own: sifted([step], rows, Tally(own, None)))
            rows = sifted([step], rows, Tally(own, None))
        for name, expression in source.derive.items():
            one = {name: expression}
            work = lambda one=one, rows=rows, own=own, source=source: derived(  # noqa: E731
                one, rows, Tally(own, None), source.place
            )
            timed(f"derive({name})", work)
        rows = derived(source.derive, rows, Tally(own, None), source.place)
        for tag in pipeline.tag if topic == pipeline.source.topic else ():
            if isinstance(tag, Tag):
                timed(
                    f"tag({tag.name})",
                    lambda tag=tag, rows=rows, own=own: tagged(
                        [tag], rows.drop("_marks", strict=False), Tally(own, None)
                    ),
                )
    return found


def _cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of one go, the best of several."""
    work()
    best, times, began = float("inf"), 0, time.perf_counter()
    while times < 3 or (time.perf_counter() - began < _LEAST_S and times < _MOST_TIMES):
        at = time.process_time()
        work()
        best = min(best, time.process_time() - at)
        times += 1
    return best
