"""One run: events flow, faults happen, and in the end everything is counted."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console

from infra.kafka.connection import Connection
from loadtest.faults.checker import check, read_rows, read_said, rows_told
from loadtest.faults.report import Report
from loadtest.faults.schedule import KINDS, WORKERS, schedule
from loadtest.faults.sender import Plan, Sender
from loadtest.faults.stage import Stage
from schemas.errors import InvalidConfiguration, Retryable
from schemas.topics import FEATURES, FLIGHTS_SCHEDULED, WINDOWS

_LOOK_S = 0.5


def run(
    *,
    seconds: float,
    seed: int,
    brokers: int,
    events: int,
    kinds: Collection[str] | None = None,
    cache_dir: Path | None,
    console: Console,
    home: Path | None = None,
    patience_s: float = 240.0,
) -> Report:
    """Send `events` in `seconds` while the seed's faults happen; then wait, and compare.

    Args:
        home: where logs and data are left; None leaves none.
        patience_s: after the last fault all must be in the dataset and announced within so long.

    Raises:
        InvalidConfiguration: a kind is unknown.
        Retryable: the events could not be sent.
    """
    if unknown := set(kinds or ()) - KINDS.keys():
        raise InvalidConfiguration(
            f"no kind of fault is called {sorted(unknown)[0]!r}; there are {', '.join(KINDS)}"
        )
    with tempfile.TemporaryDirectory(prefix="tidemill-faults-", ignore_cleanup_errors=True) as folder:
        return _run(
            home or Path(folder), seconds, seed, brokers, events, kinds, cache_dir, console, patience_s
        )


def _run(
    home: Path,
    seconds: float,
    seed: int,
    brokers: int,
    events: int,
    kinds: Collection[str] | None,
    cache_dir: Path | None,
    console: Console,
    patience_s: float,
) -> Report:
    home.mkdir(parents=True, exist_ok=True)
    # Our own clients meet every fault as well; what they say of it is no news.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    plan = Plan(events, windows=max(10, int(seconds)), partitions=FLIGHTS_SCHEDULED.partitions)
    began = time.monotonic()
    console.log(f"seed {seed}: {brokers} broker(s), {events:,} events in {seconds:g} s")
    with Stage(
        home, brokers=brokers, disk_bytes=(64 << 20) + 120 * events, cache_dir=cache_dir, console=console
    ) as stage:
        left_out: dict[str, str] = {}
        if not stage.disk.is_small:
            left_out["disk_full"] = "only root may mount a small disk"
        wanted = [kind for kind in kinds or KINDS if kind not in left_out]
        if _until(
            lambda: bool(stage.positions()) or len(stage.died) > WORKERS, stage, "a start", patience_s
        ) or (stage.died):
            raise Retryable(f"no worker starts: {stage.died or stage.workers[0].log_tail()}")
        sender = Sender(plan, stage.connection, seconds=seconds)
        sender.start()
        sender.begun.wait()
        faults = stage.play(schedule(seed, seconds=seconds, brokers=brokers, kinds=wanted), until_s=seconds)
        console.log(f"{len(faults)} faults have happened, {sender.sent:,} events are sent; now all must come")
        stalled = _until(lambda: not sender.is_alive(), stage, "the cluster takes all events", patience_s)
        if sender.failure is not None:
            raise Retryable(f"the events could not be sent: {sender.failure!r}") from sender.failure
        ends = sender.account.ends()

        def all_in() -> bool:
            at = stage.positions()
            # Behind the last event stands a heartbeat.
            return all(at.get(partition, 0) > end for partition, end in ends.items())

        stalled = stalled or _until(all_in, stage, "all events are in the dataset", patience_s)
        connection = Connection(bootstrap_servers=stage.ensemble.bootstrap_servers)

        def all_closed() -> bool:
            said = read_said(connection, "faults", [WINDOWS])
            return len({s.id for s in said if s.id.endswith("/closed")}) >= plan.windows

        def all_told() -> bool:
            return rows_told(read_said(connection, "faults", [FEATURES])) >= rows

        stalled = stalled or _until(all_closed, stage, "all windows are announced", patience_s)
        rows = read_rows(stage.uri).height
        stalled = stalled or _until(all_told, stage, "all rows' features are announced", patience_s)
        stage.end(within_s=60)
        console.log("comparing")
        verdict = check(
            sender.account.records(),
            plan,
            read_rows(stage.uri),
            read_said(connection, "faults"),
            unacknowledged=sender.account.unacknowledged,
        )
        return Report(
            events=events,
            seconds=seconds,
            seed=seed,
            brokers=brokers,
            took_s=time.monotonic() - began,
            faults=faults,
            verdict=verdict,
            unacknowledged=sender.account.unacknowledged,
            died=stage.died,
            left_out=left_out,
            stalled=stalled,
        )


def _until(holds: Callable[[], bool], stage: Stage, what: str, within_s: float) -> str:
    """Wait for it, keeping the workers alive; gives what was waited for in vain."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return what
        stage.keep_alive()
        time.sleep(_LOOK_S)
    return ""
