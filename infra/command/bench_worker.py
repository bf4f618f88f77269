"""`tidemill bench latency`, `scale`: what is asked of a worker beside its rate."""

from __future__ import annotations

import json
from typing import Annotated

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
        f"{result.events:,} events at {result.rate_events_s:,.0f} a second, {result.commits} commits",
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
    events: Annotated[int, typer.Option(min=100_000, help="Events on each topic.")] = 1_000_000,
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
    for fault in result.faults():
        console.print(f"[red]{fault}[/]")
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
    if result.faults():
        raise typer.Exit(1)
