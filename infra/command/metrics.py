"""`tidemill metrics`: what processes serve at /metrics, as it is declared."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table

from infra.command.app import answers, app


@app.command()
def metrics(
    part: Annotated[
        str | None, typer.Option(help="Only of this part: worker, trainer, door or page.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """List every metric that processes serve: name, kind, unit, labels, meaning."""
    from infra.observe.metrics import METRICS, of_part

    chosen = METRICS if part is None else of_part(part)
    if as_json:
        print(json.dumps({"metrics": [dataclasses.asdict(metric) for metric in chosen]}))
        return
    table = Table("metric", "kind", "unit", "labels", "of", "meaning")
    for metric in chosen:
        table.add_row(
            metric.name,
            metric.kind,
            metric.unit,
            ", ".join(metric.labels),
            ", ".join(metric.parts),
            metric.meaning,
        )
    answers.print(table)
