"""`tidemill rollback`: an older model becomes the current one again."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from infra import stopping
from infra.command.app import app, console, settings
from infra.command.cluster import the_cluster
from schemas.errors import InvalidConfiguration

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    to: Annotated[int, typer.Option("--to", min=1, help="The version whose weights are to be live again.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the event.")],
    as_json: Json = False,
) -> None:
    """Make an older version's weights current again, under a new version. Run it where the trainer runs."""
    from infra.kafka.reach import reach
    from trainers.rollback import roll_back

    configured = settings()
    if not reason.strip():
        raise InvalidConfiguration("a rollback needs a reason: whoever asks later has nothing else to go by")
    connection = the_cluster(configured)
    stopping.run(reach(connection, timeout_s=configured.doctor.connect_timeout_s))
    event = stopping.run(roll_back(configured, connection, name=model, to_version=to, reason=reason))
    if as_json:
        said = {"name": model, "version": event.manifest.version, "sha256": event.manifest.artifact.sha256}
        print(json.dumps({**said, "from_version": event.from_version, "to_artifact_of_version": to}))
        return
    console.print(
        f"{model} version {event.manifest.version} is current: the weights of version {to}, in place of "
        f"version {event.from_version}",
        highlight=False,
        soft_wrap=True,
    )
