"""`tidemill why`: the reasons of a model, or of there being none, from the events."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from infra import stopping
from infra.command.app import answers, app, settings
from infra.command.cluster import the_cluster


@app.command()
def why(
    model: Annotated[str, typer.Argument(help="Name of a model, or of the pipeline that trains it.")],
    date: Annotated[
        str | None,
        typer.Option("--not", help="Why there was no new model that day of event time: 2013-01-08."),
    ] = None,
    version: Annotated[int | None, typer.Option(help="This version instead of the newest.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Why a model was trained and published; with --not, what was decided on a day, and what came of it."""
    from infra.why import listen, why_not
    from infra.why import why as why_model

    told = stopping.run(listen(the_cluster(settings())))
    if date is not None:
        accounts = why_not(told, model, date)
        if as_json:
            print(json.dumps({"model": model, "date": date, "decisions": accounts}))
            return
        for account in accounts:
            _show(account)
        return
    answer = why_model(told, model, version=version)
    if as_json:
        print(json.dumps(answer))
        return
    answers.print(
        f"[bold]{answer['model']} version {answer['version']}[/], published {answer['published']}: "
        f"{answer['because']}",
        highlight=False,
    )
    table = Table("", "challenger", "champion")
    for measure in ("auc", "log_loss", "accuracy", "rows"):
        sides = [answer[side] and answer[side][measure] for side in ("challenger", "champion")]
        table.add_row(measure, *("" if value is None else f"{value:.6g}" for value in sides))
    answers.print(table)
    answers.print(f"trained on {answer['rows']:,} rows of dataset version {answer['dataset_version']}")
    if answer["decision"] is None:
        answers.print("its decision is on no topic any more, or a person asked for the training")
    else:
        _show(answer["decision"])


def _show(account: dict[str, Any]) -> None:
    from infra.why import one_line

    window = account["window"]
    verdict = account["verdict"].replace("_", " ")
    answers.print(f"window {window['start']} to {window['end']}: [bold]{verdict}[/]", highlight=False)
    table = Table("condition", "fired", "score", "threshold", "forecast", "reason")
    for evaluation in account["evaluations"]:
        table.add_row(*one_line(evaluation))
    answers.print(table)
    for evaluation in account["evaluations"]:
        if evaluation["reference"]:
            answers.print(
                f"{evaluation['condition']} is held against {evaluation['reference']}", highlight=False
            )
    answers.print(account["outcome"], highlight=False)
