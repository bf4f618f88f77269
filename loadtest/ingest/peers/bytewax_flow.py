"""Bytewax, as its documentation has it: a dataflow of operators, tumbling counts by event time, one worker.

Started by `python -m bytewax.run`. Without a recovery store, as its first examples are.
"""

import json
import os
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from marks import Marks

marks = Marks()


class Nowhere(DynamicSink):
    """Closed windows go nowhere: the work is the counting."""

    def build(self, *_):
        return NowherePartition()


class NowherePartition(StatelessSinkPartition):
    def write_batch(self, items):
        pass


def clean(message):
    reading = json.loads(message.value)
    value = reading["value"]
    good = value is not None and -50 <= value <= 150
    marks.one(kept=good)
    return reading if good else None


def by_source_and_tag(reading):
    return f"{reading['source']}|{'hot' if reading['value'] >= 80 else ''}"


clock = win.EventClock(
    ts_getter=lambda reading: datetime.fromtimestamp(reading["time"] / 1000, UTC),
    wait_for_system_duration=timedelta(seconds=1),
)
windower = win.TumblingWindower(length=timedelta(seconds=10), align_to=datetime(2026, 1, 1, tzinfo=UTC))

flow = Dataflow("readings")
source = KafkaSource([os.environ["BENCH_BOOTSTRAP"]], [os.environ["BENCH_TOPIC"]])
messages = op.input("messages", flow, source)
good = op.filter_map("clean", messages, clean)
counts = win.count_window("counts", good, clock, windower, key=by_source_and_tag)
op.output("closed", counts.down, Nowhere())
