"""`tidemill keys`: the keys that sign models, on the trainer's machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from infra.command.app import answers, app, console, settings

keys = typer.Typer(
    help="The keys that sign models: list, make, rotate, retire. Run it where the trainer runs.",
    invoke_without_command=True,
)
app.add_typer(keys, name="keys")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@keys.callback()
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """List the public keys that services are to trust, oldest first."""
    from trainers.keys import KeyFolder

    if context.invoked_subcommand is not None:
        return
    folder = KeyFolder(settings().paths.signing_keys)
    found = folder.listed()
    if as_json:
        rows = [{"id": key.id, "public_key": key.public, "signs": key.signs} for key in found]
        print(json.dumps({"trusted_file": str(folder.trusted_file), "keys": rows}))
        return
    if not found:
        console.print(
            f"no keys in {folder.folder} yet; the trainer makes one at its start, or: tidemill keys make"
        )
        return
    table = Table("key", "public key", "signs")
    for key in found:
        table.add_row(key.id, key.public, "yes" if key.signs else "no, trusted only")
    answers.print(table)
    console.print(f"services take this list as {folder.trusted_file}", highlight=False, soft_wrap=True)


@keys.command()
def make() -> None:
    """Make a first key pair; one that is there already stays the only one."""
    from trainers.keys import KeyFolder

    folder = KeyFolder(settings().paths.signing_keys)
    folder.ensure()
    for key in folder.listed():
        answers.print(f"{key.id}  {key.public}", highlight=False, soft_wrap=True)


@keys.command()
def rotate() -> None:
    """Make one more key: it and its predecessors sign every model until those are retired."""
    from trainers.keys import KeyFolder

    folder = KeyFolder(settings().paths.signing_keys)
    before = [key for key in folder.listed() if key.signs]
    made = folder.make()
    answers.print(f"{made.id}  {made.public}", highlight=False, soft_wrap=True)
    console.print(f"1. bring {folder.trusted_file} to every service that has a list of its own")
    console.print(
        "2. wait for each model's next version, or start the trainer again: it signs the live ones anew"
    )
    for number, key in enumerate(before, 3):
        console.print(f"{number}. tidemill keys retire {key.id}")


@keys.command()
def retire(key: Annotated[str, typer.Argument(help="Its id, as `tidemill keys` lists it.")]) -> None:
    """Take a key off the list and delete its private half: what it alone signed is refused from now on."""
    from trainers.keys import KeyFolder

    folder = KeyFolder(settings().paths.signing_keys)
    folder.retire(key)
    console.print(f"{key} is retired; bring {folder.trusted_file} to the services", soft_wrap=True)
