"""Pathway, as its documentation has it: a table from Kafka, cleaned, tagged, counted in tumbling windows."""

import os

import pathway as pw
from marks import Marks


class Reading(pw.Schema):
    number: str
    time: int
    source: str
    kind: str
    value: float | None
    battery: int


readings = pw.io.kafka.read(
    {
        "bootstrap.servers": os.environ["BENCH_BOOTSTRAP"],
        "group.id": os.environ["BENCH_GROUP"],
        "auto.offset.reset": "earliest",
    },
    topic=os.environ["BENCH_TOPIC"],
    format="json",
    schema=Reading,
    json_field_paths={"number": "/id"},  # no column may be called id
)
value = pw.coalesce(pw.this.value, 999.0)
checked = readings.with_columns(value=value, good=(value >= -50) & (value <= 150))
tagged = checked.filter(pw.this.good).with_columns(tag=pw.if_else(pw.this.value >= 80, "hot", ""))
counts = tagged.windowby(
    pw.this.time,
    window=pw.temporal.tumbling(duration=10_000),
    instance=(pw.this.source, pw.this.tag),
).reduce(
    start=pw.this._pw_window_start,
    instance=pw.this._pw_instance,
    count=pw.reducers.count(),
)
pw.io.null.write(counts)

# One row, changed once a commit: what it costs is nothing beside the work.
marks = Marks()
progress = checked.reduce(read=pw.reducers.count(), kept=pw.reducers.sum(pw.cast(int, pw.this.good)))


def said(row, is_addition, **_):
    if is_addition:
        marks.at(row["read"], row["kept"])


pw.io.subscribe(progress, on_change=said)
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
