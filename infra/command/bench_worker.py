"""`tidemill bench latency`, `scale`, `catch-up`, `memory`: what is asked of a worker beside its rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from infra.command.app import console, settings
from infra.command.bench import Json, To, bench


@bench.command()
def latency(
    rate: Annotated[
        float | None, typer.Option(min=1, help="Events a second; else half of the top rate, measured first.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Events flow for so long, once settled.")] = 20.0,
    events: Annotated[
        int, typer.Option(min=100_000, help="Events on the topic that the top rate is measured on.")
    ] = 2_000_000,
    to: To = None,
    as_json: Json = False,
) -> None:
    """From an event to its committed, visible row: p50 and p99 at half of the top rate."""
    from loadtest.ingest import latency as measured
    from loadtest.ingest.result import write_dated
    from loadtest.ingest.target import table_of

    configured = settings()
    result = measured.run(
        rate=rate, seconds=seconds, events=events, cache_dir=configured.cache_dir, console=console
    )
    found = result.as_json()
    file = write_dated(found, to or configured.paths.home / "bench", "latency", result.began)
    console.print(table_of(result.targets()))
    console.print(
        f"{result.events:,} events at {result.rate_events_s:,.0f} a second, {result.commits} commits, "
        f"{result.worker_cores:.2f} cores for the worker",
        highlight=False,
    )
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
    if not found["kept_up"]:
        console.print("[red]the worker did not get through in time[/]")
        raise typer.Exit(1)


@bench.command()
def scale(
    of: Annotated[
        str, typer.Option(help="What grows: workers, partitions, keys, dedupe; with commas between.")
    ] = "workers,partitions,keys,dedupe",
    events: Annotated[int, typer.Option(min=100_000, help="Events on each topic.")] = 4_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every case runs.")] = 3,
    to: To = None,
    as_json: Json = False,
) -> None:
    """The cost of an event by workers, partitions and keys, and what dedupe is of it, in turns."""
    from loadtest.ingest import scale as measured
    from loadtest.ingest.result import write_dated
    from loadtest.ingest.target import table_of

    configured = settings()
    names = [name.strip() for name in of.split(",") if name.strip()]
    result = measured.run(
        names, events=events, rounds=rounds, cache_dir=configured.cache_dir, console=console
    )
    found = result.as_json()
    file = write_dated(found, to or configured.paths.home / "bench", "scale", result.began)
    console.print(result.table())
    if targets := result.targets():
        console.print(table_of(targets))
    _conclude(found, result.faults(), str(file), as_json=as_json)


@bench.command()
def catch_up(
    minutes: Annotated[
        float, typer.Option(min=0.5, help="Length of the stop in the events' own time, 1,000 a second.")
    ] = 60.0,
    rounds: Annotated[int, typer.Option(min=1, help="Times that it is stopped and goes on.")] = 3,
    to: To = None,
    as_json: Json = False,
) -> None:
    """How fast a worker reads what came while it was stopped, beside the same from an empty dataset."""
    from loadtest.ingest import catch_up as measured
    from loadtest.ingest.result import write_dated
    from loadtest.ingest.target import table_of

    configured = settings()
    result = measured.run(minutes=minutes, rounds=rounds, cache_dir=configured.cache_dir, console=console)
    found = result.as_json()
    file = write_dated(found, to or configured.paths.home / "bench", "catch-up", result.began)
    console.print(result.table())
    console.print(table_of(result.targets()))
    _conclude(found, result.faults(), str(file), as_json=as_json)


@bench.command()
def memory(
    events: Annotated[
        int, typer.Option(min=100_000, help="Events that the worker reads; the long form has 100000000.")
    ] = 5_000_000,
    partitions: Annotated[int, typer.Option(min=1, max=256, help="Partitions of the topic.")] = 64,
    keys: Annotated[int, typer.Option(min=1, help="Different sources among the events.")] = 10_000,
    to: To = None,
    as_json: Json = False,
) -> None:
    """A worker's memory over millions of events, with many windows open, drawn."""
    from loadtest.ingest import memory as measured
    from loadtest.ingest.result import write_dated
    from loadtest.ingest.target import table_of

    configured = settings()
    with console.status("") as status:
        held = measured.run(
            events=events,
            partitions=partitions,
            keys=keys,
            cache_dir=configured.cache_dir,
            console=console,
            said=status.update,
        )
    found = held.as_json()
    file = write_dated(found, to or configured.paths.home / "bench", "memory", held.began)
    measured.draw(held, file.with_suffix(".png"))
    console.print(table_of(held.targets()))
    _conclude(found, held.faults(), f"{file} and {file.with_suffix('.png').name}", as_json=as_json)


def _conclude(found: dict[str, Any], faults: Sequence[str], written: str, *, as_json: bool) -> None:
    """Say what was wrong and where the result lies. Raises typer.Exit with 1 if anything was wrong."""
    for fault in faults:
        console.print(f"[red]{fault}[/]")
    console.print(f"written to {written}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
    if faults:
        raise typer.Exit(1)
