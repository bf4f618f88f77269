"""Configurations are tried as jobs, the best is judged by the gate, and a kill changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import optuna
import pytest

from infra.job_board import Job, Point
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.job import (
    Experiment,
    JobEvent,
    JobFailed,
    JobProgress,
    JobRequested,
    JobStarted,
    JobStopRequested,
    JobSucceeded,
    JobSwept,
)
from schemas.model import ModelPublished
from schemas.sweep import Choice, Range, SweepPlan, is_trial_of
from tests.trainer_fixtures import (
    Topics,
    TrainerProcess,
    a_job,
    experiment,
    tidemill,
    write_dataset,
    write_model_code,
)
from trainers.bulletin import FOLLOWED
from trainers.registry import Registry
from trainers.sweep import Sweep, best_params, declared, held_out, is_hopeless, run, study_of, suggest


def test_a_space_is_read_as_a_person_writes_it() -> None:
    assert declared(["rate=log:1e-4..1e-1", "epochs=1..8", "hidden=[[64], [128, 64]]", "drop=0.0..0.5"]) == {
        "rate": Range(1e-4, 1e-1, log=True),
        "epochs": Range(1, 8),
        "hidden": Choice(([64], [128, 64])),
        "drop": Range(0.0, 0.5),
    }


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("rate", "write name=low..high"),
        ("rate=1e-4", "neither low..high"),
        ("rate=2..1", "the low one first"),
        ("rate=log:0..1", "above 0"),
        ("hidden=[1]", "two values"),
        ('rate="a".."b"', "are numbers"),
        ("hidden=[1,", "--vary"),
    ],
)
def test_a_space_that_cannot_be_read_is_told_so(said: str, reason: str) -> None:
    with pytest.raises(InvalidConfiguration, match=reason):
        declared([said])
    with pytest.raises(InvalidConfiguration, match="name what to vary"):
        declared([])


@pytest.fixture
def base(tmp_path: Path) -> Experiment:
    return experiment(tmp_path / "dataset", "good:train", "swept")


def test_every_trial_lies_in_the_space_and_a_study_is_not_taken_for_another(
    base: Experiment, tmp_path: Path
) -> None:
    space = declared(["rate=log:1e-4..1e-1", "epochs=1..8", "hidden=[[64], [128, 64]]"])
    sweep = Sweep(name="s", base=base, space=space)
    study = study_of(sweep, tmp_path / "s.journal")
    for _ in range(20):
        trial = study.ask()
        values = {name: suggest(kind, trial, name) for name, kind in space.items()}
        assert 1e-4 <= values["rate"] <= 1e-1
        assert values["epochs"] in range(1, 9)
        assert values["hidden"] in ([64], [128, 64])
        study.tell(trial, values["rate"])
    assert best_params(study, sweep)["hidden"] in ([64], [128, 64])
    again = study_of(sweep, tmp_path / "s.journal")
    assert len(again.trials) == 20
    other = msgspec.structs.replace(base, seed=99)
    with pytest.raises(InvalidConfiguration, match="another --name"):
        study_of(Sweep(name="s", base=other, space=space), tmp_path / "s.journal")
    with pytest.raises(InvalidConfiguration, match="another"):
        study_of(Sweep(name="s", base=base, space=space, measure="log_loss"), tmp_path / "s.journal")


def test_of_trials_that_reach_a_rung_one_in_three_goes_on(base: Experiment, tmp_path: Path) -> None:
    sweep = Sweep(name="h", base=base, space=declared(["rate=0.0..1.0"]))
    study = study_of(sweep, tmp_path / "s.journal")
    stopped = []
    for number, loss in enumerate([0.5, 0.4, 0.3, 0.9, 0.8, 0.2]):
        trial = study.ask()
        job = Job(sweep.job_id(number), state="running", attempt=1)
        job.curve.append(Point(1, 5, 100, {"loss": loss}, 0))
        assert not is_hopeless(trial, job, sweep)  # too early to say
        job.curve.append(Point(1, 12, 100, {"loss": loss}, 0))
        if is_hopeless(trial, job, sweep):
            stopped.append(loss)
        # What has no such metric, or is not to be watched, is never stopped.
        assert not is_hopeless(trial, job, replace(sweep, watch="accuracy"))
        assert not is_hopeless(trial, job, replace(sweep, watch=""))
    assert 0.9 in stopped
    assert 0.8 in stopped
    assert 0.2 not in stopped


def test_a_sweep_in_which_every_trial_failed_says_why(base: Experiment, tmp_path: Path) -> None:
    sweep = Sweep(name="f", base=base, space=declared(["steps=1..9"]))
    study = study_of(sweep, tmp_path / "s.journal")
    trial = study.ask()
    trial.set_user_attr("reason", "no luck today")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(InvalidConfiguration, match="no luck today"):
        best_params(study, sweep)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(folder / "kafka") as broker:
        asyncio.run(ensure(FOLLOWED, Connection(bootstrap_servers=broker.bootstrap_servers)))
        yield broker


@pytest.fixture(scope="module")
def trainer(folder: Path, broker: EmbeddedBroker) -> Iterator[TrainerProcess]:
    write_dataset(folder / "dataset")
    code = write_model_code(folder / "code")
    settings = {"TIDEMILL_TRAINER__CPU_SLOTS": "2"}
    trainer = TrainerProcess(folder / "home", broker.bootstrap_servers, code, **settings)
    trainer.start()
    yield trainer
    trainer.stop()


async def test_a_sweep_that_is_killed_goes_on_and_its_best_trial_is_judged_as_any_challenger(
    trainer: TrainerProcess,
    broker: EmbeddedBroker,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = tmp_path / "experiment.json"
    base = experiment(folder / "dataset", "good:train", "swept", params={"steps": 40})
    wanted.write_bytes(msgspec.json.encode(base))
    picture = tmp_path / "trials.png"
    command = [
        "sweep", "--experiment", str(wanted), "--name", "wide", "--vary", "rate=log:1e-5..1e-1",
        "--trials", "5", "--parallel", "2", "--plot", str(picture), "--json",
    ]  # fmt: skip
    for name, value in trainer.environment.items():
        monkeypatch.setenv(name, value)

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "infra.command", *command])

    async with Topics(broker.bootstrap_servers) as seen:
        first = begin()  # while the trainer warms up: what is asked for waits
        await seen.until(
            lambda: any(isinstance(e, JobRequested) and "wide" in e.job_id for _, _, e in seen.events)
        )
        os.kill(first.pid, signal.SIGKILL)
        await asyncio.to_thread(first.wait)
        code, out = await tidemill(*command)
        assert code == 0
        answer = json.loads(out.splitlines()[-1])
        await seen.until(lambda: any("wide-best" in i for _, i, _ in seen.events))
        assert len(answer["trials"]) == 5
        scored = [t for t in answer["trials"] if t["state"] == "complete"]
        assert answer["value"] == max(t["value"] for t in scored)
        assert {t["state"] for t in answer["trials"]} <= {"complete", "pruned"}
        assert answer["challenger"]["state"] == "published"
        assert picture.read_bytes().startswith(b"\x89PNG")

        requested = [e for _, _, e in seen.events if isinstance(e, JobRequested) and "wide-t" in e.job_id]
        rates = {e.experiment.params["rate"] for e in requested}
        assert len({e.job_id for e in requested}) == len(rates) == 5
        assert all(e.experiment.purpose == "trial" and e.priority == -1 for e in requested)
        ends = Counter(
            e.job_id
            for _, _, e in seen.events
            if isinstance(e, JobSucceeded | JobFailed) and "wide-t" in e.job_id
        )
        assert set(ends.values()) == {1}
        assert len(ends) == 5


def a_sweep(
    folder: Path, name: str, *, trials: int = 4, code: str = "good:train", steps: int = 40
) -> JobRequested:
    plan = SweepPlan(vary={"rate": Range(1e-5, 1e-1, log=True)}, trials=trials, watch="")
    job = a_job(folder / "dataset", code, name, job_id=f"{name}-1", params={"steps": steps})
    return msgspec.structs.replace(job, sweep=plan)


def trials_of(seen: Topics, job: JobRequested, *kinds: type[JobEvent]) -> list[Any]:
    found = [e for _, _, e in seen.events if isinstance(e, JobEvent) and isinstance(e, kinds)]
    return [e for e in found if is_trial_of(job.job_id, e.job_id)]


async def test_a_job_that_sweeps_survives_its_trainer_and_its_best_is_trained_and_judged_under_its_own_name(
    trainer: TrainerProcess, broker: EmbeddedBroker, folder: Path
) -> None:
    job = a_sweep(folder, "tuned")
    async with Topics(broker.bootstrap_servers) as seen:
        await seen.ask(job)
        await seen.until(lambda: trials_of(seen, job, JobSucceeded))
        trainer.kill()
        trainer.start()
        published = await seen.one(job, ModelPublished, timeout_s=150)
        requested = trials_of(seen, job, JobRequested)
        scores = {e.job_id: e.scores["auc"] for e in trials_of(seen, job, JobSucceeded)}
        (swept,) = {e.event_id(): e for e in seen.of_job(job, JobSwept)}.values()
        assert len({e.job_id for e in requested}) == 4 == swept.trials
        assert swept.best_job_id == max(scores, key=lambda name: scores[name])
        assert swept.value == scores[swept.best_job_id]
        best = next(e for e in requested if e.job_id == swept.best_job_id)
        assert swept.params == {"rate": best.experiment.params["rate"]}

        # What is published is the best's parameters on all of the training rows, judged on rows no trial saw.
        lineage = published.manifest.lineage
        assert lineage.experiment.params == {"steps": 40, **swept.params}
        assert lineage.experiment.training == job.experiment.training
        judged = job.experiment.evaluation
        assert judged is not None
        for each in requested:
            assert each.experiment.training.end_ms == each.experiment.evaluation.start_ms
            assert each.experiment.evaluation.end_ms == judged.start_ms
        steps = [e.step for e in seen.of_job(job, JobProgress) if e.attempt == 0]
        assert steps[-1] == 4
        assert len({i for _, i, e in seen.events if isinstance(e, ModelPublished) and e is published}) == 1


async def test_a_sweep_whose_trials_all_fail_fails_with_their_reason_and_one_that_is_stopped_takes_its_trials(
    trainer: TrainerProcess, broker: EmbeddedBroker, folder: Path
) -> None:
    hopeless = a_sweep(folder, "hopeless", trials=2, code="bad:raises")
    endless = a_sweep(folder, "endless", code="bad:hangs")
    async with Topics(broker.bootstrap_servers) as seen:
        await seen.ask(hopeless)
        assert "no luck today" in (await seen.one(hopeless, JobFailed)).reason
        await seen.ask(endless)
        await seen.until(lambda: trials_of(seen, endless, JobStarted))
        wish = JobStopRequested(job_id=endless.job_id, reason="enough", requested_ms=0)
        await seen.say(topics.JOBS.name, wish)
        assert (await seen.one(endless, JobFailed)).reason == "enough"
        ids = {e.job_id for e in trials_of(seen, endless, JobRequested)}
        await seen.until(lambda: {e.job_id for e in trials_of(seen, endless, JobFailed)} >= ids)
        reasons = [e.reason for e in trials_of(seen, endless, JobFailed)]
        assert not any("longer than its limit" in each for each in reasons), reasons


def test_a_trial_that_is_asked_for_while_its_sweep_ends_ends_with_it(base: Experiment) -> None:
    def asked(job_id: str, sweep: SweepPlan | None = None) -> JobRequested:
        return JobRequested(job_id=job_id, experiment=base, decision_id=None, requested_ms=0, sweep=sweep)

    plan = SweepPlan(vary={"rate": Range(0, 1)}, trials=4, watch="")
    failed = JobFailed(job_id="s", attempt=1, reason="enough", log_tail="", finished_ms=0)
    events = [asked("s", plan), asked("s-trial-0"), asked("other-trial-0"), failed, asked("s-trial-1")]
    registry = Registry()
    for event in events:
        registry.note(topics.JOBS.name, event)
    assert registry.stops == {"s-trial-0": "enough", "s-trial-1": "enough"}


def test_trials_are_scored_on_rows_of_the_training_that_they_do_not_see(base: Experiment) -> None:
    held = held_out(base)
    judged = base.evaluation
    assert judged is not None
    assert held.evaluation is not None
    assert held.training.start_ms == base.training.start_ms
    assert held.training.end_ms == held.evaluation.start_ms
    assert held.evaluation.end_ms == base.training.end_ms == judged.start_ms
    assert held.evaluation.end_ms - held.evaluation.start_ms == min(
        judged.end_ms - judged.start_ms, (base.training.end_ms - base.training.start_ms) // 4
    )
    assert held_out(msgspec.structs.replace(base, evaluation=None)).training == base.training


async def test_a_sweep_whose_journal_is_lost_takes_its_trials_up_as_they_were(
    trainer: TrainerProcess, broker: EmbeddedBroker, folder: Path, tmp_path: Path
) -> None:
    sweep = Sweep(
        name="lost",
        base=experiment(folder / "dataset", "good:train", "swept"),
        space={"rate": Range(1e-5, 1e-1, log=True), "steps": Choice((30, 40))},
        trials=3,
        watch="",
    )
    connection = Connection(bootstrap_servers=broker.bootstrap_servers)
    first = await run(sweep, connection, journal=tmp_path / "one", news=lambda _: None)
    again = await run(sweep, connection, journal=tmp_path / "other", news=lambda _: None)
    assert [t.params for t in again.trials] == [t.params for t in first.trials]
    assert [t.value for t in again.trials] == [t.value for t in first.trials]
