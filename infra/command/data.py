"""`tidemill data`: a pipeline's windows as data that an engineer handles: look, compare, exclude, export."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from infra import stopping
from infra.command.app import answers, app, console, settings
from schemas.errors import InvalidConfiguration

if TYPE_CHECKING:
    from infra.exclusion import Exclusion
    from schemas.window import Window
    from streams.pipeline import Pipeline
    from streams.survey.coverage import Coverage
    from streams.survey.difference import Side
    from streams.survey.listing import Listed

data = typer.Typer(
    name="data",
    help="A pipeline's windows and versions: list, profile, compare, exclude from training, export.",
    no_args_is_help=True,
)
app.add_typer(data)

PipelineOption = Annotated[
    str | None, typer.Option("--pipeline", help="Module or file of the pipeline; else worker.pipeline.")
]
WindowName = Annotated[
    str,
    typer.Argument(
        metavar="WINDOW", help="As its events write it, or the day or time it starts, UTC: 2013-01-08."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def _place(named: str | None) -> tuple[Pipeline, str]:
    """The pipeline and the address of its live dataset."""
    from infra.switched import live_dataset
    from streams.load import load_pipeline

    configured = settings()
    pipeline = load_pipeline(named or configured.worker.pipeline).pipeline
    return pipeline, str(live_dataset(configured.paths.dataset, pipeline.name)[0])


def _coverage(pipeline: Pipeline, uri: str, windows: list[Window], version: int) -> list[Coverage | None]:
    from infra.dataset import Dataset
    from streams.announce.fold import key_of
    from streams.survey.coverage import coverage

    found = coverage(
        uri,
        pipeline.spec(),
        windows,
        version=version,
        watermark_ms=Dataset(uri).commit(version).metadata.get("watermark_ms"),
        key=key_of(pipeline) if pipeline.window.by is not None else None,
    )
    return [*found] if found else [None] * len(windows)


@data.command("list")
def list_windows(
    pipeline: PipelineOption = None,
    last: Annotated[int, typer.Option(min=1, help="So many of the newest windows.")] = 20,
    as_json: Json = False,
) -> None:
    """Windows that closed: rows, tags, refusals, labels that have come, versions, what is excluded."""
    from infra.dataset import Dataset
    from streams.survey.listing import windows

    declared, uri = _place(pipeline)
    newest = Dataset(uri).newest_version()
    with console.status("reading the dataset's log …"):
        known = windows(declared, uri, version=newest)
        shown = known[-last:]
        covered = _coverage(declared, uri, [each.window for each in shown], newest)
    if as_json:
        told = [_as_json(each, labels) for each, labels in zip(shown, covered, strict=True)]
        said = {"pipeline": declared.name, "uri": uri, "version": newest, "windows": told}
        print(json.dumps({**said, "known": len(known)}))
        return
    table = Table(title=f"{declared.name}: {len(known):,} windows by version {newest}", title_justify="left")
    for name in ("window (UTC)", "rows", "refused", "dropped", "tags", "labelled", "versions", "excluded"):
        table.add_column(
            name, justify="right" if name in ("rows", "refused", "dropped", "labelled") else "left"
        )
    for each, labels in zip(shown, covered, strict=True):
        table.add_row(
            escape(_readable(each.window)),
            f"{each.summary.rows:,}",
            f"{sum(each.summary.rejected.values()):,}",
            f"{sum(each.summary.dropped.values()):,}",
            ", ".join(f"{name} {count:,}" for name, count in each.summary.tags.items()),
            "" if labels is None else f"{labels.share:.1%}",
            ", ".join(map(str, [each.version, *each.amended])),
            escape("; ".join(exclusion.reason for exclusion in each.excluded)),
        )
    answers.print(table)


def _as_json(listed: Listed, labels: Coverage | None) -> dict[str, Any]:
    return {
        "window": str(listed.window),
        **msgspec.to_builtins(listed.window),
        "summary": msgspec.to_builtins(listed.summary),
        "labels": None if labels is None else labels.as_json(),
        "closed_version": listed.version,
        "amended": [{"version": version, "late_rows": rows} for version, rows in listed.amended.items()],
        "excluded": [msgspec.to_builtins(each) for each in listed.excluded],
    }


@data.command()
def show(
    window: WindowName,
    pipeline: PipelineOption = None,
    version: Annotated[int | None, typer.Option(min=0, help="As of this version; else the newest.")] = None,
    as_json: Json = False,
) -> None:
    """One window's profile: each column and feature, tags, slices, labels and how late they come."""
    from infra.dataset import Dataset
    from streams.survey.listing import named, windows
    from streams.survey.portrait import described, portraits

    declared, uri = _place(pipeline)
    at = Dataset(uri).newest_version() if version is None else version
    listed = named(windows(declared, uri, version=at), window)
    profile = portraits(declared, uri, [listed.window], version=at)[0]
    labels = _coverage(declared, uri, [listed.window], at)[0]
    columns = {name: described(column) for name, column in profile.columns.items()}
    if as_json:
        told = _as_json(listed, labels) | {"version": at, "columns": columns, "behind_tags": profile.tags}
        told["slices"] = msgspec.to_builtins(profile.slices)
        print(json.dumps(told))
        return
    answers.print(
        f"[bold]{declared.name} {escape(_readable(listed.window))}[/] ({listed.window}), version {at}"
    )
    answers.print(
        f"{listed.summary.rows:,} rows; refused {_counts(listed.summary.rejected)}; dropped "
        f"{_counts(listed.summary.dropped)}; tags {_counts({**listed.summary.tags, **profile.tags})}",
        highlight=False,
    )
    if labels is not None:
        answers.print(_told(labels), highlight=False)
    for each in listed.excluded:
        said = f"with {_readable(each.span)} by {each.by}: {each.reason}"
        answers.print(f"[yellow]excluded[/] {escape(said)}", soft_wrap=True)
    table = Table("column", "missing", "what is in it")
    for name, said in columns.items():
        share = said["missing"] / said["rows"] if said["rows"] else 0.0
        table.add_row(escape(name), f"{share:.1%}", escape(_content(said)))
    answers.print(table)


