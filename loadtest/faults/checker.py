"""Holds what was sent against what came of it. Shares no code with what it checks: plain Polars and Delta.

A row is found by the number in its event's id, a dead letter by its origin, an announcement by its id.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from deltalake import DeltaTable

from infra.kafka.connection import Connection
from loadtest.faults.sender import START_MS, WINDOW_MS, Plan, bad_value
from schemas.topics import DEAD_LETTERS, FEATURES, WINDOWS, Topic


@dataclass(frozen=True, slots=True)
class Said:
    """One announcement as it stands on its topic: CloudEvents id and type, and its data."""

    id: str
    kind: str
    data: bytes


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What is wrong, in numbers; all of it is 0 where the promise held.

    `repeated` is not wrong: announcements that came again under their id, saying the same.
    """

    events: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    strange: int = 0
    """Rows that nobody sent, or whose values are others."""
    letters: int = 0
    letters_missing: int = 0
    letters_doubled: int = 0
    windows: int = 0
    announcements_missing: int = 0
    announcements_doubled: int = 0
    repeated: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    WRONG = (
        "lost",
        "doubled",
        "strange",
        "letters_missing",
        "letters_doubled",
        "announcements_missing",
        "announcements_doubled",
    )

    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not any(getattr(self, name) for name in self.WRONG)

    def note(self, name: str, count: int, example: object = "") -> None:
        """Add to one of the counts, with an example for whoever looks for the cause."""
        if count:
            setattr(self, name, getattr(self, name) + count)
            self.examples.append(f"{name}: {example}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(
    sent: pl.DataFrame, plan: Plan, rows: pl.DataFrame, said: Sequence[Said], *, unacknowledged: int = 0
) -> Verdict:
    """Compare.

    Args:
        sent: acknowledged records; columns partition, offset, number, kind.
        rows: the dataset's; columns _partition, _offset, _row, _time, flight_id, distance.
        said: all that stands on the topics of dead letters, windows and features.
        unacknowledged: so many records may or may not have come; what comes of them is nobody's fault.
    """
    verdict = Verdict(events=sent.height, rows=rows.height)
    found = rows.with_columns(number=pl.col("flight_id").str.strip_prefix("f-").cast(pl.Int64, strict=False))
    _rows(verdict, sent, plan, found, unacknowledged)
    letters = [each for each in said if each.kind.endswith("record.rejected.v1")]
    _letters(verdict, sent, letters, unacknowledged)
    _windows(verdict, found, [each for each in said if "window." in each.kind])
    _features(verdict, found, [each for each in said if "features." in each.kind])
    return verdict


