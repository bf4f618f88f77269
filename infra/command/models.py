"""`tidemill models`: what was published, how it did at the gate, who signed it, who answers with it."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.command.app import answers, app, settings
from infra.command.cluster import the_cluster
from schemas.errors import InvalidConfiguration

_PIPED_WIDTH = 200


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """List the models: versions, the gate's numbers, the key that signed, the services that adopted.

    Signatures are checked against the trusted keys of this machine, as `tidemill keys` lists them.
    """
    from infra.model_board import read_models
    from schemas.signature import TrustedKeys
    from trainers.keys import KeyFolder

    configured = settings()
    keys = KeyFolder(configured.paths.signing_keys)
    trusted = TrustedKeys(keys.trusted_file) if keys.listed() else None
    found = asyncio.run(read_models(the_cluster(configured), trusted=trusted))
    rows = found.rows(model)
    if model is not None and not rows:
        known = ", ".join(sorted({row["name"] for row in found.rows()})) or "none yet"
        raise InvalidConfiguration(f"no event tells of a model {model!r}; models known: {known}")
    if as_json:
        print(json.dumps({"models": rows}))
        return
    (answers if answers.is_terminal else Console(width=_PIPED_WIDTH)).print(table(rows))


def table(rows: list[dict[str, Any]]) -> Table:
    """Models as a person reads them."""
    drawn = Table("model", "version", "auc", "of champion", "better by", "signed by", "adopted by", "note")
    for row in rows:
        sides = [row[side] and row[side]["auc"] for side in ("challenger", "champion")]
        refused = [f"{service} refused: {why}" for service, why in row["refused_by"].items()]
        again = [f"weights of {row['weights_of_version']}: {row['reason']}"] if row["reason"] else []
        drawn.add_row(
            escape(row["name"]),
            f"{row['version']}" + (" live" if row["live"] else ""),
            *("" if auc is None else f"{auc:.4f}" for auc in sides),
            _better(row["gate"]),
            escape(", ".join(row["signed_by"]) or "nobody") + ("" if row["trusted"] else " (not trusted)"),
            escape(", ".join(row["adopted_by"])),
            escape("; ".join([*again, *refused])[:120]),
        )
    return drawn


def _better(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    return f"{gate['metric']} {gate['value']:+.4f} ({gate['low']:+.4f} to {gate['high']:+.4f})"
