"""Every sub-command, in the order of the road. Each is thin: the work is in the room it names."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from infra import stopping
from infra.command.app import answers, app, console, settings, with_config

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def demo(
    days: Annotated[int, typer.Option(min=1, max=364, help="Play so many days of 2013.")] = 364,
    fresh: Annotated[bool, typer.Option(help="Delete what an earlier demo left, and begin anew.")] = False,
    day_seconds: Annotated[
        float, typer.Option(min=0, help="Let a day last so long at least, to watch it on the page.")
    ] = 0.0,
    home: Annotated[Path | None, typer.Option(help="Folder for all that the demo writes.")] = None,
    as_json: Json = False,
) -> None:
    """Replay a year of real flights over the whole road and show how good the live models were."""
    from infra.demo.report import show
    from infra.demo.run import Demo, begin_afresh

    if home is not None:
        os.environ["TIDEMILL_PATHS__HOME"] = str(home.absolute())
    configured = settings()
    if fresh:
        begin_afresh(configured.paths.home)
    report, scores = Demo(configured, days=days, day_s=day_seconds, console=console).run()
    (configured.paths.home / "report.json").write_text(json.dumps(report.as_json(), indent=2))
    show(report, scores, console, as_json=as_json)


@app.command()
def up(
    pipeline: Annotated[str | None, typer.Option(help="Module or file of the pipeline.")] = None,
    page: Annotated[bool, typer.Option(help="Serve the page.")] = True,
    door: Annotated[bool, typer.Option("--door", help="Take events over HTTP, too.")] = False,
) -> None:
    """Run broker (embedded, unless one is configured), worker, trainer and page until Ctrl-C.

    Where `tidemill switch` makes another dataset the live one, the worker goes on by the rules of that.
    """
    from infra.kafka.cluster import open_cluster
    from infra.kafka.topics import ensure
    from infra.page.service import whereabouts
    from infra.supervisor import ProcessFailed, Supervised, Supervisor, tidemill
    from infra.switch_over import SwitchOver
    from schemas.topics import all_declared
    from streams.load import load_pipeline
    from trainers.keys import KeyFolder

    configured = settings()
    loaded = load_pipeline(pipeline or configured.worker.pipeline)  # and with it the topics that it declares
    KeyFolder(configured.paths.signing_keys).ensure()
    environment = {"TIDEMILL_WORKER__PIPELINE": pipeline} if pipeline else {}
    with open_cluster(configured, console=console) as (connection, broker), Supervisor() as supervisor:
        stopping.run(ensure(all_declared(), connection))
        environment["TIDEMILL_KAFKA__BOOTSTRAP_SERVERS"] = connection.bootstrap_servers
        environment["TIDEMILL_PATHS__HOME"] = str(configured.paths.home)
        own = with_config()
        parts = {"trainer": tidemill(*own, "trainer"), "worker": tidemill(*own, "worker")}
        if page:
            parts["page"] = tidemill(*own, "page")
            said = whereabouts(configured, to_a_person=console.is_terminal)
            console.print(said, highlight=False, soft_wrap=True)
        if door:
            parts["door"] = tidemill(*own, "door", "--pipeline", pipeline or configured.worker.pipeline)
        started: dict[str, Supervised] = {}
        for part, command in parts.items():
            log_file = configured.paths.logs / f"{part}.log"
            # Page and door may fail without the road taking notice.
            vital = part in ("trainer", "worker")
            started[part] = supervisor.start(Supervised(part, command, log_file, environment, vital=vital))
            console.print(f"{part} runs, log {log_file}")
        console.print(f"services trust models by {configured.paths.signing_keys / 'trusted.txt'}")
        console.print(f"push events to [bold]{connection.bootstrap_servers}[/]; Ctrl-C stops everything")
        over = SwitchOver(
            started["worker"],
            configured.paths.dataset,
            loaded.pipeline.name,
            loaded.file,
            lambda file: tidemill(*own, "worker", "--pipeline", str(file)),
        )
        while True:
            time.sleep(1.0)
            if broker is not None and broker.keep_alive():
                console.log("the broker was killed and is started again")
            try:
                for part in supervisor.keep_alive():
                    console.log(f"{part} was killed and is started again")
            except ProcessFailed as failed:
                if said := over.after(failed):
                    console.log(said)


@app.command()
def push(
    topic: Annotated[str, typer.Argument(help="A raw topic, such as flights.scheduled.")],
    file: Annotated[
        Path, typer.Argument(help="NDJSON, CSV, Parquet or Arrow IPC; - reads NDJSON from stdin.")
    ],
    form: Annotated[
        Literal["json", "arrow"],
        typer.Option("--as", help="An event a record, or Arrow frames of some thousand rows."),
    ] = "json",
    compression: Annotated[
        Literal["none", "gzip", "lz4", "zstd"],
        typer.Option(help="Of batches; worth its time where the cluster is far or its disk small."),
    ] = "none",
    pipeline: Annotated[
        str | None, typer.Option(help="Module or file of a pipeline that declares the topic.")
    ] = None,
    from_beginning: Annotated[
        bool, typer.Option(help="Push all of it, whatever an earlier push of the file did.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push a file's events to a raw topic; run again, it goes on where it stopped."""
    from infra import malloc
    from infra.push import push_file

    malloc.keep()
    if pipeline is not None:
        from streams.load import load_pipeline

        load_pipeline(pipeline)
    pushed = stopping.run(
        push_file(
            settings(),
            topic,
            file,
            console,
            form=form,
            compression=compression,
            from_beginning=from_beginning,
        )
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(pushed)))
    there = f"{pushed.sent + pushed.before:,} events are on {topic}"
    if pushed.stopped:
        console.print(f"stopped: {there}; the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130)
    if pushed.before and not pushed.sent:
        console.print(f"{there}, all from before; --from-beginning pushes them again", soft_wrap=True)
    else:
        rate = f", {pushed.sent / pushed.seconds:,.0f} a second" if pushed.seconds else ""
        console.print(f"{there}{rate}", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker(
    context: typer.Context,
    pipeline: Annotated[str | None, typer.Option(help="Module or file of the pipeline.")] = None,
) -> None:
    """Run a stream worker: Faust's own worker command on the pipeline's app."""
    from infra.logging import configure

    if pipeline is not None:
        os.environ["TIDEMILL_WORKER__PIPELINE"] = pipeline
    if given := with_config():  # Faust's command makes the app anew, by what the environment says
        os.environ["TIDEMILL_CONFIG"] = given[1]
    configured = settings()
    configure(configured.log, part="worker")  # what is said before Faust's own command is
    from streams.run import run

    sys.exit(run(configured, context.args))


@app.command()
def trainer() -> None:
    """Run a trainer: takes jobs, publishes models, serves their artifacts."""
    from infra.kafka.cluster import find_cluster
    from infra.kafka.connection import connect_to
    from infra.logging import configure
    from trainers.service import run_trainer

    configured = settings()
    configure(configured.log, part="trainer")
    connection = find_cluster(configured) or connect_to(configured.kafka)
    stopping.run(run_trainer(configured, connection))


@app.command()
def watch(
    topics: Annotated[
        list[str] | None, typer.Argument(help="Topics; none: all that Tidemill announces.")
    ] = None,
    from_beginning: Annotated[bool, typer.Option(help="From the oldest record on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Follow what Tidemill announces, one line an event, until Ctrl-C."""
    from infra.watch import follow

    stopping.run(follow(settings(), topics or [], console, from_beginning=from_beginning, as_json=as_json))


@app.command()
def check(
    pipeline: Annotated[str, typer.Argument(help="Module or file of the pipeline.")],
    as_json: Json = False,
) -> None:
    """Find a pipeline's mistakes before anything runs: each with its line and the way out."""
    from streams.check.pipeline import check as find

    problems = find(pipeline)
    if as_json:
        print(json.dumps([{"place": str(p.place), "problem": p.text} for p in problems]))
    for problem in problems if not as_json else ():
        console.print(f"[red]{problem.place}[/]: {problem.text}", highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print(f"{pipeline} is ready to run")


@app.command()
def config(as_json: Json = False) -> None:
    """Print every setting, its value and where it came from."""
    from infra.settings import describe

    lines = describe(settings())
    if as_json:
        print(json.dumps({line.name: {"value": line.value, "source": line.source} for line in lines}))
        return
    table = Table("setting", "value", "from")
    for line in lines:
        table.add_row(line.name, line.value, line.source)
    answers.print(table)


@app.command()
def topics(
    create: Annotated[bool, typer.Option(help="Create on the cluster what is missing.")] = False,
    pipeline: Annotated[
        str | None, typer.Option(help="Module or file of a pipeline that declares topics of its own.")
    ] = None,
    acls: Annotated[
        bool, typer.Option("--acls", help="Print the rights that each part needs, for kafka-acls.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the declared topics; with --create, make them so and compare those that exist."""
    from infra.command.cluster import the_cluster
    from infra.kafka.topics import ensure
    from schemas.topics import all_declared
    from streams.load import load_pipeline

    if pipeline is not None:
        load_pipeline(pipeline)
    declared = all_declared()
    if create:
        configured = settings()
        made = stopping.run(
            ensure(
                declared,
                the_cluster(configured),
                replication_factor=configured.kafka.replication_factor,
            )
        )
        console.print(f"{len(made)} topics are created, {len(declared) - len(made)} were there")
    if acls:
        from infra.kafka.acls import acls as rights

        given = rights(declared)
        if as_json:
            print(json.dumps({"acls": [dataclasses.asdict(acl) for acl in given]}))
            return
        for acl in given:
            answers.print(acl.command(user=acl.role), soft_wrap=True, highlight=False)
        return
    if as_json:
        rows = [
            {"topic": t.name, "partitions": t.partitions, "key": t.key, "purpose": t.purpose}
            for t in declared
        ]
        print(json.dumps({"topics": rows}))
        return
    table = Table("topic", "partitions", "key", "purpose")
    for topic in declared:
        table.add_row(topic.name, str(topic.partitions), topic.key, topic.purpose)
    answers.print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at everything that Tidemill needs here; say what is wrong and what to do."""
    from infra.command.store_check import artifact_store
    from infra.doctor import examine

    configured, checks = settings(), []
    for found in chain(examine(configured), artifact_store(configured)):
        checks.append(found)
        if not as_json:
            answers.print(f"{'[green]ok[/]  ' if found.ok else '[red]no[/]  '}{found.name}: {found.detail}")
            if not found.ok:
                answers.print(f"      → {found.remedy}")
    if as_json:
        rows = [{"name": c.name, "ok": c.ok, "detail": c.detail, "remedy": c.remedy} for c in checks]
        print(json.dumps(rows))
    if not all(c.ok for c in checks):
        raise typer.Exit(1)