def _told(labels: Coverage) -> str:
    delay = ""
    if labels.delay_p50_ms is not None and labels.delay_p99_ms is not None:
        middle_h, last_h = labels.delay_p50_ms / 3.6e6, labels.delay_p99_ms / 3.6e6
        delay = f", after {middle_h:.3g} h in the middle, {last_h:.3g} h at p99"
    return (
        f"labels: {labels.labelled:,} of {labels.events:,} ({labels.share:.1%}){delay}; {labels.too_late:,} "
        f"came too late, {labels.awaited:,} may still come, {labels.conflicting:,} contradict another"
    )


def _content(said: dict[str, Any]) -> str:
    if said["kind"] == "numbers":
        return "  ".join(
            f"{name} {said[name]:.4g}" for name in ("min", "p25", "median", "mean", "p75", "p99", "max")
        )
    values = ", ".join(f"{value} {count:,}" for value, count in said["values"].items())
    return f"{values}, others {said['other']:,}" if said["other"] else values or "nothing"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


@data.command()
def diff(
    first: Annotated[str, typer.Argument(help="A window, or WINDOW@VERSION.")],
    second: Annotated[str, typer.Argument(help="Another, or the same at another version.")],
    pipeline: PipelineOption = None,
    as_json: Json = False,
) -> None:
    """From one window to another: rows, tags, refusals, drops, and the columns whose distribution moved."""
    from streams.survey.difference import difference

    declared, uri = _place(pipeline)
    sides = [_side(declared, uri, each) for each in (first, second)]
    found = difference(*sides)
    if as_json:
        names = [{"window": str(side.window), "version": side.version} for side in sides]
        print(json.dumps({"first": names[0], "second": names[1], **asdict(found)}))
        return
    for name, side in zip(("from", "to  "), sides, strict=True):
        answers.print(f"{name} {_readable(side.window)}, version {side.version}", highlight=False)
    table = Table("", "first", "second")
    table.add_row("rows", *(f"{count:,}" for count in found.rows))
    for kind, pairs in (("tag", found.tags), ("refused", found.rejected), ("dropped", found.dropped)):
        for name, pair in pairs.items():
            table.add_row(f"{kind} {name}", *(f"{count:,}" for count in pair))
    answers.print(table)
    table = Table("column", "moved", "distance", "p", "")
    for each in found.columns:
        distance, p = ("" if number is None else f"{number:.3g}" for number in (each.distance, each.p))
        table.add_row(each.column, "[yellow]yes[/]" if each.moved else "", distance, p, each.why)
    answers.print(table)


