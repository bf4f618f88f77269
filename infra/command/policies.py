"""`tidemill policies`: when to train and on what, tried on a stream that was recorded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.command.app import answers, app, console, settings
from schemas.errors import InvalidConfiguration


@app.command()
def policies(
    pipeline: Annotated[
        str | None, typer.Argument(help="Module or file of the pipeline; else the worker's.")
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(
            help="name=code, as in train_when=; again for each. None: paces, drift, the pipeline's."
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="name=code, as in data=; again for each. None: the pipeline's.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="The recorded dataset; else the pipeline's in paths.dataset.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Only windows from here on: 2013-01-01.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Only windows that end by then.")] = None,
    measure: Annotated[Literal["auc", "log_loss", "accuracy"], typer.Option(help="The score.")] = "auc",
    within: Annotated[
        float, typer.Option(min=0, help="How much of the score a cheaper policy may lose.")
    ] = 0.003,
    against: Annotated[
        str | None, typer.Option(help="The policy that others are held against; else the best score.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once; else one for each core.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="The picture, PNG or SVG; else in the lab's folder.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Which trigger and which data give the best models for the fewest trainings: on a recorded stream.

    Each policy decides, trains and publishes as it would have, and each row is answered by the model that
    would have been live. An experiment that several policies ask for is trained once. Stopped, the same
    command goes on where it was.
    """
    from infra.lab.policies import declared
    from infra.lab.policies.picture import draw
    from infra.lab.policies.result import judge
    from infra.lab.policies.run import run
    from infra.switched import live_dataset
    from streams.load import load_pipeline

    configured = settings()
    loaded = load_pipeline(pipeline or configured.worker.pipeline)
    tried = declared.policies(loaded, trigger or [], data or [])
    names = [each.name for each in tried]
    if against is not None and against not in names:
        raise InvalidConfiguration(f"no policy is called {against!r}; there are {', '.join(names)}")
    folder = configured.paths.home / "lab" / "policies"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading the stream", total=None)

        def progress(said: str, done: int, of: int) -> None:
            bar.update(task, description=said, completed=done, total=of)

        recorded, walked = run(
            loaded,
            dataset or live_dataset(configured.paths.dataset, loaded.pipeline.name)[0],
            tried,
            folder,
            start_ms=_time(start),
            end_ms=_time(end),
            processes=processes,
            progress=progress,
        )
    result = judge(recorded, walked, measure=measure, within=within, reference=against)
    drawn = draw(result, plot or folder / "policies.png")
    for name in result.held_back:
        console.print(f"[yellow]{name} never had a model in this span, and is not compared[/]")
    if as_json:
        print(json.dumps({**result.as_json(), "picture": str(drawn)}))
        return
    answers.print(result.table())
    best = result.of(result.best)
    answers.print(
        f"* efficient: none as good for less. > the one to take: {result.best}, within {within:g} of "
        f"{result.reference} with {best.trainings} trainings for "
        f"{result.of(result.reference).trainings}. {result.asked} were asked for, {result.trained} done.",
        highlight=False,
    )
    answers.print(f"\n{best.policy.code()}\n", highlight=False, markup=False)
    answers.print(f"picture {drawn}", highlight=False, soft_wrap=True)


def _time(said: str | None) -> int | None:
    """A date or time as epoch ms, UTC where no zone is said."""
    if said is None:
        return None
    try:
        at = datetime.fromisoformat(said)
    except ValueError as error:
        raise InvalidConfiguration(f"{said!r} is no date; write 2013-01-31, or 2013-01-31T05:00") from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
