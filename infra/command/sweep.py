"""`tidemill sweep`: try configurations, then let the gate judge the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.live import Live
from rich.table import Table

from infra import stopping
from infra.command.app import answers, app, console, settings
from infra.command.drawing import drawn_into
from infra.command.jobs import given, wanted

if TYPE_CHECKING:
    import optuna

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def sweep(
    pipeline: Annotated[
        str | None, typer.Argument(help="Module or file of the pipeline; its newest closed window is used.")
    ] = None,
    experiment: Annotated[Path | None, typer.Option(help="A JSON file with an experiment instead.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="name=low..high, name=log:low..high or name=[one, other]; one for each parameter."),
    ] = None,
    param: Annotated[list[str] | None, typer.Option(help="name=value, the same in every trial.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many in all.")] = 20,
    parallel: Annotated[int, typer.Option(min=1, help="How many are in the queue at once.")] = 2,
    measure: Annotated[Literal["auc", "log_loss", "accuracy"], typer.Option(help="What decides.")] = "auc",
    watch: Annotated[
        str, typer.Option(help="Metric of ctx.progress, less is better, that stops bad trials; '': none.")
    ] = "loss",
    name: Annotated[str, typer.Option(help="The same name goes on with what is there.")] = "sweep",
    plot: Annotated[Path | None, typer.Option(help="Draw the trials into a PNG or SVG file.")] = None,
    publish: Annotated[
        bool, typer.Option(help="Ask for the best as a challenger; the gate judges it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Try configurations as jobs of low priority, stop bad ones early, judge the best by the gate.

    Killed or stopped, the same command goes on where it was.
    """
    from infra.submit import announce, connected, ended
    from trainers import sweep as sweeping

    configured = settings()
    space = sweeping.declared(vary or [])
    plan = sweeping.Sweep(
        name=name,
        base=wanted(pipeline, experiment, given(param or []), None),
        space=space,
        measure=measure,
        watch=watch,
        trials=trials,
        parallel=parallel,
    )
    connection = connected(configured)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        study = stopping.run(
            sweeping.run(
                plan,
                connection,
                journal=configured.paths.home / "sweeps" / f"{name}.journal",
                news=lambda study: live.update(table(study, plan.trials), refresh=True),
            )
        )
    best = sweeping.best_params(study, plan)
    answer: dict[str, Any] = {"name": name, "best": best, "value": study.best_value, "trials": rows(study)}
    if plot:
        draw(study, plot, measure)
    if publish:
        job = sweeping.proposal(plan, best)
        stopping.run(announce(connection, [job]))
        came = stopping.run(ended(configured, job.job_id))
        answer["challenger"] = {"job_id": job.job_id, "state": came.state, "reason": came.reason}
    if as_json:
        print(json.dumps(answer))
        return
    answers.print(table(study, plan.trials))
    answers.print(f"best: {json.dumps(best)}, {measure} {study.best_value:.4f}", highlight=False)
    if publish:
        answers.print(f"as a challenger: {answer['challenger']['state']} {answer['challenger']['reason']}")


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """The trials as plain data."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state.name == "COMPLETE" else None,
            "params": trial.params,
            "reason": trial.user_attrs.get("reason", ""),
        }
        for trial in study.get_trials(deepcopy=False)
    ]


def table(study: optuna.Study, trials: int) -> Table:
    """The newest trials, and the best."""
    known = rows(study)
    scored = [row for row in known if row["value"] is not None]
    best = study.best_trial.number if scored else None
    done = sum(row["state"] != "running" for row in known)
    drawn = Table("trial", "state", "value", "parameters", title=f"{done} of {trials} trials")
    for row in known[-20:]:
        style = "bold green" if row["number"] == best else None
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        params = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row["params"].items()
        )
        drawn.add_row(str(row["number"]), row["state"], value, row["reason"][:60] or params, style=style)
    return drawn


def draw(study: optuna.Study, file: Path, measure: str) -> None:
    """Value by trial with the best so far, and value by each parameter.

    Raises:
        InvalidConfiguration: the file is of no kind that can be drawn.
    """
    scored = [row for row in rows(study) if row["value"] is not None]
    names = sorted({name for row in scored for name in row["params"]})
    columns = 1 + len(names)
    with drawn_into(file, columns=columns, size_inches=(4 * columns, 3.5)) as (_, axes):
        numbers, values = [row["number"] for row in scored], [row["value"] for row in scored]
        better = max if study.direction.name == "MAXIMIZE" else min
        axes[0, 0].plot(numbers, values, ".", label="trials")
        axes[0, 0].step(
            numbers, [better(values[: i + 1]) for i in range(len(values))], where="post", label="best so far"
        )
        axes[0, 0].set_xlabel("trial")
        axes[0, 0].set_ylabel(measure)
        axes[0, 0].legend()
        for axis, name in zip(axes[0, 1:], names, strict=True):
            axis.plot([row["params"].get(name) for row in scored], values, ".")
            axis.set_xlabel(name)
