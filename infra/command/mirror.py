"""`tidemill mirror`: jobs and models, told to what others look at."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated

import typer

from infra.command.app import app, console, settings
from infra.command.cluster import the_cluster
from schemas.errors import InvalidConfiguration

mirror = typer.Typer(
    help="Tell others of jobs and models, from the events alone; nothing is read back.", no_args_is_help=True
)
app.add_typer(mirror, name="mirror")

TOKEN = "MLFLOW_TRACKING_TOKEN"


@mirror.command()
def mlflow(
    url: Annotated[str, typer.Option(help="Base address of the MLflow server.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Jobs as runs with their curves, published models as versions, the current one under the alias `live`.

    Told again, it is the same. A bearer token is taken from MLFLOW_TRACKING_TOKEN.
    """
    from infra.mirror import mirror as told_to
    from infra.mlflow import Mlflow

    if not url.startswith(("http://", "https://")):
        raise InvalidConfiguration(f"--url {url}: it must begin with http:// or https://")
    connection = the_cluster(settings())

    async def run() -> int:
        async with Mlflow(url, token=os.environ.get(TOKEN)) as server:
            return await told_to(connection, server.take, follow=follow)

    told = asyncio.run(run())
    console.print(f"{url} knows of {told:,} events", highlight=False)
    if as_json:
        print(json.dumps({"url": url, "events": told}))