def _rows(verdict: Verdict, sent: pl.DataFrame, plan: Plan, rows: pl.DataFrame, unacknowledged: int) -> None:
    events = sent.filter(pl.col("kind") == "event").get_column("number")
    there = rows.get_column("number")
    lost = events.filter(~events.is_in(there.implode()))
    verdict.note("lost", lost.len(), lost.head(3).to_list())
    counts = rows.group_by("number").len().filter(pl.col("len") > 1)
    verdict.note("doubled", int((counts.get_column("len") - 1).sum()), counts.head(3).rows())
    # The event or its repeat: whichever came first by the dataset's own order is the row.
    own = sent.filter(pl.col("kind") != "bad").select(
        pl.col("number"), _partition=pl.col("partition"), _offset=pl.col("offset")
    )
    unknown = rows.join(own, on=["number", "_partition", "_offset"], how="anti")
    verdict.note("strange", max(0, unknown.height - unacknowledged), unknown.head(3).rows())
    span_ms = plan.windows * WINDOW_MS
    wrong = rows.filter(
        (pl.col("_time") != START_MS + pl.col("number") * span_ms // plan.events)
        | (pl.col("distance") != (pl.col("number") * 7 % 12_000).cast(pl.Float64))
        | (pl.col("_row") != 0)
    )
    verdict.note("strange", wrong.height, wrong.head(3).rows())


def _letters(verdict: Verdict, sent: pl.DataFrame, letters: Sequence[Said], unacknowledged: int) -> None:
    by_id: dict[str, bytes] = {}
    origins: dict[tuple[int, int], str] = {}
    repeats = 0
    bad = {
        (p, o): n
        for p, o, n in sent.filter(pl.col("kind") == "bad").select("partition", "offset", "number").rows()
    }
    strange = 0
    for each in letters:
        if each.id in by_id:
            repeats += 1
            verdict.note("letters_doubled", int(by_id[each.id] != each.data), f"{each.id} says two things")
            continue
        by_id[each.id] = each.data
        letter = json.loads(each.data)
        origin = (letter["partition"], letter["offset"])
        verdict.note("letters_doubled", int(origin in origins), f"{origin} has two letters")
        origins[origin] = each.id
        if origin not in bad:
            strange += 1
        elif _bytes(letter["record_value"]) != bad_value(bad[origin]):
            verdict.note("strange", 1, f"letter {each.id} has other bytes")
    verdict.note("strange", max(0, strange - unacknowledged), "letters of records that were not bad")
    missing = bad.keys() - origins.keys()
    verdict.note("letters_missing", len(missing), sorted(missing)[:3])
    verdict.letters = len(by_id)
    verdict.repeated["dead letters"] = repeats


def _windows(verdict: Verdict, rows: pl.DataFrame, said: Sequence[Said]) -> None:
    statements, repeats = _by_id(verdict, said)
    closed: dict[int, dict[str, Any]] = {}
    late: dict[int, int] = {}
    for each_id, (kind, data) in statements.items():
        statement = json.loads(data)
        start_ms = statement["window"]["start_ms"]
        if "closed" in kind:
            verdict.note("announcements_doubled", int(start_ms in closed), f"{each_id}: closed twice")
            closed[start_ms] = statement
        else:
            late[start_ms] = late.get(start_ms, 0) + statement["late_rows"]
    counted = dict(
        rows.group_by(start=pl.col("_time") // WINDOW_MS * WINDOW_MS).agg(pl.len()).sort("start").iter_rows()
    )
    verdict.windows = len(closed)
    missing = counted.keys() - closed.keys()
    verdict.note("announcements_missing", len(missing), [f"window {w}" for w in sorted(missing)[:3]])
    for start_ms, statement in sorted(closed.items()):
        told = statement["summary"]["rows"] + late.get(start_ms, 0)
        # More rows than were told of: an amendment is missing. Fewer: one was said twice under two ids.
        difference = counted.get(start_ms, 0) - told
        verdict.note("announcements_missing", max(0, difference), f"window {start_ms} told of {told} rows")
        verdict.note("announcements_doubled", max(0, -difference), f"window {start_ms} told of {told} rows")
    verdict.repeated["windows"] = repeats


def _features(verdict: Verdict, rows: pl.DataFrame, said: Sequence[Said]) -> None:
    records, repeats = _by_id(verdict, said, arrow=True)
    verdict.repeated["features"] = repeats
    keys = [pl.read_ipc_stream(data).get_column("flight_id") for _, data in records.values()]
    told = pl.concat(keys) if keys else pl.Series("flight_id", [], dtype=pl.String)
    verdict.note("announcements_doubled", told.len() - told.n_unique(), "rows whose features were told twice")
    untold = rows.get_column("flight_id")
    untold = untold.filter(~untold.is_in(told.implode()))
    verdict.note("announcements_missing", untold.len(), f"features of {untold.head(3).to_list()}")


def rows_told(said: Sequence[Said]) -> int:
    """Rows whose features stand among these announcements; those that came again count once."""
    return sum(pl.read_ipc_stream(data).height for data in {each.id: each.data for each in said}.values())


def _by_id(
    verdict: Verdict, said: Sequence[Said], *, arrow: bool = False
) -> tuple[dict[str, tuple[str, bytes]], int]:
    """Statements by id, and how many came again; one that says something else under its id is doubled."""
    by_id: dict[str, tuple[str, bytes]] = {}
    repeats = 0
    for each in said:
        if each.id not in by_id:
            by_id[each.id] = (each.kind, each.data)
            continue
        repeats += 1
        before = by_id[each.id][1]
        # Of the same rows Arrow may write other bytes.
        same = before == each.data or (
            arrow and pl.read_ipc_stream(before).equals(pl.read_ipc_stream(each.data))
        )
        verdict.note("announcements_doubled", int(not same), f"{each.id} says two things")
    return by_id, repeats


def _bytes(encoded: str | None) -> bytes:
    return base64.b64decode(encoded or "")


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────


def read_rows(uri: str) -> pl.DataFrame:
    """The dataset's rows, by Delta's own reader."""
    wanted = ["_partition", "_offset", "_row", "_time", "flight_id", "distance"]
    files = DeltaTable(uri).file_uris()
    if not files:
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.Int64) | {"flight_id": pl.String})
    return pl.read_parquet(files, columns=wanted, glob=False)


def read_said(
    connection: Connection, pipeline: str, topics: Sequence[Topic] = (DEAD_LETTERS, WINDOWS, FEATURES)
) -> list[Said]:
    """All that stands on the announcement topics, by a plain consumer."""
    return asyncio.run(_read_said(connection, pipeline, topics))


async def _read_said(connection: Connection, pipeline: str, topics: Sequence[Topic]) -> list[Said]:
    consumer = AIOKafkaConsumer(
        **connection.client_arguments(), enable_auto_commit=False, max_partition_fetch_bytes=8 * 2**20
    )
    await consumer.start()
    found: list[Said] = []
    try:
        partitions = [TopicPartition(topic.name, 0) for topic in topics]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        unread = {tp for tp in partitions if ends[tp]}
        while unread:
            for records in (await consumer.getmany(*unread, timeout_ms=1_000)).values():
                for record in records:
                    headers = dict(record.headers)
                    each = Said(headers["ce_id"].decode(), headers["ce_type"].decode(), record.value or b"")
                    found += [each] if each.id.startswith(f"{pipeline}/") else []
            unread = {tp for tp in unread if await consumer.position(tp) < ends[tp]}
    finally:
        await consumer.stop()
    return found
