"""`tidemill door`: events over HTTP, for producers without Kafka."""

from __future__ import annotations

from typing import Annotated

import typer

from infra import stopping
from infra.command.app import app, console, settings, with_config


@app.command()
def door(
    pipeline: Annotated[
        str | None, typer.Option(help="Module or file of a pipeline that declares streams of its own.")
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", hidden=True, help="Share the port with others: one of several.")
    ] = False,
) -> None:
    """Take events over HTTP (CloudEvents, REST Proxy v3) until Ctrl-C; acknowledged once Kafka has them."""
    from infra.door.run import run_door
    from infra.kafka.cluster import find_cluster
    from infra.kafka.connection import connect_to
    from infra.logging import configure

    if pipeline is not None:
        from streams.load import load_pipeline

        load_pipeline(pipeline)
    configured = settings()
    configure(configured.log, part="door")
    if configured.door.processes > 1:
        from infra.door.several import run_several

        of_pipeline = () if pipeline is None else ("--pipeline", pipeline)
        run_several(configured, [*with_config(), "door", "--beside", *of_pipeline], console)
        return
    connection = find_cluster(configured) or connect_to(configured.kafka)
    stopping.run(run_door(configured, connection, console, shares_port=beside))
