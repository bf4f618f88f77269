"""`tidemill dataset`: what a person decides about a pipeline's dataset."""

from __future__ import annotations

import getpass
import json
from typing import Annotated

import typer

from infra import stopping
from infra.command.app import app, console, settings

dataset = typer.Typer(
    name="dataset",
    help="A pipeline's dataset: history, upkeep, and what only a person can decide.",
    no_args_is_help=True,
)
app.add_typer(dataset)


@dataset.command("accept-gap")
def accept_gap(
    topic: Annotated[str, typer.Option(help="The raw topic whose records expired unread.")],
    partition: Annotated[int, typer.Option(min=0, help="The partition.")],
    pipeline: Annotated[str | None, typer.Option(help="Module or file of the pipeline.")] = None,
    by: Annotated[str | None, typer.Option(help="Who decides; else your user's name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Go on behind records that expired unread. The ledger keeps which, and who decided it."""
    from infra.kafka.cluster import find_cluster
    from infra.kafka.connection import connect_to
    from streams.ledger.gap import accept_gap as accept
    from streams.load import load_pipeline

    configured = settings()
    loaded = load_pipeline(pipeline or configured.worker.pipeline).pipeline
    connection = find_cluster(configured) or connect_to(configured.kafka)
    if not yes:
        typer.confirm(
            f"Pass over what expired unread of {topic}/{partition} in pipeline {loaded.name}? "
            "Those records are lost to it for ever",
            abort=True,
            err=True,
        )
    who = by or getpass.getuser()
    gap, version = stopping.run(
        accept(loaded, configured.paths.dataset, connection, (topic, partition), by=who)
    )
    console.print(
        f"{gap.next - gap.start:,} records of {topic}/{partition}, offsets {gap.start} to {gap.next - 1}, "
        f"are passed over; version {version} of the dataset says that {who} decided it"
    )
    if as_json:
        print(
            json.dumps(
                {
                    "topic": topic,
                    "partition": partition,
                    "from": gap.start,
                    "next": gap.next,
                    "version": version,
                    "decided_by": who,
                }
            )
        )
