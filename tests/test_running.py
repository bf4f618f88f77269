"""A worker and a trainer, run by their commands, say of themselves what is so: metrics and readiness."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from infra.observe.metrics import of_part, series_of
from tests.running_fixtures import Road, road, sums
from tests.worker_fixtures import wait_until

BAD_BASKET = {"visit_id": "odd", "at": 1_704_067_200_000, "shop": "north", "basket": -5.0}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """The road of a new project, its events played to the first model that is live."""
    with road(tmp_path_factory.mktemp("running"), "kiosk") as opened:
        opened.tidemill("topics", "--create", "--pipeline", "pipeline.py")
        trainer, worker = opened.start("trainer"), opened.start("worker")
        opened.push()
        odd = opened.project / "odd.ndjson"
        odd.write_text(
            json.dumps(BAD_BASKET) + "\n" + json.dumps({**BAD_BASKET, "basket": 5.0, "visit_id": "v0"})
        )
        opened.tidemill("push", "kiosk.visits", "odd.ndjson", "--pipeline", "pipeline.py")
        wait_until(
            lambda: sums(trainer.samples(), "tidemill_trainer_models_total") >= 1,
            "a model is judged",
            within_s=180,
        )
        wait_until(
            lambda: sums(worker.samples(), "tidemill_worker_events_total", topic="kiosk.visits") >= 2162,
            "all visits are committed",
            within_s=180,
        )
        yield opened


@pytest.mark.parametrize("part", ["worker", "trainer"])
def test_a_process_serves_every_metric_that_is_declared_for_it_and_no_other(played: Road, part: str) -> None:
    families = played.parts[part].families()
    declared = {metric.name: metric for metric in of_part(part)}
    assert {name.removesuffix("_total") for name in declared} == set(families)
    for name, metric in declared.items():
        family = families[name.removesuffix("_total")]
        assert family.type == metric.kind
        if not metric.library:
            assert family.documentation == metric.meaning
        assert {sample.name for sample in family.samples} <= set(series_of(metric))
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_the_counters_are_what_was_pushed(played: Road) -> None:
    worker = wait_until(
        lambda: (
            (s := played.parts["worker"].samples())
            and sums(s, "tidemill_herald_announced_version") == sums(s, "tidemill_worker_dataset_version")
            and s
        ),
        "all is announced",
    )
    visits = {"topic": "kiosk.visits"}
    assert sums(worker, "tidemill_worker_events_total", **visits) == 2162
    assert sums(worker, "tidemill_worker_rejected_total", **visits) == 1
    assert sums(worker, "tidemill_worker_rejected_total", rule="between(basket)") == 1
    assert sums(worker, "tidemill_worker_dropped_total", rule="dedupe") == 1
    assert sums(worker, "tidemill_worker_rows_total", **visits) == 2160
    assert sums(worker, "tidemill_herald_leads", pipeline="kiosk") == 1
    assert sums(worker, "tidemill_worker_commit_seconds_count") > 0
    closed = sums(worker, "tidemill_herald_windows_total", kind="closed")
    assert closed == sums(worker, "tidemill_herald_decisions_total") > 4
    assert sums(worker, "tidemill_worker_position_offset", **visits) == 2162
    trainer = played.parts["trainer"].samples()
    assert sums(trainer, "tidemill_trainer_model_version", model="kiosk") >= 1
    assert sums(trainer, "tidemill_trainer_job_events_total", event="succeeded") >= 1
    assert sums(trainer, "tidemill_trainer_training_seconds_count") >= 1


def test_both_are_ready_and_the_lag_is_none_once_all_is_read(played: Road) -> None:
    for part in played.parts.values():
        wait_until(part.is_ready, f"the {part.name} is ready")
        wait_until(lambda part=part: sums(part.samples(), "tidemill_ready") == 1, "its metric says so, too")
        assert sums(part.samples(), "tidemill_cluster_contact_age_seconds") < 15
    worker = played.parts["worker"]
    lags = wait_until(
        lambda: {k: v for k, v in worker.samples().items() if k[0] == "tidemill_worker_lag_records"},
        "the ends are looked at",
    )
    assert len(lags) == 4
    wait_until(lambda: sums(worker.samples(), "tidemill_worker_lag_records") == 0, "nothing is left")


def test_without_its_cluster_a_process_lives_and_is_not_ready_and_comes_back(played: Road) -> None:
    # The last test of this module: the broker is gone for a while.
    played.broker.stop()
    for part in played.parts.values():
        wait_until(lambda part=part: not part.is_ready(), f"the {part.name} misses the cluster", within_s=90)
        assert part.ask("live").status_code == 200
        assert "no broker has answered for" in part.ask("ready").text
    played.broker.start()
    for part in played.parts.values():
        wait_until(part.is_ready, f"the {part.name} is ready again", within_s=90)
        assert part.end() == 0
