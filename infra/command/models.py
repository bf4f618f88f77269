"""`tidemill models`: what was published, how it did at the gate, who signed it, who answers with it; and the
end of artifacts that nobody can still ask for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from infra import stopping
from infra.command.app import answers, app, console, settings
from infra.command.cluster import the_cluster
from infra.settings import Settings
from schemas.errors import InvalidConfiguration

if TYPE_CHECKING:
    from schemas.signature import TrustedKeys

_PIPED_WIDTH = 200
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class _ModelOrCommand(TyperGroup):
    """`models flights` names a model, `models vacuum` a command: what is a command's name is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments as the group takes them: an empty model before a command, and options before a model."""
        first = next((n for n, each in enumerate(args) if not each.startswith("-")), None)
        if first is not None and args[first] in self.commands:
            args = [*args[:first], "", *args[first:]]
        else:
            args = sorted(args, key=lambda each: not each.startswith("-"))
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=_ModelOrCommand, invoke_without_command=True, help="List the models; remove what none of them needs."
)
app.add_typer(group, name="models")


@group.callback()
def models(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the models: versions, the gate's numbers, the key that signed, the services that adopted.

    Signatures are checked against the trusted keys of this machine, as `tidemill keys` lists them.
    """
    if context.invoked_subcommand is not None:
        return
    from infra.model_board import read_models

    configured = settings()
    found = stopping.run(read_models(the_cluster(configured), trusted=_trusted(configured)))
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
        stale = [f"stale at {service}: {why}" for service, why in row["stale_at"].items()]
        tried = [f"canary {c['version']} {c['state']}: {c['share']:.0%}"] if (c := row["canary"]) else []
        again = [f"weights of {row['weights_of_version']}: {row['reason']}"] if row["reason"] else []
        drawn.add_row(
            escape(row["name"]),
            f"{row['version']}" + (" live" if row["live"] else ""),
            *("" if auc is None else f"{auc:.4f}" for auc in sides),
            _better(row["gate"]),
            escape(", ".join(row["signed_by"]) or "nobody") + ("" if row["trusted"] else " (not trusted)"),
            escape(", ".join(row["adopted_by"])),
            escape("; ".join([*tried, *again, *stale, *refused])[:120]),
        )
    return drawn


def _better(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    return f"{gate['metric']} {gate['value']:+.4f} ({gate['low']:+.4f} to {gate['high']:+.4f})"


def _trusted(configured: Settings) -> TrustedKeys | None:
    from schemas.signature import TrustedKeys
    from trainers.keys import KeyFolder

    keys = KeyFolder(configured.paths.signing_keys)
    return TrustedKeys(keys.trusted_file) if keys.listed() else None


@group.command()
def vacuum(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and what stays.")
    ] = False,
    keep_hours: Annotated[
        int | None, typer.Option(min=1, help="So long an artifact stays at least; else store.keep_hours.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove artifacts that nobody can still ask for: trials, refused challengers, versions long gone by.

    Run it where the trainer runs, which does the same every store.vacuum_interval_ms. The newest versions of
    each model stay (store.keep_versions), what they began from, what any service answers with, and what open
    jobs came to.
    """
    from trainers.stores import Stores
    from trainers.vacuum import Retention
    from trainers.vacuum import vacuum as vacuum_once

    configured = settings()
    retention = Retention.of(configured.store, keep_hours=keep_hours)
    with console.status("asking what is needed …"):
        done = stopping.run(
            vacuum_once(
                the_cluster(configured),
                Stores.of(configured),
                retention,
                jobs=configured.paths.jobs,
                trusted=_trusted(configured),
                dry_run=dry_run,
            )
        )
    if as_json:
        places = [
            {
                "place": each.place,
                "removed": [
                    {"sha256": k.sha256, "size_bytes": k.size_bytes, "modified_ms": k.modified_ms}
                    for k in each.removed
                ],
                "leftovers": each.leftovers,
                "stayed": each.stayed,
            }
            for each in done
        ]
        print(json.dumps({"dry_run": dry_run, "places": places}))
        return
    verb = "would go" if dry_run else "removed"
    for each in done:
        size = f"{each.removed_bytes / 2**20:.1f} MiB"
        console.print(
            f"{each.place}: {len(each.removed):,} artifacts {verb}, {size}; {len(each.stayed):,} stay",
            highlight=False,
            soft_wrap=True,
        )
        if dry_run:
            for kept in each.removed:
                answers.print(f"{kept.sha256}  {kept.size_bytes:,} bytes", highlight=False, soft_wrap=True)


@group.command()
def canary(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the event.")],
    promote: Annotated[
        bool, typer.Option("--promote/--withdraw", help="Make it the current model, or end its trial.")
    ],
    as_json: Json = False,
) -> None:
    """End the trial of a model's canary by hand. Run it where the trainer runs."""
    from infra.kafka.reach import reach
    from schemas.model import CanaryPromoted
    from trainers.trial import end_by_hand

    configured = settings()
    if not reason.strip():
        raise InvalidConfiguration("a trial that is ended by hand needs a reason: its numbers are not there")
    connection = the_cluster(configured)
    stopping.run(reach(connection, timeout_s=configured.doctor.connect_timeout_s))
    event = stopping.run(end_by_hand(configured, connection, name=model, promote=promote, reason=reason))
    version = event.manifest.version if isinstance(event, CanaryPromoted) else event.version
    outcome = "promoted" if isinstance(event, CanaryPromoted) else "withdrawn"
    if as_json:
        print(json.dumps({"name": model, "outcome": outcome, "version": version, "reason": event.reason}))
        return
    said = f"is current: its canary is {outcome}" if promote else f"is {outcome}; the current model stays"
    console.print(f"{model} version {version} {said}", highlight=False, soft_wrap=True)
