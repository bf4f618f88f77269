"""Try many configurations of an experiment: each trial a job under the same admission as any other.

Optuna proposes and remembers (its journal is one file, appended to), the topics say what came of each trial.
A trial's job id is its number in the study, so whoever goes on with a sweep that was killed finds the trials
that ran on meanwhile, and asks again for those whose request was lost. Trials that do badly by their own
progress are stopped by asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", 2020). The best configuration is asked for as a challenger, which the gate judges.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from infra.job_board import Board, Job, follow
from infra.kafka.connection import Connection
from infra.submit import announce, request, stop_request
from schemas.errors import InvalidConfiguration
from schemas.job import DatasetRange, Experiment, JobRequested
from schemas.sweep import Choice, Measure, Range, Space, space_of, trial_id
from trainers.assignment import Progress

_PARTS = 3
"""Of the trials that reach a rung one in so many goes on; rungs are at a ninth and a third of the way."""
_FIRST_RUNG_PERCENT = 11
_STOPPED = "stopped early: by successive halving others do better"


def suggest(kind: Range | Choice, trial: optuna.Trial, name: str) -> Any:
    """A trial's value of a parameter."""
    match kind:
        case Choice(values=values):
            # Optuna keeps plain values only; a list of sizes travels as its JSON.
            return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in values]))
        case Range(low=int(low), high=int(high), log=log):
            return trial.suggest_int(name, low, high, log=log)
        case Range(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)


def declared(varied: Sequence[str]) -> dict[str, Range | Choice]:
    """A space as a person writes it: `rate=log:1e-4..1e-1`, `epochs=1..8`, `hidden=[[64], [128, 64]]`.

    Raises:
        InvalidConfiguration: a declaration cannot be read.
    """
    space: dict[str, Range | Choice] = {}
    for each in varied:
        name, sign, said = each.partition("=")
        try:
            if not sign or not name:
                raise ValueError("write name=low..high, or name=[one, or, another]")
            space[name] = space_of(said)
        except ValueError as error:
            raise InvalidConfiguration(f"--vary {each!r}: {error}") from error
    if not space:
        raise InvalidConfiguration(
            "name what to vary: --vary learning_rate=log:1e-4..1e-1 --vary epochs=1..8"
        )
    return space


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What is tried.

    Attributes:
        name: of the study; the same name goes on with what is there.
        base: what every trial shares.
        measure: what decides, on the rows that trials are scored on.
        watch: the metric of `ctx.progress` that halving goes by, less is better; empty: no trial is stopped.
        trials: how many in all.
        parallel: how many are asked for at once.
    """

    name: str
    base: Experiment
    space: Space
    measure: Measure = "auc"
    watch: str = "loss"
    trials: int = 20
    parallel: int = 2
    priority: int = -1

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which way is better."""
        return "minimize" if self.measure == "log_loss" else "maximize"

    def job_id(self, number: int) -> str:
        """The job of a trial."""
        return trial_id(self.name, number)


def sweep_of(job: JobRequested) -> Sweep:
    """The sweep that a job begins with, its trials one step of priority behind it."""
    plan = job.sweep
    assert plan is not None
    return Sweep(
        name=job.job_id,
        base=job.experiment,
        space=plan.vary,
        measure=plan.measure,
        watch=plan.watch,
        trials=plan.trials,
        parallel=plan.parallel,
        priority=max(-100, job.priority - 1),
    )


