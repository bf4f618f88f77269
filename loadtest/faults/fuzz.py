"""Feeds a pipeline's ingest with records that are hard to read, and accounts for each of them.

    tidemill bench fuzz --records 1000000 --seed 1

A record is accounted for when its offset is a row's, a dead letter's, or a repeat's that `dedupe` dropped. A
batch that raises is a crash; one that takes more than a second of the processor is a stall.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from loadtest.faults.malformed import AVRO_SCHEMA, SCHEMA_ID, Made, records
from loadtest.faults.pipeline import pipeline
from streams.decode.avro import WriterSchema, parse
from streams.ingest import Ingest, Prepared
from streams.transport.frame import Frame, column

BATCH = 2_000
STALL_S = 1.0
_NOW_MS = 1_760_000_000_000


@dataclass(kw_only=True)
class Fuzzed:
    """What became of them. `wrong` has an example of each record that was not accounted for."""

    records: int = 0
    rows: int = 0
    letters: int = 0
    dropped: int = 0
    crashes: int = 0
    stalls: int = 0
    unaccounted: int = 0
    slowest_ms: float = 0.0
    took_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def holds(self) -> bool:
        """Whether nothing crashed, nothing stalled, and each record is accounted for."""
        return not (self.crashes or self.stalls or self.unaccounted)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        counted = {"kinds": dict(self.kinds), "reasons": dict(self.reasons)}
        return {**plain, **counted, "holds": self.holds()}


def fuzz(count: int, *, seed: int, progress: Callable[[int], object] = lambda _: None) -> Fuzzed:
    """Make so many records from the seed and take them in, batch by batch."""
    schema = parse(json.dumps(AVRO_SCHEMA))

    def writers(numbers: Any) -> dict[int, WriterSchema | None]:
        return {number: schema if number == SCHEMA_ID else None for number in numbers}

    ingest = Ingest(pipeline, writers=writers)
    fuzzed = Fuzzed()
    began = time.perf_counter()
    made = records(seed, count)
    offset = 0
    while batch := list(itertools.islice(made, BATCH)):
        frame = frame_of(batch, offset)
        offset = frame.next
        cpu_s = time.process_time()
        try:
            prepared = ingest.prepare([frame], now_ms=_NOW_MS)
        except Exception as error:  # the very thing that is looked for
            fuzzed.crashes += 1
            fuzzed.wrong.append(f"offset {frame.first}: {type(error).__name__}: {error}")
        else:
            ingest.settle(prepared)
            _account(fuzzed, batch, frame, prepared)
        cpu_s = time.process_time() - cpu_s
        fuzzed.slowest_ms = max(fuzzed.slowest_ms, cpu_s * 1000)
        fuzzed.stalls += cpu_s > STALL_S
        fuzzed.records += len(batch)
        fuzzed.kinds.update(each.kind for each in batch)
        progress(len(batch))
    fuzzed.took_s = time.perf_counter() - began
    return fuzzed


def frame_of(batch: Sequence[Made], first: int) -> Frame:
    """The records as the transport would hand them over."""
    return Frame(
        pipeline.source.topic,
        0,
        first,
        first + len(batch),
        column(each.value for each in batch),
        column([None] * len(batch)),
        range(first, first + len(batch)),
        headers={index: each.headers for index, each in enumerate(batch) if each.headers},
        stamps=[(0, _NOW_MS)],
        size_bytes=sum(len(each.value or b"") for each in batch),
    )


def _account(fuzzed: Fuzzed, batch: Sequence[Made], frame: Frame, prepared: Prepared) -> None:
    counts = prepared.counts[pipeline.source.topic]
    dropped = sum(counts.dropped.values())
    there: Counter[int] = Counter(prepared.rows.get_column("_offset").to_list())
    fuzzed.rows += prepared.rows.height
    fuzzed.letters += len(prepared.dead_letters)
    fuzzed.dropped += dropped
    fuzzed.reasons.update(letter.reason for letter in prepared.dead_letters)
    there.update(letter.offset for letter in prepared.dead_letters)
    identities = prepared.rows.select("_offset", "_row")
    doubled = identities.height - identities.unique().height
    odd: list[tuple[Made, int]] = []
    missing = 0
    for index, each in enumerate(batch):
        became = there[frame.first + index]
        if not each.least <= became <= each.most:
            odd.append((each, became))
            missing += max(0, each.least - became)
    too_many = sum(1 for each, became in odd if became > each.most)
    # A repeat that was dropped leaves its trace in the counts alone.
    unaccounted = too_many + max(0, missing - dropped) + doubled
    if counts.events != counts.rows + len(prepared.dead_letters) + dropped:
        unaccounted = max(unaccounted, 1)
    fuzzed.unaccounted += unaccounted
    if unaccounted:
        fuzzed.wrong += [f"{each.kind} became {n}: {(each.value or b'')[:80]!r}" for each, n in odd[:5]]
