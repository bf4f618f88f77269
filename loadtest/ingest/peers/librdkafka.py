"""A limit: librdkafka by confluent-kafka, `consume` of many messages at a time, nothing done with them."""

import os

from confluent_kafka import Consumer
from marks import Marks

marks = Marks()
consumer = Consumer(
    {
        "bootstrap.servers": os.environ["BENCH_BOOTSTRAP"],
        "group.id": os.environ["BENCH_GROUP"],
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
)
consumer.subscribe([os.environ["BENCH_TOPIC"]])
rows = int(os.environ["BENCH_ROWS_PER_RECORD"])
read = 0
while read < marks.total:
    messages = consumer.consume(num_messages=10_000, timeout=0.5)
    if messages:
        read += len(messages) * rows
        marks.at(read)
consumer.close()
