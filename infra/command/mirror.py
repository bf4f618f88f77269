"""`tidemill mirror`: jobs and models, told to what others look at."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from infra import stopping
from infra.command.app import app, console, settings
from infra.command.cluster import the_cluster
from schemas.errors import InvalidConfiguration

if TYPE_CHECKING:
    from infra.mlflow import Mlflow
    from infra.openlineage import Collector

mirror = typer.Typer(
    help="Tell others of jobs and models, from the events alone; nothing is read back.", no_args_is_help=True
)
app.add_typer(mirror, name="mirror")

MLFLOW_TOKEN, OPENLINEAGE_KEY = "MLFLOW_TRACKING_TOKEN", "OPENLINEAGE_API_KEY"

Url = Annotated[str, typer.Option(help="Where it is told to.")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@mirror.command()
def mlflow(url: Url, follow: Follow = False, as_json: Json = False) -> None:
    """Jobs as runs with their curves, published models as versions, the current one under the alias `live`.

    Told again, it is the same. A bearer token is taken from MLFLOW_TRACKING_TOKEN.
    """
    from infra.mlflow import Mlflow

    _mirror(Mlflow(_address(url), token=os.environ.get(MLFLOW_TOKEN)), url, follow=follow, as_json=as_json)


@mirror.command()
def openlineage(url: Url, follow: Follow = False, as_json: Json = False) -> None:
    """Each published model's run to an OpenLineage collector, as http://host:5000/api/v1/lineage.

    A bearer token is taken from OPENLINEAGE_API_KEY.
    """
    from infra.openlineage import Collector

    collector = Collector(_address(url), token=os.environ.get(OPENLINEAGE_KEY))
    _mirror(collector, url, follow=follow, as_json=as_json)


def _address(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InvalidConfiguration(f"--url {url}: it must begin with http:// or https://")
    return url


def _mirror(told: Mlflow | Collector, url: str, *, follow: bool, as_json: bool) -> None:
    from infra.mirror import mirror as told_to

    connection = the_cluster(settings())

    async def run() -> int:
        async with told:
            return await told_to(connection, told.take, follow=follow)

    events = stopping.run(run())
    console.print(f"{url} was told of {events:,} events", highlight=False)
    if as_json:
        print(json.dumps({"url": url, "events": events}))
