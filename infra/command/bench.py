"""`tidemill bench`: measurements that anyone can repeat. The work is in `loadtest/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from infra.command.app import app, console, settings

bench = typer.Typer(name="bench", help="Measure: ingest beside its peers, faults.", no_args_is_help=True)
app.add_typer(bench)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
To = Annotated[
    Path | None, typer.Option("--to", help="Folder for the dated result; else bench/ in paths.home.")
]


@bench.command()
def ingest(
    sides: Annotated[
        str, typer.Option(help="Sides to run, by name, with commas between; `all` for every one.")
    ] = "tidemill,faust,getmany,librdkafka",
    events: Annotated[int, typer.Option(min=10_000, help="Events on the topic.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every side runs.")] = 3,
    form: Annotated[
        Literal["json", "arrow"], typer.Option("--format", help="How a record holds its events.")
    ] = "json",
    partitions: Annotated[int, typer.Option(min=1, max=256, help="Partitions of the topic.")] = 4,
    keys: Annotated[int, typer.Option(min=1, help="Different sources among the events.")] = 32,
    most_s: Annotated[
        float, typer.Option("--most-seconds", min=1, help="A slower side is stopped after so long.")
    ] = 20.0,
    pipeline: Annotated[
        Literal["readings", "flights"],
        typer.Option(help="readings: the common work of all sides; flights: the demo's, Tidemill alone."),
    ] = "readings",
    to: To = None,
    as_json: Json = False,
) -> None:
    """How many events a second become rows, beside what others do of the same work."""
    if pipeline == "flights":
        from loadtest.ingest import flights

        flights.report(flights.run(rounds), as_json=as_json)
        return
    from loadtest.ingest.run import Options, run
    from loadtest.ingest.sides import NAMES

    configured = settings()
    options = Options(
        sides=NAMES if sides == "all" else tuple(name.strip() for name in sides.split(",") if name.strip()),
        events=events,
        rounds=rounds,
        format=form,
        partitions=partitions,
        keys=keys,
        most_s=most_s,
    )
    result = run(options, cache_dir=configured.cache_dir, console=console)
    file = result.write(to or configured.paths.home / "bench")
    console.print(result.table())
    console.print(result.what_each_does())
    for fault in result.faults():
        console.print(f"[red]{fault}[/]")
    console.print(f"written to {file} and {file.with_suffix('.png').name}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result.as_json()))
    if result.faults():
        raise typer.Exit(1)