def held_out(base: Experiment) -> Experiment:
    """The experiment as trials run it: scored on the newest part of its own training rows.

    As long as what the gate judges on, at most a quarter. The best of many scores is a flattered one, so the
    rows that decide between trials are not those that the best is judged on.
    """
    span, judged = base.training, base.evaluation
    if judged is None:
        return base
    held_ms = min(judged.end_ms - judged.start_ms, (span.end_ms - span.start_ms) // 4)
    if held_ms <= 0:
        return base
    cut_ms = span.end_ms - held_ms

    def part(start_ms: int, end_ms: int) -> DatasetRange:
        return msgspec.structs.replace(span, start_ms=start_ms, end_ms=end_ms)

    return msgspec.structs.replace(
        base, training=part(span.start_ms, cut_ms), evaluation=part(cut_ms, span.end_ms)
    )


def study_of(sweep: Sweep, journal: Path) -> optuna.Study:
    """The study in its journal, begun or gone on with.

    Raises:
        InvalidConfiguration: under this name something else was tried.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = JournalFileBackend(str(journal))
    study = optuna.create_study(
        study_name=sweep.name,
        storage=optuna.storages.JournalStorage(backend),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=_FIRST_RUNG_PERCENT, reduction_factor=_PARTS
        ),
        direction=sweep.direction,
        load_if_exists=True,
    )
    key = msgspec.structs.replace(sweep.base, purpose="trial").run_key()
    known = study.user_attrs.setdefault("base", key) if study.trials else key
    if known != key or study.direction.name.lower() != sweep.direction:
        raise InvalidConfiguration(
            f"sweep {sweep.name} was begun on another experiment, dataset or measure; use another --name"
        )
    study.set_user_attr("base", key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Who goes on with a study draws other numbers than who began it, or would propose the same again.
        study.sampler = optuna.samplers.TPESampler(
            seed=sweep.base.seed + len(study.trials), constant_liar=True
        )
    return study


async def run(
    sweep: Sweep, connection: Connection, *, journal: Path, news: Callable[[optuna.Study], None]
) -> optuna.Study:
    """Run trials until all are told; one that was killed goes on where it was.

    Args:
        news: told the study after each look at the jobs; what it raises ends the sweep, to be gone on with.

    Raises:
        InvalidConfiguration: the study is another's.
    """
    study = study_of(sweep, journal)
    stopped: set[int] = set()
    asked: set[str] = set()
    async with contextlib.aclosing(follow(connection)) as boards:
        async for board in boards:
            for known in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                trial = optuna.Trial(study, known._trial_id)
                job = board.jobs.get(sweep.job_id(known.number))
                if job is None:
                    # Its request was lost with a sweep that died; asked for once, it is on its way.
                    if sweep.job_id(known.number) not in asked:
                        await _ask(sweep, connection, trial, asked)
                    continue
                if _tell(study, trial, job, board, sweep, stopped=known.number in stopped):
                    continue
                if is_hopeless(trial, job, sweep) and known.number not in stopped:
                    stopped.add(known.number)
                    await announce(connection, [stop_request(job.job_id, reason=_STOPPED)])
            open_trials = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
            while open_trials < sweep.parallel and len(study.trials) < sweep.trials:
                if known := board.jobs.get(sweep.job_id(len(study.trials))):
                    # The journal was lost, the trial was not: it is taken up as it was asked for.
                    _take_up(sweep, study, known)
                else:
                    await _ask(sweep, connection, study.ask(), asked)
                open_trials += 1
            news(study)
            if not open_trials:
                return study
    raise AssertionError("following never ends by itself")


async def _ask(sweep: Sweep, connection: Connection, trial: optuna.Trial, asked: set[str]) -> None:
    job_id = sweep.job_id(trial.number)
    asked.add(job_id)
    params = {name: suggest(kind, trial, name) for name, kind in sweep.space.items()}
    job = request(
        held_out(with_params(sweep, params, "trial")),
        priority=sweep.priority,
        why=f"trial {trial.number} of sweep {sweep.name}",
        job_id=job_id,
    )
    await announce(connection, [job])


def _take_up(sweep: Sweep, study: optuna.Study, known: Job) -> None:
    values = {
        name: json.dumps(known.params[name]) if isinstance(kind, Choice) else known.params[name]
        for name, kind in sweep.space.items()
        if name in known.params
    }
    study.enqueue_trial(values)
    trial = study.ask()
    for name, kind in sweep.space.items():
        suggest(kind, trial, name)


def with_params(
    sweep: Sweep, params: Mapping[str, Any], purpose: Literal["challenger", "trial"]
) -> Experiment:
    """The experiment with these parameters over its own."""
    return msgspec.structs.replace(sweep.base, params={**sweep.base.params, **params}, purpose=purpose)


def _tell(
    study: optuna.Study, trial: optuna.Trial, job: Job, board: Board, sweep: Sweep, *, stopped: bool
) -> bool:
    """Tell the study what came of a trial; True if anything did."""
    if job.state == "answered":
        # Another trial had the very same configuration.
        job = board.jobs.get(job.same_as, job)
    if job.state == "scored":
        value = job.scores.get(sweep.measure)
        study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
    elif job.state == "failed" and (stopped or job.reason == _STOPPED):
        study.tell(trial, state=TrialState.PRUNED)
    elif job.is_over:
        trial.set_user_attr("reason", job.reason)
        study.tell(trial, state=TrialState.FAIL)
    else:
        return False
    return True


def is_hopeless(trial: optuna.Trial, job: Job, sweep: Sweep) -> bool:
    """Whether halving stops it. The steps that it is compared at are percents of its way."""
    newest = job.newest
    if not sweep.watch or newest is None or sweep.watch not in newest.metrics or newest.of <= 0:
        return False
    value = newest.metrics[sweep.watch]
    percent = newest.step * 100 // newest.of
    if percent not in trial.study.trials[trial.number].intermediate_values:
        trial.report(value if sweep.direction == "minimize" else -value, percent)
    return percent < 100 and trial.should_prune()


def best_params(study: optuna.Study, sweep: Sweep) -> dict[str, Any]:
    """The best trial's parameters.

    Raises:
        InvalidConfiguration: no trial was scored.
    """
    scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not scored:
        reasons = {t.user_attrs.get("reason", "") for t in study.get_trials(deepcopy=False)} - {""}
        raise InvalidConfiguration(
            f"no trial of sweep {sweep.name} was scored: {'; '.join(sorted(reasons)) or 'all were stopped'}"
        )
    found = study.best_trial.params
    return {
        name: json.loads(value) if isinstance(sweep.space.get(name), Choice) else value
        for name, value in found.items()
    }


def progress(study: optuna.Study, sweep: Sweep) -> Progress:
    """How many of its trials are told, and the best value so far."""
    trials = study.get_trials(deepcopy=False)
    done = sum(trial.state.is_finished() for trial in trials)
    scored = any(trial.state is TrialState.COMPLETE for trial in trials)
    return Progress(
        step=done, of=sweep.trials, metrics={sweep.measure: float(study.best_value)} if scored else {}
    )


def proposal(sweep: Sweep, params: Mapping[str, Any]) -> JobRequested:
    """The best configuration as a challenger; one a study."""
    return request(
        with_params(sweep, params, "challenger"),
        why=f"the best of {sweep.trials} trials of sweep {sweep.name}",
        job_id=f"{sweep.name}-best",
    )
