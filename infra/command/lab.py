"""The lab: `tidemill init`, `try` and `replay`. Nothing here writes to what runs live, but a switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infra.command.app import app, console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def init(
    name: Annotated[Path, typer.Argument(help="Of the pipeline and of its folder, such as kiosk.")],
    as_json: Json = False,
) -> None:
    """Write a small pipeline, a model and a test, that run at once."""
    from infra.scaffold import write

    written = write(name)
    if as_json:
        print(json.dumps({"folder": str(name), "files": [str(file) for file in written]}))
    for file in written:
        console.print(f"wrote {file}", highlight=False)
    console.print(f"cd {name} and run pytest; README.md there says what next", highlight=False)
