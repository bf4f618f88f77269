"""What people see of a job: one account, whatever order its events come in, and however often."""

from __future__ import annotations

import msgspec
import pytest

from infra.command.jobs import table
from infra.job_board import Board
from infra.settings import load
from schemas.contract import Announcement
from schemas.errors import InvalidConfiguration
from schemas.examples import announced
from schemas.job import (
    DatasetRange,
    JobFailed,
    JobPreempted,
    JobProgress,
    JobQueued,
    JobRequested,
    JobRetried,
    JobStarted,
    JobSucceeded,
)
from schemas.window import WindowClosed
from streams.by_hand import experiment_now
from streams.load import load_pipeline

EXAMPLES = {type(example): example for example in announced()}
ASKED = EXAMPLES[JobRequested]
assert isinstance(ASKED, JobRequested)
JOB = ASKED.job_id


def told(*events: Announcement) -> Board:
    board = Board()
    for at_s, event in enumerate(events):
        for _ in range(2):  # a repeat changes nothing
            board.note(event.event_id(), event, at_s * 1000)
    return board


def progress(step: int, attempt: int = 1) -> JobProgress:
    return JobProgress(job_id=JOB, attempt=attempt, step=step, of=10, metrics={"loss": 1 / step})


def started(attempt: int = 1) -> JobStarted:
    return JobStarted(job_id=JOB, attempt=attempt, device="cpu", started_ms=1000)


def test_a_running_job_says_how_far_it_is_and_how_much_longer_it_takes() -> None:
    queued = JobQueued(job_id=JOB, reason="no room", ahead=2, queued_ms=1)
    board = told(ASKED, queued, started(), progress(2), progress(4))
    job = board.jobs[JOB]
    assert (job.state, job.device, job.model) == ("running", "cpu", "flights")
    assert job.newest is not None
    assert job.newest.step == 4
    # Two steps a second, six are left, and half a second has gone by since.
    assert job.remaining_s(4_500) == pytest.approx(2.5)
    assert len(job.curve) == 2
    assert table([job]).row_count == 1


def test_a_job_that_made_room_or_is_tried_again_waits_and_says_why() -> None:
    preempted = JobPreempted(job_id=JOB, attempt=1, by_job_id="urgent", checkpointed=True, preempted_ms=1)
    job = told(ASKED, started(), progress(5), preempted).jobs[JOB]
    assert (job.state, job.reason, job.preempted, job.remaining_s(0)) == (
        "queued",
        "made room for urgent",
        1,
        None,
    )
    retried = JobRetried(job_id=JOB, attempt=1, reason="no store", log_tail="", not_before_ms=9)
    job = told(ASKED, started(), progress(5), retried, started(2)).jobs[JOB]
    assert (job.state, job.attempt, job.newest) == ("running", 2, None)


def test_an_end_stays_an_end_even_if_it_is_read_before_what_led_to_it() -> None:
    failed = EXAMPLES[JobFailed]
    job = told(failed, ASKED, started(), progress(5)).jobs[JOB]
    assert (job.state, job.model, job.device, job.attempt) == ("failed", "flights", "cpu", 1)
    assert job.as_json(0, with_curve=True)["curve"][0]["metrics"] == {"loss": 0.2}
    assert "curve" not in job.as_json(0, with_curve=False)


def test_a_trial_is_over_when_it_is_scored() -> None:
    trial = msgspec.structs.replace(
        ASKED, experiment=msgspec.structs.replace(ASKED.experiment, purpose="trial")
    )
    job = told(trial, EXAMPLES[JobSucceeded]).jobs[JOB]
    assert job.is_over
    assert job.scores["auc"] == 0.771
    assert not told(ASKED, EXAMPLES[JobSucceeded]).jobs[JOB].is_over


def test_a_person_asks_for_what_the_pipeline_would_ask_for_on_its_newest_window() -> None:
    loaded = load_pipeline(load().worker.pipeline)
    closed = EXAMPLES[WindowClosed]
    assert isinstance(closed, WindowClosed)
    older = msgspec.structs.replace(
        closed,
        window=msgspec.structs.replace(closed.window, start_ms=0, end_ms=86_400_000),
        dataset_version=closed.dataset_version - 1,
    )
    wanted = experiment_now(loaded, [closed, older])
    assert wanted.evaluation is not None
    assert wanted.evaluation.end_ms == closed.window.end_ms
    assert wanted.training.end_ms == wanted.evaluation.start_ms
    assert wanted.training.version == closed.dataset_version
    with pytest.raises(InvalidConfiguration, match="no window of pipeline flights has closed"):
        experiment_now(loaded, [])


def test_the_run_key_is_what_determines_the_result_and_nothing_else() -> None:
    wanted = ASKED.experiment
    key = wanted.run_key(parent_sha256="p")
    replace = msgspec.structs.replace
    assert replace(wanted, resources=replace(wanted.resources, cpus=7)).run_key(parent_sha256="p") == key
    assert replace(wanted, configuration_sha256="x").run_key(parent_sha256="p") == key
    others = [
        replace(wanted, seed=1),
        replace(wanted, params={"epochs": 9}),
        replace(wanted, training=replace(wanted.training, version=413)),
        replace(wanted, evaluation=None),
        replace(wanted, code_sha256="c1" * 32),
        replace(wanted, purpose="trial"),
    ]
    keys = {other.run_key(parent_sha256="p") for other in others} | {wanted.run_key(parent_sha256="q"), key}
    assert len(keys) == len(others) + 2
    # Without a warm start nobody's weights matter.
    cold = replace(wanted, warm_start=False)
    assert cold.run_key(parent_sha256="p") == cold.run_key()
    # What is read from a topic has the same key as what was written there.
    assert msgspec.json.decode(msgspec.json.encode(wanted), type=type(wanted)).run_key() == wanted.run_key()


def test_pending_jobs_are_the_same_but_for_their_data() -> None:
    wanted, replace = ASKED.experiment, msgspec.structs.replace
    newer = replace(wanted, training=DatasetRange(uri=wanted.training.uri, version=500, start_ms=1, end_ms=2))
    assert newer.pending_key() == wanted.pending_key()
    assert replace(newer, seed=1).pending_key() != wanted.pending_key()
    assert replace(newer, training=replace(newer.training, uri="x")).pending_key() != wanted.pending_key()
