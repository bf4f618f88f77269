"""Tidemill's own side: a real `tidemill worker`, or several, judged by what its commits hold."""

from __future__ import annotations

import itertools
import json
from functools import lru_cache
from pathlib import Path

from infra.dataset import CommitRecord, Dataset
from infra.supervisor import tidemill
from loadtest.ingest.readings import AVRO, AVRO_ID
from loadtest.ingest.side import Mark, Start, Task
from loadtest.ingest.workers import several
from streams.announce.log import is_committed

_FILE = """from loadtest.ingest.readings import pipeline

readings = pipeline({name!r}, records={records!r}, topic={topic!r}, within={within!r})
"""


def prepare(task: Task, *, workers: int = 1, within: str | None = "1m") -> Start:
    """A worker on a pipeline of its own name: an empty dataset, and announcements of nobody before it.

    Args:
        workers: so many processes share the topic's partitions.
        within: the horizon of dedupe; None: repeats are kept.
    """
    name = name_of(task)
    file = task.home / "readings.py"
    # Arrow says so in each record's header.
    records = "avro" if task.form == "avro" else "json"
    file.write_text(_FILE.format(name=name, records=records, topic=task.topic, within=within))
    (task.home / f"{AVRO_ID}.avsc").write_text(json.dumps(AVRO))
    return Start(
        command=tidemill("worker") if workers == 1 else several(workers, task.home),
        environment={
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": task.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(task.home),
            "TIDEMILL_WORKER__PIPELINE": str(file),
            "TIDEMILL_SCHEMA_REGISTRY__FOLDER": str(task.home),
            "TIDEMILL_LOG__FORM": "json",
        },
    )


def marks(task: Task) -> list[Mark]:
    """One a commit that holds events: what is counted is durable, and visible to every reader."""
    uri = str(task.home / "dataset" / name_of(task))
    found: list[Mark] = []
    events = kept = 0
    # Looked at while it runs: to open the table each time would take from what is measured.
    for version in itertools.takewhile(lambda version: is_committed(uri, version), itertools.count()):
        record = _record(uri, version)
        counts = record.metadata.get("counts", {}).values()
        if not counts:
            continue
        events += sum(c["events"] for c in counts)
        kept += sum(c["rows"] for c in counts)
        found.append(Mark(events, record.timestamp_ms / 1000, kept))
    return found


@lru_cache(maxsize=65_536)
def _record(uri: str, version: int) -> CommitRecord:
    return Dataset(uri).commit(version)


def name_of(task: Task) -> str:
    """The pipeline's name, which its dataset bears."""
    return f"readings-{Path(task.home).name}"
