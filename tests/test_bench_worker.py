"""What is asked of a worker beside its rate: the short form of each measurement, and how it judges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from infra.kafka import EmbeddedBroker
from infra.settings import Settings
from loadtest.ingest import catch_up, latency, memory, readings, scale
from loadtest.ingest.measure import Measured
from loadtest.ingest.result import now, write_dated
from loadtest.ingest.target import Target, table_of
from schemas.errors import InvalidConfiguration

QUIET = Console(quiet=True)
CACHE = Settings().cache_dir


def measured(cpu_us: float, rate: float) -> Measured:
    return Measured(
        events=1,
        rate_events_s=rate,
        cpu_us_per_event=cpu_us,
        peak_memory_mib=1.0,
        start_s=0.0,
        whole=True,
        kept=1,
    )


def test_a_target_is_met_up_to_its_bound() -> None:
    assert Target(what="x", found=2.0, at_most=2.0).met
    assert not Target(what="x", found=2.1, at_most=2.0).met
    assert Target(what="x", found=1.8, at_least=1.8).met
    assert not Target(what="x", found=1.7, at_least=1.8).met
    assert Target(what="x", found=1.0, at_least=2.0).as_json() == {
        "what": "x",
        "found": 1.0,
        "at_least": 2.0,
        "met": False,
    }
    assert table_of([Target(what="x", found=1.0, at_least=2.0)]).row_count == 1


# ── latency ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_waits_from_when_it_was_due_to_the_first_commit_that_ends_behind_it() -> None:
    due_s = np.array([10.0, 11.0, 11.5, 12.25, 13.0])
    there = [(1, 10.5), (3, 12.0), (5, 13.5)]
    seconds = latency.by_second([(due_s, there)], settle_s=1.0)
    assert [each.tolist() for each in seconds] == [[1000.0, 500.0], [1250.0], [500.0]]
    only = latency.by_second([(due_s, there), (due_s, there)], settle_s=3.0)
    assert [each.tolist() for each in only] == [[500.0, 500.0]]


def test_a_fresh_worker_gets_half_of_the_rate_until_it_has_settled() -> None:
    instants_s = latency.instants_s(60, 4.0, settle_s=4.0)
    assert instants_s[[0, 20]] == pytest.approx([0.0, 4.0])
    assert instants_s[-1] < 8.0
    assert np.diff(instants_s[:20]) == pytest.approx(0.2)
    assert np.diff(instants_s[20:]) == pytest.approx(0.1)


def test_events_wait_and_all_of_them_become_visible(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    result = latency.run_on(
        kafka.bootstrap_servers, tmp_path, rate=4_000, seconds=2.0, top=None, cache_dir=CACHE
    )
    found = result.as_json()
    assert found["kept_up"]
    assert found["events"] == 18_000
    assert found["measured_events"] == pytest.approx(8_000, abs=50)
    assert 0 < found["worker_cores"] < 2
    assert 0 < found["acknowledged_p50_ms"] < found["p50_ms"] <= found["p99_ms"] <= found["most_ms"]
    assert [target.what for target in result.targets()] == ["p50 to a visible row", "p99 to a visible row"]
    unfinished = replace(result, latencies_ms=None)
    assert unfinished.as_json()["p99_ms"] is None
    assert not any(target.met for target in unfinished.targets())
    file = write_dated(found, tmp_path / "results", "latency", result.began)
    assert json.loads(file.read_text()) == found


# ── catching up ─────────────────────────────────────────────────────────────────────────────────────


def test_a_stopped_worker_reads_on_and_is_measured_by_what_came_meanwhile(
    kafka: EmbeddedBroker, tmp_path: Path
) -> None:
    result = catch_up.run_on(
        kafka.bootstrap_servers, tmp_path, minutes=2.5, rounds=1, cache_dir=CACHE, console=QUIET
    )
    assert result.faults() == []
    assert result.events == 150_000
    (top,), (after,) = result.top, result.after
    assert 0 < top.events < 150_000
    assert 0 < after.events < 150_000
    assert after.whole
    assert (after.kept or 0) > 150_000
    found = json.loads(json.dumps(result.as_json()))
    assert found["ratios"]["rate"] == pytest.approx(after.rate_events_s / top.rate_events_s)
    assert result.table().row_count == 2
    result.after = [replace(after, kept=1, rate_events_s=top.rate_events_s * 0.9)]
    assert len(result.faults()) == 1
    assert not result.targets()[0].met


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────


def grown(*mib: float) -> memory.Held:
    held = memory.Held(events=len(mib), partitions=1, keys=1, began=now())
    held.samples = [memory.Sample(float(at), at, each) for at, each in enumerate(mib)]
    return held


def test_memory_is_judged_by_its_peak_and_by_the_last_quarter_against_the_second() -> None:
    flat, climbing, high = grown(50, 500, 500, 540), grown(50, 500, 600, 700), grown(50, 1_100, 900, 900)
    compacting, between = grown(50, 500, 500, 540), grown(50, 500, 500, 540)
    compacting.samples[2] = replace(compacting.samples[2], beside_mib=600)
    between.most_mib = 1_100
    assert [[t.met for t in held.targets()] for held in (flat, climbing, high, compacting, between)] == [
        [True, True, True],
        [True, True, False],
        [False, False, True],
        [True, False, True],
        [False, True, True],
    ]


def test_a_worker_is_weighed_while_it_reads_what_is_made_meanwhile(
    kafka: EmbeddedBroker, tmp_path: Path
) -> None:
    held = memory.run_on(
        kafka.bootstrap_servers,
        tmp_path,
        events=250_000,
        partitions=8,
        keys=500,
        said=lambda _: None,
    )
    assert held.faults() == []
    assert held.samples[-1].events == 250_000
    assert held.most_mib >= max(sample.memory_mib for sample in held.samples) > 100
    assert held.open_windows == 126
    file = tmp_path / "memory.png"
    memory.draw(held, file)
    assert file.stat().st_size > 5_000
    found = json.loads(json.dumps(held.as_json()))
    assert len(found["samples"]) == len(held.samples)
    held.kept -= 1
    assert len(held.faults()) == 1


# ── scale ───────────────────────────────────────────────────────────────────────────────────────────


def scaled(cores: int) -> scale.Scaled:
    one, two = scale.OF["workers"]
    _, without = scale.OF["dedupe"]
    result = scale.Scaled(of=("workers", "dedupe"), events=1, began=now(), cores=cores)
    result.rounds = {
        one: [measured(3.0, 100.0)],
        two: [measured(4.0, 190.0)],
        without: [measured(1.5, 100.0)],
    }
    return result


def test_two_workers_are_judged_by_the_clock_where_there_are_cores_for_them() -> None:
    by_clock, _ = scaled(8).targets()
    assert by_clock.found == pytest.approx(1.9)
    assert by_clock.met
    by_cost, dedupe = scaled(2).targets()
    assert by_cost.found == pytest.approx(1.5)
    assert not by_cost.met
    assert "too few" in by_cost.what
    assert dedupe.found == pytest.approx(50.0)
    assert not dedupe.met


def test_what_does_not_grow_is_named_with_what_does() -> None:
    with pytest.raises(InvalidConfiguration, match="'flonk'; there are workers, partitions, keys, dedupe"):
        scale.refuse_unknown(["flonk"])


def test_cases_differ_in_one_thing_and_share_their_data() -> None:
    for what, cases in scale.OF.items():
        values = {name: {getattr(case, name) for case in cases} for name in ("partitions", "keys", "workers")}
        differing = {name for name, found in values.items() if len(found) > 1}
        assert differing == ({what} if what in values else set())
    assert len({case.name for cases in scale.OF.values() for case in cases}) == 8
    assert len({case.topic for cases in scale.OF.values() for case in cases}) == 6


def test_cases_run_in_turns_and_each_keeps_the_right_rows(
    kafka: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two workers and no dedupe in one case: each start costs seconds.
    one, other = scale.BASE, scale.Case(workers=2, within=None)
    monkeypatch.setitem(scale.OF, "workers", (one, other))
    result = scale.run_on(
        kafka.bootstrap_servers,
        tmp_path,
        ("workers",),
        events=150_000,
        rounds=1,
        cache_dir=CACHE,
        console=QUIET,
    )
    assert result.faults() == []
    kept = {case: result.rounds[case][0].kept or 0 for case in (one, other)}
    assert 0 < kept[one] < kept[other]
    found = json.loads(json.dumps(result.as_json()))
    assert [case["workers"] for case in found["of"]["workers"]] == [1, 2]
    assert len(found["targets"]) == 1
    assert result.table().row_count == 2
    result.rounds[one] = [replace(result.rounds[one][0], kept=1)]
    assert len(result.faults()) == 1


def test_events_of_a_second_call_are_others() -> None:
    def ids(first: int) -> set[str]:
        parts = next(readings.chunks(1_000, first=first))
        return {name for part in parts for name in part.get_column("id")}

    assert not ids(0) & ids(1_000)
    assert min(ids(1_000)) >= "reading-000000001000"
