"""All sides, in the order of the table."""

from __future__ import annotations

from loadtest.ingest import counted, tidemill
from loadtest.ingest.environment import apart, java, with_jars
from loadtest.ingest.side import Side, own_python

SIDES: tuple[Side, ...] = (
    Side(
        name="tidemill",
        title="Tidemill",
        prepare=tidemill.prepare,
        marks=tidemill.marks,
        forms=("json", "arrow", "avro"),
        durable="rows, offsets and watermarks in one flushed commit",
        event_time="watermarks, lateness, amendments",
        dedupe="1 min of event time",
        check=counted.faults,
        counts="by tag; by source and tag from the rows, which are kept",
    ),
    Side(
        name="faust",
        title="Faust, stock agent",
        prepare=own_python("faust_agent.py", "worker", "-l", "warn", "--without-web"),
        forms=("json", "avro"),
        durable="no: counts in a dict",
        event_time="windows by event time, none ever closes",
    ),
    Side(
        name="kafka-streams",
        title="Kafka Streams, 1 thread",
        prepare=java("kafka_streams", "Readings"),
        durable="counts in RocksDB and its changelog, at least once, every 30 s",
        event_time="watermark by partition, grace 1 s, counts amended until then",
    ),
    Side(
        name="flink-sql",
        title="Flink SQL, parallelism 1",
        prepare=with_jars("flink_sql.py", "flink_sql.txt", "flink_sql_jars"),
        durable="no: state in memory, no checkpoints",
        event_time="watermark by partition, 1 s; closed windows final, later rows dropped",
    ),
    Side(
        name="bytewax",
        title="Bytewax, 1 worker",
        prepare=apart("bytewax_flow.py", "bytewax_flow.txt", ("-m", "bytewax.run")),
        durable="no: state in memory, no recovery store",
        event_time="watermark by key, 1 s; closed windows final, later rows dropped",
    ),
    Side(
        name="quix",
        title="Quix Streams",
        prepare=apart("quix.py", "quix.txt"),
        durable="counts in RocksDB and its changelog, at least once, every 5 s",
        event_time="watermark by partition, grace 1 s; closed windows final, later rows dropped",
    ),
    Side(
        name="pathway",
        title="Pathway, 1 worker",
        prepare=apart("pathway_flow.py", "pathway_flow.txt"),
        durable="no: state in memory, no persistence",
        event_time="windows by event time, none ever closes",
    ),
    Side(
        name="getmany",
        title="aiokafka getmany",
        prepare=own_python("getmany.py"),
        forms=("json", "arrow", "avro"),
        is_limit=True,
    ),
    Side(
        name="librdkafka",
        title="librdkafka consume",
        prepare=apart("librdkafka.py", "librdkafka.txt"),
        forms=("json", "arrow", "avro"),
        is_limit=True,
    ),
)

NAMES = tuple(side.name for side in SIDES)
