"""`tidemill lineage` and `tidemill reproduce`: where a model comes from, and whether it comes out again."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.tree import Tree

from infra import stopping
from infra.command.app import answers, app, console, settings
from infra.command.cluster import the_cluster
from schemas.errors import Rejected
from schemas.model import Lineage, Manifest

DIFFERS = 3

Model = Annotated[str, typer.Argument(help="Name of a model.")]
Version = Annotated[int | None, typer.Option(help="This version instead of the newest.")]
Events = Annotated[
    Path | None,
    typer.Option(help="Read model events from this file, one JSON object a line, instead of the cluster."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def lineage(
    model: Model,
    version: Version = None,
    events: Events = None,
    openlineage: Annotated[
        bool, typer.Option(help="Print it as one OpenLineage event, for those who collect them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Where a model comes from: rows to the offset, code, parent, seed, libraries, machine, decision."""
    from infra.history import pick

    manifest = pick(_manifests(events), model, version)
    if openlineage:
        from infra.openlineage import run_event

        print(json.dumps(run_event(manifest)))
    elif as_json:
        print(msgspec.json.encode(manifest).decode())
    else:
        answers.print(_tree(manifest), highlight=False, soft_wrap=True)


@app.command()
def reproduce(
    model: Model,
    version: Version = None,
    events: Events = None,
    rows_only: Annotated[
        bool, typer.Option("--rows-only", help="Rebuild the input bytes; do not train.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rebuild a model's input bytes and, of one trained on a CPU, its weights; exit code 3 if they differ."""
    from infra.history import by_weights, pick
    from trainers.reproduce import reproduce as again
    from trainers.stores import Stores

    manifests = _manifests(events)
    manifest = pick(manifests, model, version)
    stores = Stores.of(settings())
    for digest in filter(None, (manifest.artifact.sha256, manifest.lineage.champion_sha256)):
        if stores.remote is not None:
            with contextlib.suppress(Rejected):  # what is missing is told with the rest
                stopping.run(stores.bring(digest))
    sys.path.append(str(Path.cwd()))  # where a trainer finds a project's own code, too
    # What user code prints is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        found = again(
            manifest,
            champion=by_weights(manifests, model, manifest.lineage.champion_sha256),
            store=stores.folder,
            retrain=not rows_only,
            say=lambda text: console.print(text, highlight=False, soft_wrap=True),
        )
    if as_json:
        told = {**asdict(found), "same": found.same, "differs_at": found.differs_at}
        print(json.dumps(told))
    else:
        signs = {True: "[green]same[/]   ", False: "[red]differs[/]", None: "[yellow]unknown[/]"}
        for check in found.checks:
            answers.print(
                f"{signs[check.same]}  {check.name}: {check.detail}", highlight=False, soft_wrap=True
            )
        if not found.same:
            answers.print(f"{model} version {manifest.version} is not reproduced: see {found.differs_at}")
    if not found.same:
        raise typer.Exit(DIFFERS)


def _manifests(events: Path | None) -> list[Manifest]:
    from infra.history import published, published_in

    return published_in(events) if events else stopping.run(published(the_cluster(settings())))


def _tree(manifest: Manifest) -> Tree:
    origin = manifest.lineage
    at = datetime.fromtimestamp(manifest.published_ms / 1000, UTC)
    root = Tree(f"[bold]{manifest.name} version {manifest.version}[/], published {at:%Y-%m-%d %H:%M:%S} UTC")
    root.add(f"weights {manifest.artifact.sha256}, {manifest.artifact.size_bytes:,} bytes")
    asked = root.add(f"job {origin.job_id}")
    asked.add(
        f"decision {origin.decision_id}" if origin.decision_id else "asked for by a person, no decision"
    )
    _add_data(root, origin)
    code = root.add(f"code {origin.code}, SHA-256 {origin.code_sha256}")
    code.add(f"pipeline {origin.pipeline}, SHA-256 {origin.configuration_sha256 or 'not recorded'}")
    code.add(f"parameters {json.dumps(origin.params)}, seed {origin.seed}")
    if origin.parent_sha256:
        root.add(f"began from version {origin.parent_version} with weights {origin.parent_sha256}")
    else:
        root.add("began from nothing")
    if origin.champion_sha256:
        root.add(f"judged beside weights {origin.champion_sha256}")
    machine = root.add(f"trained on {origin.device}, {origin.threads} thread(s)")
    machine.add(", ".join(f"{name} {value}" for name, value in origin.hardware.items()) or "not recorded")
    machine.add(", ".join(f"{name} {value}" for name, value in origin.libraries.items()))
    return root


def _add_data(root: Tree, origin: Lineage) -> None:
    data = root.add(f"{origin.rows:,} rows of dataset {origin.dataset_uri} version {origin.dataset_version}")
    data.add(f"input SHA-256 {origin.input_sha256 or 'not recorded'}")
    if origin.evaluation_sha256:
        data.add(f"judged on rows with SHA-256 {origin.evaluation_sha256}")
    if origin.experiment is not None:
        data.add(f"selection {msgspec.json.encode(origin.experiment.selection).decode()}")
    windows = data.add("windows")
    for window in origin.window_ids:
        windows.add(_readable(window))
    offsets = data.add("Kafka offsets")
    for read in origin.offsets:
        offsets.add(f"{read.topic} partition {read.partition}: {read.start:,} to {read.end:,}")


def _readable(window: str) -> str:
    """`flights/0-86400000` with its times as people write them, where a calendar has them."""
    name, _, span = window.rpartition("/")
    middle = span.find("-", 1)
    times = []
    for end in (span[:middle], span[middle + 1 :]):
        try:
            times.append(f"{datetime.fromtimestamp(int(end) / 1000, UTC):%Y-%m-%d %H:%M}")
        except (ValueError, OverflowError, OSError):
            times.append("the beginning" if end.startswith("-") else end)
    return f"{name}: {times[0]} to {times[1]} UTC"