def _side(pipeline: Pipeline, uri: str, text: str) -> Side:
    from infra.dataset import Dataset
    from streams.survey.difference import Side
    from streams.survey.listing import named, windows
    from streams.survey.portrait import portraits

    name, at, number = text.rpartition("@")
    versioned = bool(at) and number.isdigit()
    version = int(number) if versioned else Dataset(uri).newest_version()
    listed = named(windows(pipeline, uri, version=version), name if versioned else text)
    profile = portraits(pipeline, uri, [listed.window], version=version)[0]
    return Side(listed.window, version, listed.summary, profile)


SpanName = Annotated[
    str, typer.Argument(metavar="SPAN", help="A window, or FROM..TO: 2013-01-08..2013-01-09T12:00, UTC.")
]
Reason = Annotated[str, typer.Option(help="Why; it stands in the event.")]
By = Annotated[str | None, typer.Option(help="Who decides; else your user's name.")]


@data.command()
def exclude(
    span: SpanName, reason: Reason, pipeline: PipelineOption = None, by: By = None, as_json: Json = False
) -> None:
    """Let no training learn from a span's events, and no gate judge by them, from now on."""
    from streams.ledger.exclude import exclude as decide

    _decide(span, reason, pipeline, by, decide, as_json=as_json, verb="excluded")


@data.command()
def include(
    span: SpanName, reason: Reason, pipeline: PipelineOption = None, by: By = None, as_json: Json = False
) -> None:
    """Take an exclusion back."""
    from streams.ledger.exclude import include as decide

    _decide(span, reason, pipeline, by, decide, as_json=as_json, verb="included again")


