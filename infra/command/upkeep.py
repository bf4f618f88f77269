"""`tidemill dataset`: a dataset's versions; compact and vacuum by hand what workers do by themselves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from infra import stopping
from infra.command.app import answers, console, settings
from infra.command.dataset import dataset
from infra.settings import Settings
from schemas.errors import InvalidConfiguration

Name = Annotated[
    str | None, typer.Argument(help="The pipeline; may be left out where there is one dataset only.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def dataset_uri(configured: Settings, name: str | None) -> str:
    """The dataset of that pipeline, or the only one there is."""
    folder = configured.paths.dataset
    known = sorted(p.parent.name for p in folder.glob("*/_delta_log")) if folder.is_dir() else []
    if name is None and len(known) == 1:
        return str(folder / known[0])
    if name in known:
        return str(folder / str(name))
    there = f"there are {', '.join(known)}" if known else "there is none yet: has a worker run?"
    asked = "name one of several datasets" if name is None and known else f"no dataset {name or ''}".rstrip()
    raise InvalidConfiguration(f"{asked} in {folder}; {there}")


@dataset.command()
def history(
    name: Name = None,
    last: Annotated[int, typer.Option(min=1, help="So many of the newest versions.")] = 20,
    as_json: Json = False,
) -> None:
    """What its versions say of themselves, the newest first."""
    from infra.dataset import Dataset

    uri = dataset_uri(settings(), name)
    read = Dataset(uri)
    newest = read.newest_version()
    said = [
        {
            "version": record.version,
            "time_ms": record.timestamp_ms,
            "what": _what(record.operation, record.metadata),
            "rows": record.rows if "offsets" in record.metadata else 0,
            "files_added": len(record.added),
            "files_removed": record.removed,
            "bytes_added": record.added_bytes,
            "watermark_ms": record.metadata.get("watermark_ms"),
        }
        for record in reversed(read.commits(after_version=max(newest - last, -1), until_version=newest))
    ]
    if as_json:
        print(json.dumps({"uri": uri, "version": newest, "history": said}))
        return
    table = Table(title=uri, title_justify="left")
    for column in ("version", "time (UTC)", "what", "rows", "files", "KiB", "watermark (UTC)"):
        table.add_column(column, justify="right" if column in ("version", "rows", "files", "KiB") else "left")
    for each in said:
        table.add_row(
            str(each["version"]),
            _time(each["time_ms"]),
            each["what"],
            f"{each['rows']:,}",
            f"+{each['files_added']}" + (f" -{each['files_removed']}" if each["files_removed"] else ""),
            f"{each['bytes_added'] / 1024:,.0f}",
            _time(each["watermark_ms"]),
        )
    answers.print(table)


def _what(operation: str, metadata: dict[str, object]) -> str:
    if "excluded" in metadata:
        return "exclusion"
    if "switched" in metadata:
        return "switch"
    if "judged" in metadata:
        return "answers judged"
    if "offsets" in metadata:
        return "rows" if metadata["offsets"] else "nothing"
    return {"OPTIMIZE": "compaction", "CREATE TABLE": "made"}.get(operation, operation.lower())


def _time(at_ms: int | None) -> str:
    try:
        return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


@dataset.command()
def compact(
    name: Name = None,
    files: Annotated[
        int | None, typer.Option(min=2, help="So many small files are worth it; else upkeep.compact_files.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make large files of small ones, while workers and readers go on."""
    from streams.ledger.compaction import compact as compact_once

    configured = settings()
    uri = dataset_uri(configured, name)
    made = []
    with console.status("compacting …") as status:
        while done := compact_once(
            uri, files=files or configured.upkeep.compact_files, file_bytes=configured.upkeep.file_bytes
        ):
            made.append(done)
            status.update(f"compacting … {sum(d.files for d in made):,} files so far")
    before, after = sum(d.bytes_before for d in made), sum(d.bytes_after for d in made)
    if as_json:
        said = {"uri": uri, "versions": [d.version for d in made], "files": sum(d.files for d in made)}
        print(json.dumps({**said, "bytes_before": before, "bytes_after": after}))
    elif made:
        console.print(
            f"{sum(d.files for d in made):,} files became {len(made)}, {before / 2**20:.1f} MiB became "
            f"{after / 2**20:.1f}; the old ones stay until `tidemill dataset vacuum`"
        )
    else:
        console.print("nothing to compact: there are too few small files")


@dataset.command()
def vacuum(
    name: Name = None,
    keep_hours: Annotated[
        int | None, typer.Option(min=1, help="Versions younger than that stay; else upkeep.keep_hours.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say which files would go.")] = False,
    as_json: Json = False,
) -> None:
    """Delete files of versions that are old and that no model and no open job refers to."""
    from infra.kafka.cluster import find_cluster
    from streams.ledger.retention import references
    from streams.ledger.retention import vacuum as vacuum_once

    configured = settings()
    uri = dataset_uri(configured, name)
    connection = find_cluster(configured)
    if connection is None:
        raise InvalidConfiguration(
            "no broker runs here, so nobody can say which versions models and jobs refer to; start one by "
            "`tidemill up`, or name your cluster. Nothing was deleted"
        )
    found = stopping.run(references(connection, uri))
    deleted = vacuum_once(
        uri, keep=found.versions(), keep_hours=keep_hours or configured.upkeep.keep_hours, dry_run=dry_run
    )
    if as_json:
        referred = {"models": found.models, "jobs": found.jobs}
        kept = {kind: {n: sorted(v) for n, v in each.items()} for kind, each in referred.items()}
        print(json.dumps({"uri": uri, "dry_run": dry_run, "files": deleted, "kept": kept}))
        return
    verb = "would go" if dry_run else "deleted"
    console.print(
        f"{len(deleted):,} files {verb}; kept are {len(found.versions())} versions that {len(found.models)} "
        f"models and {len(found.jobs)} open jobs refer to"
    )
    if dry_run:
        for file in deleted:
            answers.print(file, highlight=False, markup=False, soft_wrap=True)
