"""The lab: `tidemill init`, `try` and `replay`. Nothing here writes to what runs live, but a switch."""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra import stopping
from infra.command.app import answers, app, console, settings
from infra.settings import Settings
from schemas.errors import InvalidConfiguration
from schemas.topics import JOBS, PREDICTIONS

if TYPE_CHECKING:
    from streams.lab.compare import Report
    from streams.lab.recorded import Recorded
    from streams.pipeline import Pipeline

_MOST_LINES = 15

Files = Annotated[
    list[str] | None,
    typer.Option("--file", help="TOPIC=PATH of archived raw events, instead of the cluster's; repeatable."),
]
Html = Annotated[Path | None, typer.Option(help="Write the report as one HTML page, plots and all.")]
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


@app.command("try")
def try_rules(
    pipeline: Annotated[str, typer.Argument(help="Module or file of the pipeline with the edited rules.")],
    against: Annotated[
        str, typer.Option(help="The live rules: a file, a module, or git:REVISION of the same file.")
    ] = "git:HEAD",
    from_: Annotated[
        str | None, typer.Option("--from", help="2024-05-01, 2024-05-01T06:00 (UTC), or 1d for a day ago.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="As --from; what came then is not read any more.")] = None,
    file: Files = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Run edited rules over past raw events and show what they would change. Writes nothing live.

    From a cluster, --from and --to are about when records were appended; of files of events, event times.
    Triggers on the live model see what services answered in that time, and take each version's first windows
    in it for the baseline; with files, --file tidemill.predictions=ARCHIVE gives the answers.
    """
    from streams.check.pipeline import refuse_mistakes
    from streams.decode.schema_registry import writers_for
    from streams.lab.against import load_against
    from streams.lab.trial import attempt
    from streams.live.judge import is_judged
    from streams.load import load_pipeline

    configured = settings()
    live = load_against(pipeline, against)
    edited = load_pipeline(pipeline)
    refuse_mistakes(edited.pipeline)
    topics = list(dict.fromkeys([*live.pipeline.sources(), *edited.pipeline.sources()]))
    judged = any(is_judged(each.pipeline) for each in (live, edited))

    async def run(home: Path) -> Report:
        span = file or [], from_, to
        async with recorded(configured, edited.pipeline, topics, *span, judged=judged) as records:
            with counting(records.records) as (bar, task):
                return await attempt(
                    live.pipeline,
                    edited.pipeline,
                    records,
                    home,
                    names=(against, pipeline),
                    read=", ".join(file or ()) or "the cluster",
                    writers=writers_for(edited.pipeline, configured.schema_registry),
                    idle_after_ms=configured.worker.idle_timeout_ms,
                    progress=lambda done: bar.update(task, completed=done),
                )

    with tempfile.TemporaryDirectory(prefix="tidemill-try-") as folder:
        report = stopping.run(run(Path(folder)))
    show(report, html=html, as_json=as_json, title=f"{report.pipeline}: edited rules, tried")


@app.command()
def replay(
    pipeline: Annotated[str, typer.Argument(help="Module or file of the pipeline with the new rules.")],
    against: Annotated[
        str, typer.Option(help="The rules of the live dataset: a file, a module, or git:REVISION.")
    ] = "git:HEAD",
    to: Annotated[
        str | None, typer.Option(help="What was appended from then on is not read: 2024-05-01, or 1d.")
    ] = None,
    file: Files = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Rebuild a dataset from its raw records under new rules, beside the live one, and report what differs.

    Stopped or killed, the same command goes on where it was; later, it takes in what has come since.
    """
    import time

    from infra.switched import live_dataset
    from streams.check.pipeline import refuse_mistakes
    from streams.decode.schema_registry import writers_for
    from streams.lab import replay as replaying
    from streams.lab.against import load_against
    from streams.load import load_pipeline

    configured = settings()
    live, edited = load_against(pipeline, against), load_pipeline(pipeline)
    refuse_mistakes(edited.pipeline)
    folder = configured.paths.dataset
    if not (folder / live.pipeline.name / "_delta_log").is_dir():
        raise InvalidConfiguration(
            f"there is no live dataset {live.pipeline.name} in {folder} to stand beside; has a worker run?"
        )
    began_s = time.perf_counter()
    name = replaying.version_name(edited)
    if live_dataset(folder, live.pipeline.name)[0].name == name:
        raise InvalidConfiguration(f"{name} is the live dataset already: its worker takes in what comes")
    console.print(f"rebuilding as {name} in {folder}; stopped, the same command goes on", soft_wrap=True)

    async def run() -> int:
        # Files are read from their beginning, and what is there already is passed over.
        at = None if file else replaying.positions_of(edited, folder)
        topics = list(edited.pipeline.sources())
        async with recorded(configured, edited.pipeline, topics, file or [], None, to, at) as records:
            rehearsal = replaying.rehearsal_at(
                edited, folder, records, writers=writers_for(edited.pipeline, configured.schema_registry)
            )
            with counting(records.records) as (bar, task):
                return await replaying.replay(
                    rehearsal,
                    records,
                    batch_rows=configured.worker.batch_rows,
                    idle_after_ms=configured.worker.idle_timeout_ms,
                    progress=lambda done: bar.update(task, completed=done),
                )

    events = stopping.run(run())
    report = replaying.report_on(
        live,
        edited,
        folder,
        read=", ".join(file or ()) or "the cluster",
        events=events,
        began_s=began_s,
    )
    show(report, html=html, as_json=as_json, title=f"{report.pipeline}: {name} beside the live dataset")


@app.command()
def switch(
    pipeline: Annotated[str, typer.Argument(help="Module or file of the pipeline by which workers go on.")],
    reason: Annotated[str, typer.Option(help="Why; it is announced, and asked for later.")],
    against: Annotated[
        str, typer.Option(help="The rules of the dataset that is live: a file, a module, or git:REVISION.")
    ] = "git:HEAD",
    back: Annotated[bool, typer.Option("--back", help="Take the newest switch back.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Stay in the live dataset, and go on by this file's rules.")
    ] = False,
    by: Annotated[str | None, typer.Option(help="Who decides; else your user's name.")] = None,
    as_json: Json = False,
) -> None:
    """Make a replayed dataset the pipeline's live one. Workers of the other end; start them by the new rules.

    They read on from where that dataset stands: no event is lost, none is in it twice. What was announced is
    not announced again. `--back` takes it back, by the rules of the dataset before.
    """
    from infra.logging import configure as configure_log
    from infra.submit import connected
    from infra.switched import live_dataset
    from streams.check.pipeline import refuse_mistakes
    from streams.lab import switch as switching
    from streams.lab.against import load_against
    from streams.lab.replay import version_name
    from streams.load import load_pipeline

    configured = settings()
    configure_log(configured.log, part="switch")
    live, new = load_against(pipeline, against), load_pipeline(pipeline)
    refuse_mistakes(new.pipeline)
    if new.pipeline.name != live.pipeline.name:
        raise InvalidConfiguration(f"{pipeline} is pipeline {new.pipeline.name}, not {live.pipeline.name}")
    if not reason.strip():
        raise InvalidConfiguration("say why, by --reason: whoever meets the switch will ask")
    folder, newest = live_dataset(configured.paths.dataset, live.pipeline.name)
    if back and newest is None:
        raise InvalidConfiguration(f"pipeline {live.pipeline.name} was never switched: nothing to take back")
    to = folder.name if keep else newest.before if back and newest is not None else version_name(new)
    done = stopping.run(
        switching.switch(
            live,
            new,
            configured.paths.dataset,
            connected(configured),
            to=to,
            reason=reason,
            by=by or getpass.getuser(),
            keep=keep,
        )
    )
    if as_json:
        print(json.dumps(msgspec.to_builtins(done)))
    console.print(
        f"{done.to} is the live dataset of pipeline {live.pipeline.name}, {done.before} was it; "
        f"start the workers by {pipeline}",
        soft_wrap=True,
        highlight=False,
    )


@asynccontextmanager
async def recorded(
    configured: Settings,
    pipeline: Pipeline,
    topics: Sequence[str],
    files: Sequence[str],
    from_: str | None,
    to: str | None,
    positions: Mapping[tuple[str, int], int] | None = None,
    *,
    judged: bool = False,
) -> AsyncIterator[Recorded]:
    """The records that a command line means; `judged`: also what services answered and trainings took.

    Raises:
        InvalidConfiguration: a time or a file is not written so, or no cluster is there.
    """
    from infra.submit import connected
    from streams.lab.recorded import from_cluster, from_files

    span = {"from_ms": at_ms(from_), "to_ms": at_ms(to)}
    if None not in span.values() and span["from_ms"] >= span["to_ms"]:  # type: ignore[operator]
        raise InvalidConfiguration(f"--from {from_} is not before --to {to}")
    if not files:
        # Of trainings the newest count, however old: those topics are short.
        beside = {PREDICTIONS.name: span["from_ms"], JOBS.name: None} if judged else {}
        cluster = connected(configured)
        async with from_cluster(cluster, topics, **span, positions=positions, beside=beside) as found:
            yield found
        return
    named: dict[str, Path] = {}
    for each in files:
        topic, sign, path = each.partition("=")
        if not sign:
            raise InvalidConfiguration(f"--file {each!r}: write TOPIC=PATH, of {', '.join(topics)}")
        if topic in named:
            raise InvalidConfiguration(f"--file names {topic} twice; put its events into one file")
        named[topic] = Path(path)
    yield from_files(pipeline, named, **span)


def at_ms(written: str | None) -> int | None:
    """Epoch ms of an ISO time, UTC unless it says otherwise, or of so long ago.

    Raises:
        InvalidConfiguration: it is neither.
    """
    from streams.duration import to_ms

    if written is None:
        return None
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        try:
            return int(datetime.now(UTC).timestamp() * 1000) - to_ms(written)
        except InvalidConfiguration:
            raise InvalidConfiguration(
                f"{written!r} is no time: write 2024-05-01, 2024-05-01T06:00 or, for so long ago, 6h"
            ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


class counting:  # noqa: N801  (a context manager)
    """A bar of records on stderr, where that is a terminal."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        columns = [
            *Progress.get_default_columns(),
            TextColumn("{task.completed:,} records"),
            TimeElapsedColumn(),
        ]
        self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> tuple[Progress, Any]:
        self._bar.start()
        return self._bar, self._bar.add_task("reading", total=self._total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def show(report: Report, *, html: Path | None, as_json: bool, title: str) -> None:
    """The report as it was asked for: a page, JSON, or tables.

    Raises:
        InvalidConfiguration: the page cannot be written.
    """
    from infra.report_page import page

    if html is not None:
        try:
            html.write_text(page(msgspec.to_builtins(report, str_keys=True), title=title), encoding="utf-8")
        except OSError as error:
            raise InvalidConfiguration(f"cannot write {html}: {error.strerror}") from error
        console.print(f"written: {html}", highlight=False, soft_wrap=True)
    if as_json:
        print(msgspec.json.encode(report).decode())
        return
    whole = _table(
        f"{report.events:,} records of {report.read}: {report.edited} against {report.live}",
        ("source", "records", "live rows", "edited rows", "lost", "gained"),
        [(s.source, s.events, s.live, s.edited, s.lost, s.gained) for s in report.sources],
    )
    answers.print(whole)
    for source in report.sources:
        rules = [(rule, n, m) for rule, (n, m) in source.rules.items()]
        tags = [(t.tag, t.live, t.edited, t.gained, t.lost) for t in source.tags]
        moved = [(c.column, c.distance, c.p, c.changed) for c in source.columns if c.moved or c.changed]
        for title_, columns, rows in (
            ("refused or dropped", ("rule", "live", "edited"), rules),
            ("tags", ("tag", "live", "edited", "gained", "lost"), tags),
            ("columns that moved", ("column", "distance", "p", "values changed"), moved),
        ):
            if rows:
                answers.print(_table(f"{source.source}: {title_}", columns, rows))
        for example in source.examples[:_MOST_LINES]:
            answers.print(f"{source.source}: {example.difference}, {example.rows:,} rows", style="bold")
            for row in example.some:
                answers.print(f"  {json.dumps(row, default=str)}", markup=False, highlight=False)
    _show_decisions(report)
    if report.costs:
        answers.print(_cost_table(report))
    if not report.differs:
        answers.print("no row, tag, value or decision differs")


def _show_decisions(report: Report) -> None:
    decided = report.decisions
    if any(decided.windows):
        answers.print(
            f"decisions: live {decided.yes[0]} yes of {decided.windows[0]} windows, "
            f"edited {decided.yes[1]} of {decided.windows[1]}",
            highlight=False,
        )
    if any(decided.answers):
        answers.print(
            f"answers of the live model, with their label: live {decided.labelled[0]:,} of "
            f"{decided.answers[0]:,}, edited {decided.labelled[1]:,} of {decided.answers[1]:,}",
            highlight=False,
        )
    if decided.unsaid:
        rows = [(u.condition, u.live, u.edited, u.reason) for u in decided.unsaid]
        columns = ("condition", "live windows", "edited windows", "reason, the last time")
        answers.print(_table("could not say", columns, rows[:_MOST_LINES]))
    if decided.differing:
        rows = [(d.name, d.live or "none", d.edited or "none", d.reason) for d in decided.differing]
        answers.print(_table("decided otherwise", ("window", "live", "edited", "reason"), rows[:_MOST_LINES]))


def _cost_table(report: Report) -> Table:
    by: dict[tuple[str, str], dict[str, float]] = {}
    for side, costs in report.costs.items():
        for cost in costs:
            by.setdefault((cost.step, cost.source), {})[side] = cost.us_per_event
    rows = [(step, source, us.get("live"), us.get("edited")) for (step, source), us in by.items()]
    return _table("CPU µs an event, each step by itself", ("step", "source", "live", "edited"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for at, name in enumerate(columns):
        number = any(isinstance(row[at], int | float) for row in rows)
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    return drawn


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:,.3g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
