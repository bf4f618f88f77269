"""Stock Faust, as its documentation has it: a record, an agent, a tumbling table by source and tag."""

import io
import json
import os

import fastavro
import faust
from faust.serializers import codecs
from faust.serializers.codecs import Codec
from marks import Marks

app = faust.App(
    os.environ["BENCH_GROUP"],
    broker=f"kafka://{os.environ['BENCH_BOOTSTRAP']}",
    store="memory://",
    web_enabled=False,
    topic_disable_leader=True,
    topic_partitions=int(os.environ["BENCH_PARTITIONS"]),
    datadir=os.environ["BENCH_HOME"],
    consumer_auto_offset_reset="earliest",
)


class Reading(faust.Record, serializer="json"):
    id: str
    time: int
    source: str
    kind: str
    value: float
    battery: int


class Avro(Codec):
    """Avro in Confluent's framing, record by record, by the fastest reader that Python has."""

    schema = fastavro.parse_schema(json.loads(os.environ["BENCH_AVRO"]))

    def _loads(self, s):
        stream = io.BytesIO(s)
        stream.seek(5)
        return fastavro.schemaless_reader(stream, self.schema, None)


class AvroReading(Reading, serializer="avro"):
    pass


codecs.register("avro", Avro())
kind = AvroReading if os.environ["BENCH_FORMAT"] == "avro" else Reading
topic = app.topic(os.environ["BENCH_TOPIC"], value_type=kind, value_serializer=kind._options.serializer)
# By the event's own time would need `relative_to_field`; a window is told from the event's time here.
counts: dict[tuple[int, str, str], int] = {}
marks = Marks()


@app.agent(topic)
async def count(readings):
    read = kept = 0
    async for reading in readings:
        read += 1
        if reading.value is not None and -50 <= reading.value <= 150:
            kept += 1
            tag = "hot" if reading.value >= 80 else ""
            window = (reading.time // 10_000 * 10_000, reading.source, tag)
            counts[window] = counts.get(window, 0) + 1
        if read % 500 == 0 or read == marks.total:
            marks.at(read, kept)


if __name__ == "__main__":
    app.main()
