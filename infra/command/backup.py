"""`tidemill dataset backup | restore`: a dataset with its ledger, elsewhere and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from infra.command.app import console, settings
from infra.command.dataset import dataset
from infra.command.upkeep import Json, Name, dataset_uri


@dataset.command()
def backup(
    to: Annotated[
        Path, typer.Option(help="A folder of its own, on another disk; taken again, it gets what is new.")
    ],
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Copy a dataset with its ledger; workers may go on committing meanwhile."""
    from streams.ledger.backup import back_up

    uri = dataset_uri(settings(), name)
    done = back_up(uri, to)
    console.print(
        f"version {done.version} of {uri} is in {to}: {done.files:,} files, {done.size_bytes / 1e6:,.1f} MB, "
        f"of which {done.copied_files:,} files, {done.copied_bytes / 1e6:,.1f} MB are new",
        soft_wrap=True,
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))


@dataset.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    named: Annotated[
        str | None, typer.Option("--as", help="Under this pipeline's name instead of its own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a backup back where its dataset was. Workers of that pipeline must not run."""
    from streams.ledger.backup import pipeline_of, restore

    uri = settings().paths.dataset / (named or pipeline_of(folder))
    done = restore(folder, uri)
    console.print(
        f"{uri} is at version {done.version}; a worker goes on from the offsets that it holds", soft_wrap=True
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
