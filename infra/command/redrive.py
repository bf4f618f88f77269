"""`tidemill redrive`: push dead letters' bytes again, after a fix."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from infra import stopping
from infra.command.app import app, console, settings
from infra.command.cluster import the_cluster
from schemas.dead_letter import DeadLetter, RecordRedriven


@app.command()
def redrive(
    pipeline: Annotated[str | None, typer.Option(help="Only letters of this pipeline.")] = None,
    topic: Annotated[str | None, typer.Option(help="Only letters from this topic.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only letters that this rule refused.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only letters with this reason.")] = None,
    again: Annotated[bool, typer.Option(help="Those too that were pushed again already.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Push the original bytes of dead letters back to the topics they came from; each is said as an event."""
    from infra.page.redrive import redrive as push_again

    connection = the_cluster(settings())
    letters, pushed = stopping.run(_read())
    chosen = [
        letter
        for letter_id, letter in letters.items()
        if (again or letter_id not in pushed)
        and pipeline in {None, letter.pipeline}
        and topic in {None, letter.topic}
        and rule in {None, letter.rule}
        and reason in {None, letter.reason}
    ]
    if chosen and not yes:
        typer.confirm(f"Push {len(chosen)} records back to their topics?", abort=True, err=True)
    answers = stopping.run(push_again(connection, chosen)) if chosen else []
    failed = [each for each in answers if "error" in each]
    if as_json:
        print(json.dumps({"letters": answers}))
    for each in failed:
        console.print(f"[red]{each['id']}[/]: {each['error']}", highlight=False, soft_wrap=True)
    console.print(f"{len(answers) - len(failed)} records are on their topics again", highlight=False)
    if failed:
        raise typer.Exit(1)


async def _read() -> tuple[dict[str, DeadLetter], set[str]]:
    """All letters by id, and the ids of those that were pushed again."""
    from infra.kafka.read import read_to_end
    from schemas import topics
    from schemas.envelope import NotAnAnnouncement, open_record, unwrap

    letters: dict[str, DeadLetter] = {}
    pushed: set[str] = set()
    async for record in read_to_end(the_cluster(settings()), {topics.DEAD_LETTERS.name: None}):
        try:
            event = unwrap(open_record(record.key, record.value, record.headers))
        except NotAnAnnouncement:
            continue
        if isinstance(event, DeadLetter):
            letters[event.event_id()] = event
        elif isinstance(event, RecordRedriven):
            pushed.add(event.letter_id)
    return letters, pushed
