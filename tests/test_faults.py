"""`tidemill bench faults`: its schedule, its checker, and a short run of it against real Kafka."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.faults.checker import Said, Verdict, check, rows_told
from loadtest.faults.schedule import KILLS, KINDS, schedule
from loadtest.faults.sender import WINDOW_MS, Account, Plan, bad_value

PLAN = Plan(events=4_000, windows=10, partitions=2)
WINDOWS = range(PLAN.time_ms(0), PLAN.end_ms, WINDOW_MS)


# ── the schedule ────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 3]))
def test_a_seed_gives_the_same_faults_in_order_and_one_broker_at_a_time(seed: int, brokers: int) -> None:
    faults = schedule(seed, seconds=120, brokers=brokers)
    assert faults == schedule(seed, seconds=120, brokers=brokers)
    assert faults != schedule(seed + 1, seconds=120, brokers=brokers)
    assert [f.at_s for f in faults] == sorted(f.at_s for f in faults)
    assert all(f.at_s + f.lasts_s <= 120 for f in faults)
    struck = [f for f in faults if "broker" in f.kind or f.kind.startswith(("coordinator", "leader"))]
    for one, next_one in itertools.pairwise(struck):
        assert one.at_s + one.lasts_s < next_one.at_s


def test_a_long_run_has_faults_of_every_kind_and_hundreds_of_kills() -> None:
    kinds = [fault.kind for fault in schedule(1, seconds=600, brokers=3)]
    assert set(kinds) == set(KINDS)
    assert sum(kinds.count(kind) for kind in KILLS) >= 300


@pytest.mark.parametrize("seed", range(20))
def test_a_leader_is_away_for_a_minute_once_while_workers_die_and_brokers_stand(seed: int) -> None:
    faults = schedule(seed, seconds=150, brokers=3)
    (away,) = (fault for fault in faults if fault.kind == "leader_away")
    assert away.lasts_s == 60
    assert away.at_s + 60 <= 150
    meanwhile = {fault.kind for fault in faults if away.at_s < fault.at_s < away.at_s + 60}
    assert "worker_kill" in meanwhile
    assert not meanwhile & {"broker_kill", "coordinator_kill", "leader_cut_off", "leader_away"}


def test_a_leader_that_nobody_can_replace_is_not_away_for_a_minute() -> None:
    assert "leader_away" not in {fault.kind for fault in schedule(1, seconds=600, brokers=1)}
    assert [f.kind for f in schedule(1, seconds=200, brokers=3, kinds=["leader_away"])] == ["leader_away"]
    assert schedule(1, seconds=100, brokers=3, kinds=["leader_away"]) == []


# ── the checker, fed with what must not be ──────────────────────────────────────────────────────────


def account() -> Account:
    """As if all events of the plan had been acknowledged: every hundredth bad, every fiftieth sent twice."""
    kept = Account(PLAN)
    for partition in range(PLAN.partitions):
        numbers, kinds = [], []
        for number in range(partition, PLAN.events, PLAN.partitions):
            for kind in (
                ("bad",) if number % 100 == 3 else ("event", "twice") if number % 50 == 7 else ("event",)
            ):
                numbers.append(number)
                kinds.append(kind)
        kept.add(partition, 10, numbers, kinds)
    return kept


SENT = account().records()


def rows() -> pl.DataFrame:
    return SENT.filter(pl.col("kind") == "event").select(
        _partition=pl.col("partition"),
        _offset=pl.col("offset"),
        _row=pl.lit(0, dtype=pl.Int32),
        _time=pl.col("number").map_elements(PLAN.time_ms, return_dtype=pl.Int64),
        flight_id=pl.format("f-{}", "number"),
        distance=(pl.col("number") * 7 % 12_000).cast(pl.Float64),
    )


def letter(partition: int, offset: int, number: int) -> Said:
    value = base64.b64encode(bad_value(number)).decode()
    data = {"partition": partition, "offset": offset, "record_value": value}
    origin = f"faults/flights.scheduled/{partition}/{offset}/0"
    return Said(origin, "tidemill.record.rejected.v1", json.dumps(data).encode())


def closed(start_ms: int, count: int) -> Said:
    data = {"window": {"start_ms": start_ms}, "summary": {"rows": count}}
    name = f"faults/{start_ms}-{start_ms + WINDOW_MS}/closed"
    return Said(name, "tidemill.window.closed.v1", json.dumps(data).encode())


def features(version: int, keys: pl.Series) -> Said:
    sink = io.BytesIO()
    pl.DataFrame({"flight_id": keys}).write_ipc_stream(sink)
    return Said(f"faults/features/{version}/0", "tidemill.features.ready.v1", sink.getvalue())


def letters() -> list[Said]:
    bad = SENT.filter(pl.col("kind") == "bad").select("partition", "offset", "number")
    return [letter(*each) for each in bad.rows()]


def windows() -> list[Said]:
    counts = rows().group_by(start=pl.col("_time") // WINDOW_MS * WINDOW_MS).len().sort("start")
    return [closed(*each) for each in counts.rows()]


def told() -> list[Said]:
    keys = rows().get_column("flight_id")
    return [features(1, keys[:1_000]), features(2, keys[1_000:])]


def everything() -> list[Said]:
    return [*letters(), *windows(), *told()]


def verdict_on(dataset: pl.DataFrame, said: list[Said]) -> Verdict:
    return check(SENT, PLAN, dataset, said)


def wrong(verdict: Verdict) -> dict[str, int]:
    return {name: getattr(verdict, name) for name in Verdict.WRONG if getattr(verdict, name)}


def test_the_checker_finds_nothing_wrong_where_nothing_is() -> None:
    verdict = verdict_on(rows(), everything())
    assert verdict.holds(), verdict.examples
    assert verdict.rows == 3_960
    assert (verdict.letters, verdict.windows) == (40, 10)
    assert not any(verdict.repeated.values())


def test_the_checker_takes_the_repeat_for_the_event_where_only_that_is_there() -> None:
    sent_twice = SENT.filter(pl.col("kind") == "twice").row(0, named=True)
    is_it = pl.col("flight_id") == f"f-{sent_twice['number']}"
    dataset = rows().with_columns(
        _offset=pl.when(is_it).then(pl.lit(sent_twice["offset"])).otherwise(pl.col("_offset"))
    )
    assert verdict_on(dataset, everything()).holds()


def test_the_checker_counts_what_came_again_under_its_id_as_no_wrong() -> None:
    verdict = verdict_on(rows(), [*everything(), *letters()[:3], *windows()[:2], *told()[:1]])
    assert verdict.holds(), verdict.examples
    assert verdict.repeated == {"dead letters": 3, "windows": 2, "features": 1}


def test_rows_whose_features_came_again_are_told_once() -> None:
    assert rows_told([*told(), *told()[:1]]) == 3_960


def without_one(parts: list[Said]) -> list[Said]:
    return parts[:2] + parts[3:]


WRONGS: dict[str, tuple[Callable[[], Verdict], set[str]]] = {
    "a lost row": (lambda: verdict_on(rows()[1:], everything()), {"lost", "announcements_doubled"}),
    "a doubled row": (
        lambda: verdict_on(pl.concat([rows(), rows()[5:6]]), everything()),
        {"doubled", "announcements_missing"},
    ),
    "a repeat kept beside its event": (
        lambda: verdict_on(
            pl.concat([rows(), rows().filter(flight_id="f-7").with_columns(_offset=pl.col("_offset") + 1)]),
            everything(),
        ),
        {"doubled", "announcements_missing"},
    ),
    "a row that nobody sent": (
        lambda: verdict_on(
            rows().with_columns(_offset=pl.col("_offset") + (pl.col("_offset") == 20) * 10**6), everything()
        ),
        {"strange"},
    ),
    "a row of other values": (
        lambda: verdict_on(
            rows().with_columns(distance=pl.col("distance") + (pl.col("_offset") == 20)), everything()
        ),
        {"strange"},
    ),
    "a lost dead letter": (
        lambda: verdict_on(rows(), [*without_one(letters()), *windows(), *told()]),
        {"letters_missing"},
    ),
    "two dead letters of one record": (
        lambda: verdict_on(
            rows(),
            [*everything(), Said("faults/flights.scheduled/0/1/1", letters()[0].kind, letters()[0].data)],
        ),
        {"letters_doubled"},
    ),
    "a dead letter of a good record": (
        lambda: verdict_on(rows(), [*everything(), letter(0, 10, 0)]),
        {"strange"},
    ),
    "a missing window": (
        lambda: verdict_on(rows(), [*letters(), *without_one(windows()), *told()]),
        {"announcements_missing"},
    ),
    "a window that says two things": (
        lambda: verdict_on(rows(), [*everything(), closed(WINDOWS[3], 1)]),
        {"announcements_doubled"},
    ),
    "a window closed under two ids": (
        lambda: verdict_on(
            rows(), [*everything(), Said("faults/other/closed", windows()[3].kind, windows()[3].data)]
        ),
        {"announcements_doubled"},
    ),
    "features that were not told": (
        lambda: verdict_on(rows(), [*letters(), *windows(), told()[0]]),
        {"announcements_missing"},
    ),
    "features told twice": (
        lambda: verdict_on(rows(), [*everything(), features(3, rows().get_column("flight_id")[:1])]),
        {"announcements_doubled"},
    ),
}


@pytest.mark.parametrize("what", WRONGS)
def test_the_checker_finds(what: str) -> None:
    make, expected = WRONGS[what]
    verdict = make()
    assert wrong(verdict).keys() == expected
    assert not verdict.holds()
    assert verdict.examples


# ── a short run ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(400)
def test_a_short_run_loses_and_doubles_nothing() -> None:
    """As the command runs it. The long form is run by hand: see `tidemill bench faults --help`."""
    command = [sys.executable, "-m", "infra.command", "bench", "faults", "--json"]
    options = ["--seconds", "18", "--seed", "423", "--events", "36000"]
    ran = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert ran.returncode == 0, ran.stderr[-4_000:] + ran.stdout
    said = json.loads(ran.stdout)
    assert said["holds"] is True
    assert (said["lost"], said["doubled"]) == (0, 0)
    assert (said["announcements_missing"], said["announcements_doubled"]) == (0, 0)
    assert said["events"] == 36_000 + 73  # with those that are sent twice
    assert sum(said["kills"].values()) >= 2
