"""Quix Streams, as its documentation has it: a StreamingDataFrame, windows in RocksDB with their changelogs.

The key is the source, so each tag is a branch and nothing has to be repartitioned.
"""

import os

from marks import Marks
from quixstreams import Application

marks = Marks()

app = Application(
    broker_address=os.environ["BENCH_BOOTSTRAP"],
    consumer_group=os.environ["BENCH_GROUP"],
    auto_offset_reset="earliest",
    state_dir=os.environ["BENCH_HOME"],
    loglevel="WARNING",
)
topic = app.topic(
    os.environ["BENCH_TOPIC"],
    value_deserializer="json",
    timestamp_extractor=lambda value, *_: value["time"],
)


def is_good(reading):
    value = reading["value"]
    good = value is not None and -50 <= value <= 150
    marks.one(kept=good)
    return good


readings = app.dataframe(topic).filter(is_good)
for name, chosen in (
    ("hot", readings.filter(lambda reading: reading["value"] >= 80)),
    ("untagged", readings.filter(lambda reading: reading["value"] < 80)),
):
    chosen.tumbling_window(duration_ms=10_000, grace_ms=1_000, name=name).count().final()

if __name__ == "__main__":
    app.run()
