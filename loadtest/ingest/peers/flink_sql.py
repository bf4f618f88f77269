"""Flink SQL, as its documentation has it: a table from Kafka, a window function, counts by source and tag.

The job ends at the topic's end, which closes its last windows. How far it is, is told by the windows' own
counts, added up by a second aggregation: one row a window, which costs nothing beside the work.
"""

import os
import time

from marks import Marks
from pyflink.table import EnvironmentSettings, TableEnvironment

tables = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
tables.get_config().set("pipeline.jars", os.environ["BENCH_JARS"])
tables.get_config().set("parallelism.default", "1")
tables.execute_sql(
    f"""
    CREATE TABLE readings (
        `id` STRING,
        `time` BIGINT,
        `source` STRING,
        `kind` STRING,
        `value` DOUBLE,
        `battery` INT,
        `at` AS TO_TIMESTAMP_LTZ(`time`, 3),
        WATERMARK FOR `at` AS `at` - INTERVAL '1' SECOND
    ) WITH (
        'connector' = 'kafka',
        'topic' = '{os.environ["BENCH_TOPIC"]}',
        'properties.bootstrap.servers' = '{os.environ["BENCH_BOOTSTRAP"]}',
        'properties.group.id' = '{os.environ["BENCH_GROUP"]}',
        'scan.startup.mode' = 'earliest-offset',
        'scan.bounded.mode' = 'latest-offset',
        'format' = 'json'
    )
    """
)
tables.execute_sql(
    """
    CREATE TEMPORARY VIEW tagged AS
    SELECT `at`, `source`, CASE WHEN `value` >= 80 THEN 'hot' ELSE '' END AS tag
    FROM readings
    WHERE `value` BETWEEN -50 AND 150
    """
)
closed = tables.execute_sql(
    """
    SELECT SUM(readings)
    FROM (
        SELECT window_start, window_end, `source`, tag, COUNT(*) AS readings
        FROM TABLE(TUMBLE(TABLE tagged, DESCRIPTOR(`at`), INTERVAL '10' SECOND))
        GROUP BY window_start, window_end, `source`, tag
    )
    GROUP BY window_start, window_end
    """
)
marks = Marks()
kept, heard_s = 0, time.time()
with closed.collect() as windows:
    for (count,) in windows:
        kept, heard_s = kept + count, time.time()
        marks.at(min(kept, marks.total - 1), kept)
# What was cleaned away is in no window, but read.
marks.at(marks.total, kept, time_s=heard_s)
