"""`tidemill page`: the road live in a browser."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from infra import stopping
from infra.command.app import app, console, settings
from infra.command.cluster import the_cluster


@app.command()
def page(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print once what the page would show, as one JSON object, and end.")
    ] = False,
) -> None:
    """Serve the page for a cluster that runs: what `tidemill up` does by itself."""
    from infra.logging import configure
    from infra.page.service import read_once, serve, whereabouts

    configured = settings()
    connection = the_cluster(configured)
    if as_json:
        print(json.dumps(stopping.run(read_once(configured, connection))))
        return
    configure(configured.log, part="page")
    said = whereabouts(configured, to_a_person=console.is_terminal)
    console.print(said, highlight=False, soft_wrap=True)
    stopping.run(serve(configured, connection))