def _decide(
    span: str, reason: str, named: str | None, by: str | None, decide: Any, *, as_json: bool, verb: str
) -> None:
    from streams.survey.listing import span_of, windows

    declared, uri = _place(named)
    known = [] if ".." in span else windows(declared, uri)
    window = span_of(known, span)
    who = by or getpass.getuser()
    version = decide(declared, uri, window, reason=reason, by=who)
    if as_json:
        said = {"pipeline": declared.name, "window": str(window), "reason": reason, "decided_by": who}
        print(json.dumps({**said, "version": version, "excluded": verb == "excluded"}))
    console.print(
        f"{_readable(window)} is {verb}; version {version} of the dataset says that {who} decided it. "
        "Trainings that are asked for from now on obey",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@data.command()
def excluded(pipeline: PipelineOption = None, as_json: Json = False) -> None:
    """The spans that stand excluded."""
    from infra.exclusion import excluded_at

    declared, uri = _place(pipeline)
    standing = excluded_at(uri)
    if as_json:
        print(json.dumps({"pipeline": declared.name, "excluded": [msgspec.to_builtins(s) for s in standing]}))
        return
    answers.print(_excluded(standing) if standing else f"nothing of {declared.name} is excluded")


def _excluded(standing: tuple[Exclusion, ...]) -> Table:
    table = Table("span (UTC)", "name", "since", "by", "reason")
    for each in standing:
        told = (_readable(each.span), str(each.span), _time(each.at_ms), each.by, each.reason)
        table.add_row(*map(escape, told))
    return table


def _readable(window: Window) -> str:
    whose = f"{window.key}: " if window.key else ""
    return f"{whose}{_time(window.start_ms)} to {_time(window.end_ms)}"


def _time(at_ms: int) -> str:
    try:
        at = datetime.fromtimestamp(at_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"
    return f"{at:%Y-%m-%d %H:%M}" if at_ms % 60_000 == 0 else f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3]


@data.command()
def export(
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    span: Annotated[str | None, typer.Option(help="A window, or FROM..TO; else everything.")] = None,
    pipeline: PipelineOption = None,
    version: Annotated[int | None, typer.Option(min=0, help="As of this dataset version.")] = None,
    source: Annotated[str | None, typer.Option(help="A source's topic; else the main one.")] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Features and labels, as a training would see them.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Exactly what a model was trained on: NAME or NAME/VERSION.")
    ] = None,
    judged: Annotated[bool, typer.Option("--judged", help="With --model: what it was judged on.")] = False,
    events: Annotated[
        Path | None, typer.Option(help="With --model: read model events from this file, not the cluster.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a span's rows, examples, or exactly what a model saw, to a Parquet file."""
    from streams.survey.export import NotExported, write

    if file.exists() and not replace:
        raise NotExported(f"{file} is there already; name another, or add --replace")
    if model is not None:
        if span or version is not None or source or examples:
            raise InvalidConfiguration(
                "--model says itself which rows of which version; leave --span, --version, --source "
                "and --examples away"
            )
        frame, said = _seen_by(model, events, judged=judged)
    elif judged or events:
        raise InvalidConfiguration("--judged and --events go with --model")
    else:
        frame, said = _of_span(span, pipeline, version, source, examples=examples)
    digest = write(frame, file, said=said, replace=replace)
    expected = said.get("expected_sha256")
    if as_json:
        print(json.dumps({**said, "file": str(file), "rows": frame.height, "sha256": digest}))
    console.print(f"{frame.height:,} rows, SHA-256 {digest}, are in {file}", highlight=False, soft_wrap=True)
    if expected and expected != digest:
        raise InvalidConfiguration(
            f"the model's event says that it saw SHA-256 {expected}: these rows differ"
        )


def _of_span(
    span: str | None, named: str | None, version: int | None, source: str | None, *, examples: bool
) -> tuple[Any, dict[str, Any]]:
    from infra.dataset import Dataset
    from infra.exclusion import excluded_at
    from infra.point_in_time import examples as examples_of
    from schemas.window import Window
    from streams.announce.fold import EVER_MS
    from streams.ingest import source_schema
    from streams.survey.listing import span_of, windows

    declared, uri = _place(named)
    dataset = Dataset(uri)
    at = dataset.newest_version() if version is None else version
    topic = source or declared.source.topic
    if topic not in declared.sources():
        raise InvalidConfiguration(
            f"{topic} is no source of {declared.name}; it has {', '.join(declared.sources())}"
        )
    if examples and topic != declared.source.topic:
        raise InvalidConfiguration(f"examples are made of {declared.source.topic}'s events; leave --source")
    within = Window(EVER_MS, -EVER_MS)
    if span is not None:
        within = span_of([] if ".." in span else windows(declared, uri, version=at), span)
    said: dict[str, Any] = {"uri": uri, "version": at, "source": topic, "span": str(within) if span else None}
    bounds: dict[str, Any] = {"version": at, "start_ms": within.start_ms, "end_ms": within.end_ms}
    if not examples:
        return dataset.rows(topic, columns=list(source_schema(declared.sources()[topic])), **bounds), said
    standing = [each.span for each in excluded_at(uri, at)]
    said |= {"examples": True, "excluded": [str(each) for each in standing]}
    return examples_of(dataset, declared.spec(), excluded=standing, **bounds), said


def _seen_by(text: str, events: Path | None, *, judged: bool) -> tuple[Any, dict[str, Any]]:
    from infra.command.cluster import the_cluster
    from infra.history import by_weights, pick, published, published_in
    from trainers.artifact import ArtifactStore
    from trainers.reproduce import rows_of

    name, slash, number = text.rpartition("/")
    versioned = bool(slash) and number.isdigit()
    manifests = published_in(events) if events else stopping.run(published(the_cluster(settings())))
    manifest = pick(manifests, name if versioned else text, int(number) if versioned else None)
    champion = by_weights(manifests, manifest.name, manifest.lineage.champion_sha256)
    rows = rows_of(manifest, champion=champion, store=ArtifactStore(settings().paths.artifacts))
    lineage = manifest.lineage
    if judged and rows.judged is None:
        raise InvalidConfiguration(f"model {manifest.name} version {manifest.version} was judged on nothing")
    said = {"model": manifest.name, "model_version": manifest.version, "judged": judged}
    said |= {"uri": lineage.dataset_uri, "version": lineage.dataset_version}
    said["expected_sha256"] = lineage.evaluation_sha256 if judged else lineage.input_sha256
    return (rows.judged if judged else rows.training), said


@data.command()
def kept(pipeline: PipelineOption = None, as_json: Json = False) -> None:
    """The dataset versions that models and open jobs need: no vacuum takes their rows."""
    from infra.command.cluster import the_cluster
    from infra.dataset import Dataset
    from streams.ledger.retention import references

    declared, uri = _place(pipeline)
    found = stopping.run(references(the_cluster(settings()), uri))
    by_version: dict[int, list[str]] = {}
    for kind, each in (("model", found.models), ("job", found.jobs)):
        for name, versions in each.items():
            for version in versions:
                by_version.setdefault(version, []).append(f"{kind} {name}")
    newest = Dataset(uri).newest_version()
    if as_json:
        versions = [{"version": v, "needed_by": sorted(by_version[v])} for v in sorted(by_version)]
        print(json.dumps({"pipeline": declared.name, "uri": uri, "newest": newest, "kept": versions}))
        return
    table = Table("version", "needed by", title=f"{declared.name}, newest version {newest}")
    for version in sorted(by_version):
        table.add_row(str(version), ", ".join(sorted(by_version[version])))
    answers.print(table)
