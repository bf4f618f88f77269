"""A limit: plain aiokafka, `getmany`, nothing done with the records."""

import asyncio
import os

from aiokafka import AIOKafkaConsumer
from marks import Marks


async def main():
    marks = Marks()
    consumer = AIOKafkaConsumer(
        os.environ["BENCH_TOPIC"],
        bootstrap_servers=os.environ["BENCH_BOOTSTRAP"],
        group_id=os.environ["BENCH_GROUP"],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    rows = int(os.environ["BENCH_ROWS_PER_RECORD"])
    read = 0
    try:
        while read < marks.total:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                read += len(records) * rows
                marks.at(read)
    finally:
        await consumer.stop()


asyncio.run(main())
