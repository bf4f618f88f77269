"""What Tidemill's windows count, held against the events: by window, source and tag, as every peer counts.

A window's own statement counts its rows and its tags, all sources together; by source they are asked of the
rows, which are kept. Both must be what the data give.
"""

from __future__ import annotations

import asyncio

import polars as pl

from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from loadtest.ingest import readings, tidemill
from loadtest.ingest.side import Task
from schemas import topics
from schemas.envelope import open_record, unwrap
from schemas.window import WindowClosed

_BY = ("window", "source", "tag")


def faults(task: Task) -> list[str]:
    """Windows that count something else than the data give; for a worker that has read all of them."""
    right = task.filled.counts
    rows = pl.read_delta(str(task.home / "dataset" / tidemill.name_of(task)))
    is_hot = pl.col("_tags").list.contains("hot")
    found = readings.counts(rows.select("source", time=pl.col("_time"), is_hot=is_hot))
    wrong = right.join(found, on=[*_BY, "count"], how="anti").height
    wrong += found.join(right, on=[*_BY, "count"], how="anti").height
    said = [f"{wrong} counts by window, source and tag differ from the data's"] if wrong else []
    by_window = {
        start_ms: (count, hot)
        for start_ms, count, hot in right.group_by("window")
        .agg(pl.col("count").sum(), hot=pl.col("count").filter(pl.col("tag") == "hot").sum())
        .iter_rows()
    }
    closed = asyncio.run(_closed(task))
    if not closed:
        said.append("no window closed")
    for each in closed:
        told = (each.summary.rows, each.summary.tags.get("hot", 0))
        if told != by_window[each.window.start_ms]:
            said.append(
                f"window {each.window} counts {told}; {by_window[each.window.start_ms]} would be right"
            )
    return said


async def _closed(task: Task) -> list[WindowClosed]:
    connection, name = Connection(bootstrap_servers=task.bootstrap_servers), tidemill.name_of(task)
    found: dict[str, WindowClosed] = {}
    async for record in read_to_end(connection, {topics.WINDOWS.name: None}):
        envelope = open_record(record.key, record.value, record.headers)
        statement = unwrap(envelope)
        if isinstance(statement, WindowClosed) and statement.pipeline == name:
            found.setdefault(envelope.id, statement)
    return list(found.values())
