"""`tidemill bench`: measurements that anyone can repeat. The work is in `loadtest/`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from infra.command.app import answers, app, console, settings
from schemas.errors import InvalidConfiguration

bench = typer.Typer(
    name="bench",
    help="Measure: ingest and training beside others, door, faults, drift, quality, jobs, page, swaps.",
    no_args_is_help=True,
)
app.add_typer(bench)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
To = Annotated[
    Path | None, typer.Option("--to", help="Folder for the dated result; else bench/ in paths.home.")
]


def _dated(found: dict[str, Any], kind: str, began: datetime, to: Path | None) -> Path:
    """The dated file that a result was written to."""
    from infra import atomic_file

    file = (to or settings().paths.home / "bench") / f"{kind}-{began:%Y-%m-%dT%H%M%S}.json"
    atomic_file.write_text(file, json.dumps(found, indent=2))
    return file


@bench.command()
def ingest(
    sides: Annotated[
        str, typer.Option(help="Sides to run, by name, with commas between; `all` for every one.")
    ] = "tidemill,faust,getmany,librdkafka",
    events: Annotated[int, typer.Option(min=10_000, help="Events on the topic.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every side runs.")] = 3,
    form: Annotated[
        Literal["json", "arrow", "avro"], typer.Option("--format", help="How a record holds its events.")
    ] = "json",
    partitions: Annotated[int, typer.Option(min=1, max=256, help="Partitions of the topic.")] = 4,
    keys: Annotated[int, typer.Option(min=1, help="Different sources among the events.")] = 32,
    most_s: Annotated[
        float, typer.Option("--most-seconds", min=1, help="A slower side is stopped after so long.")
    ] = 20.0,
    pipeline: Annotated[
        Literal["readings", "flights"],
        typer.Option(help="readings: the common work of all sides; flights: the demo's, Tidemill alone."),
    ] = "readings",
    to: To = None,
    as_json: Json = False,
) -> None:
    """How many events a second become rows, beside what others do of the same work."""
    if pipeline == "flights":
        from loadtest.ingest import flights

        flights.report(flights.run(rounds), as_json=as_json)
        return
    from loadtest.ingest.run import Options, run
    from loadtest.ingest.sides import NAMES

    configured = settings()
    options = Options(
        sides=NAMES if sides == "all" else tuple(name.strip() for name in sides.split(",") if name.strip()),
        events=events,
        rounds=rounds,
        format=form,
        partitions=partitions,
        keys=keys,
        most_s=most_s,
    )
    result = run(options, cache_dir=configured.cache_dir, console=console)
    file = result.write(to or configured.paths.home / "bench")
    console.print(result.table())
    console.print(result.what_each_does())
    for fault in result.faults():
        console.print(f"[red]{fault}[/]")
    console.print(f"written to {file} and {file.with_suffix('.png').name}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result.as_json()))
    if result.faults():
        raise typer.Exit(1)


@bench.command()
def push(
    formats: Annotated[
        str, typer.Option(help="ndjson, csv, parquet, arrow, parquet-as-arrow; with commas between.")
    ] = "ndjson,csv,parquet,arrow,parquet-as-arrow",
    events: Annotated[int, typer.Option(min=10_000, help="Events in each file.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every file is pushed.")] = 3,
    to: To = None,
    as_json: Json = False,
) -> None:
    """How many events a second one `tidemill push` sends of a file, by the file's format."""
    from loadtest.ingest import push as pushing

    configured = settings()
    result = pushing.run(
        [name.strip() for name in formats.split(",") if name.strip()],
        events=events,
        rounds=rounds,
        cache_dir=configured.cache_dir,
        console=console,
    )
    file = pushing.write(result, to or configured.paths.home / "bench")
    console.print(pushing.table(result))
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result))


@bench.command()
def door(
    forms: Annotated[
        str, typer.Option(help="plain, binary, structured, batch, records; with commas between.")
    ] = "binary,batch",
    seconds: Annotated[float, typer.Option(min=0.5, help="Each form is sent for so long.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every form is sent.")] = 3,
    connections: Annotated[int, typer.Option(min=1, help="Single events under way at once.")] = 128,
    batches: Annotated[int, typer.Option(min=1, help="Requests of many events under way at once.")] = 8,
    events: Annotated[int, typer.Option(min=1, help="Events of such a request.")] = 500,
    processes: Annotated[int, typer.Option(min=1, help="Processes of the door.")] = 2,
    kills: Annotated[int, typer.Option(min=0, help="kill -9 of door and broker in turns.")] = 6,
    to: To = None,
    as_json: Json = False,
) -> None:
    """How many events a second a door acknowledges over HTTP, and whether a kill loses any of them."""
    from loadtest.door.run import Options, measure

    options = Options(
        forms=tuple(name.strip() for name in forms.split(",") if name.strip()),
        seconds=seconds,
        rounds=rounds,
        connections=connections,
        batches_at_once=batches,
        events=events,
        processes=processes,
        kills=kills,
    )
    configured = settings()
    with console.status("") as status:
        result = measure(options, cache_dir=configured.cache_dir, said=status.update)
    file = result.write(to or configured.paths.home / "bench")
    console.print(result.table())
    for form, target in result.targets().items():
        met = "met" if target["met"] else "[red]not met[/]"
        console.print(
            f"{form}: {target['rate']:,.0f} events/s, at least {target['at_least']:,} promised: {met}",
            highlight=False,
        )
    assert result.found is not None
    console.print(
        f"{result.found.acknowledged:,} acknowledged over {len(result.kills)} kills: "
        f"{result.found.lost} lost, {result.found.misplaced} elsewhere than was said; "
        f"{result.found.twice:,} more records, sent again after an answer that never came",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result.as_json()))
    if not result.holds():
        raise typer.Exit(1)


@bench.command()
def quality(
    lives: Annotated[int, typer.Option(min=1, help="Models, each with a steady life and a fall.")] = 100,
    windows: Annotated[int, typer.Option(min=1, help="Windows of a steady life, its baseline apart.")] = 30,
    as_json: Json = False,
) -> None:
    """False alarms of the triggers on the live model, and after how many windows they notice a fall."""
    from loadtest.quality import measure

    found = []
    with console.status("judging made-up models …"):
        for rows in (200, 1_000):
            for day in (0.0, 0.25):
                found += measure(lives=lives, windows=windows, rows=rows, day=day)
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
        return
    table = Table(
        "condition", "answers a window", "days differ", "lives alarmed", "windows", "found", "after"
    )
    for each in found:
        table.add_row(
            each.condition,
            f"{each.rows:,}",
            f"{each.day:g}",
            f"{each.lives_with_alarm} of {each.lives}",
            f"{each.windows_with_alarm} of {each.judged_windows:,}",
            f"{each.found} of {each.lives}",
            "" if each.after is None else f"{each.after:g} windows",
        )
    answers.print(table)


@bench.command()
def drift(
    windows: Annotated[int, typer.Option(min=0, help="Windows without drift, of 2,000 rows.")] = 1000,
    large: Annotated[int, typer.Option(min=0, help="The same, of 100,000 rows.")] = 60,
    shifted: Annotated[int, typer.Option(min=0, help="Of 100,000 rows, one column .1 sigma off.")] = 20,
    seed: Annotated[int, typer.Option(help="What is made up depends on it alone.")] = 0,
    as_json: Json = False,
) -> None:
    """False alarms of `drift()` without drift, and how many small shifts it finds at the first window."""
    from loadtest.drift import measure

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("judging windows", total=windows + large + shifted)

        def step() -> None:
            bar.advance(task)

        results = [
            measure(windows=windows, rows=2_000, reference_windows=7, shifted=0, seed=seed, progress=step),
            measure(
                windows=large, rows=100_000, reference_windows=3, shifted=shifted, seed=seed, progress=step
            ),
        ]
    if as_json:
        print(json.dumps([asdict(result) for result in results]))
        return
    table = Table("rows a window", "without drift", "false alarms", "shifted .1 sigma", "found", "CPU ms")
    for each in results:
        counts = (each.rows, each.windows, each.false_alarms, each.shifted, each.found)
        table.add_row(*(f"{count:,}" for count in counts), f"{each.cpu_ms_per_window:.1f}")
    answers.print(table)


@bench.command()
def faults(
    seconds: Annotated[
        float, typer.Option(min=5, help="Events flow, and faults happen, for so long.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same faults.")] = 1,
    brokers: Annotated[int, typer.Option(help="1 or 3.")] = 1,
    events: Annotated[int | None, typer.Option(min=1_000, help="How many; else 5,000 a second.")] = None,
    kinds: Annotated[str, typer.Option(help="Only these kinds of fault, with commas between.")] = "",
    home: Annotated[Path | None, typer.Option(help="Keep data and logs there.")] = None,
    to: To = None,
    as_json: Json = False,
) -> None:
    """Kill, freeze and cut off everything while events flow; then count what was lost or doubled."""
    from loadtest.faults.run import run
    from loadtest.ingest.result import command_line, machine, now

    if brokers not in (1, 3):
        raise typer.BadParameter("1 or 3 brokers: a quorum of two bears no more than one does")
    began, load = now(), os.getloadavg()
    report = run(
        seconds=seconds,
        seed=seed,
        brokers=brokers,
        events=events or int(seconds * 5_000),
        kinds=[kind.strip() for kind in kinds.split(",") if kind.strip()] or None,
        cache_dir=settings().cache_dir,
        console=console,
        home=home and home.absolute(),
    )
    report.show(console)
    found = {"command": command_line(), "machine": machine(load), **report.as_json()}
    file = _dated(found, "faults", began, to)
    if as_json:
        print(json.dumps(found))
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if not report.holds():
        raise typer.Exit(1)


@bench.command()
def jobs(
    queued: Annotated[
        int, typer.Option(min=0, help="Jobs in the queue, to time the schedule; 0: not.")
    ] = 1000,
    starts: Annotated[int, typer.Option(min=0, help="Jobs one after another, to time the start.")] = 30,
    closes: Annotated[
        int, typer.Option(min=0, help="Windows that a worker closes, each asking for a training.")
    ] = 30,
    at_once: Annotated[int, typer.Option(min=0, help="Jobs at once, to see how fair it is.")] = 20,
    kinds: Annotated[int, typer.Option(min=1, help="Models that those are of.")] = 4,
    kills: Annotated[
        int, typer.Option(min=0, help="kill -9 of trainer, jobs and what they are forked from.")
    ] = 20,
    slots: Annotated[int, typer.Option(min=1, help="Jobs side by side.")] = 2,
    seed: Annotated[int, typer.Option(help="When and what is killed depends on it.")] = 0,
    to: To = None,
    as_json: Json = False,
) -> None:
    """What the schedule costs, how soon a job starts, whether kinds of jobs starve, what kills change."""
    from infra import stopping
    from loadtest.ingest.result import command_line, now
    from loadtest.jobs.run import measure

    configured, began = settings(), now()
    with console.status("") as status:
        found = stopping.run(
            measure(
                cache_dir=configured.cache_dir,
                queued=queued,
                starts=starts,
                closes=closes,
                jobs=at_once,
                kinds=kinds,
                kill=kills,
                slots=slots,
                seed=seed,
                said=status.update,
            )
        )
    found = {"began": f"{began:%Y-%m-%dT%H:%M:%S%z}", "command": command_line(), "seed": seed, **found}
    file = _dated(found, "jobs", began, to)
    if as_json:
        print(json.dumps(found))
    else:
        answers.print_json(data=found)
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    bad = (
        "without_a_model",
        "ended_more_than_once",
        "other_weights_than_undisturbed",
        "doubled_model_events",
        "half_written_artifacts",
    )
    if any(found.get("kills", {}).get(name) for name in bad):
        raise typer.Exit(1)


@bench.command()
def fuzz(
    records: Annotated[int, typer.Option(min=1, help="Records that are hard to read.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same records.")] = 1,
    as_json: Json = False,
) -> None:
    """Feed the decoders with damaged, deep, huge and mistaken records; account for each of them."""
    from loadtest.faults.fuzz import fuzz as feed

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("taking in", total=records)
        fuzzed = feed(records, seed=seed, progress=lambda count: bar.advance(task, count))
    said = fuzzed.as_json()
    for name in ("records", "rows", "letters", "dropped", "crashes", "stalls", "unaccounted"):
        console.print(f"{name}: {said[name]:,}")
    console.print(f"slowest batch: {fuzzed.slowest_ms:.0f} ms of the processor; {fuzzed.took_s:.0f} s in all")
    for line in fuzzed.wrong[:20]:
        console.print(f"[red]{line}[/]", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(said))
    if not fuzzed.holds():
        raise typer.Exit(1)


@bench.command()
def train(
    days: Annotated[int, typer.Option(min=2, help="Days of the demo's year that the table holds.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every side trains.")] = 5,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 2048,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    seed: Annotated[int, typer.Option(help="Weights and order depend on it alone.")] = 0,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of Tidemill's forward pass; the others' is float32."),
    ] = "float32",
    weigh: Annotated[
        list[str] | None,
        typer.Option(help="Also an option of the loop against none: `compiled` or `bfloat16`; repeat it."),
    ] = None,
    to: To = None,
    as_json: Json = False,
) -> None:
    """How many rows a second train, beside torch's DataLoader and tensors in memory."""
    from loadtest.train.options import PLAIN, VARIANTS
    from loadtest.train.run import Options, measure

    if unknown := [name for name in weigh or () if name == PLAIN or name not in VARIANTS]:
        known = ", ".join(name for name in VARIANTS if name != PLAIN)
        raise InvalidConfiguration(f"--weigh {unknown[0]}: there are {known}")
    options = Options(
        days=days,
        rounds=rounds,
        batch_rows=batch_rows,
        threads=threads,
        seed=seed,
        precision=precision,
        also=tuple(weigh or ()),
    )
    with console.status("") as status:
        result = measure(options, said=status.update)
    file = result.write(to or settings().paths.home / "bench")
    console.print(result.table())
    for target in result.targets():
        met = "met" if target["met"] else "[red]not met[/]"
        console.print(
            f"against {target['title']}: {target['cpu']:.2f} by CPU, {target['rate']:.2f} by the clock, "
            f"at least {target['at_least']:g} promised: {met}",
            highlight=False,
        )
    for name in options.also:
        pays = result.weighed.rows_to_pay(name)
        console.print(
            f"{name}: {result.weighed.ratio(name):.2f} times plain by CPU once it runs; "
            + ("it never pays" if pays is None else f"its start pays from {pays:,.0f} rows of a training on"),
            highlight=False,
        )
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result.as_json()))


@bench.command()
def beside(
    events: Annotated[int, typer.Option(min=50_000, help="Events that each turn reads.")] = 2_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that ingest is measured each way.")] = 5,
    to: To = None,
    as_json: Json = False,
) -> None:
    """What ingest keeps of its speed while a training runs on a core of its own beside it."""
    from loadtest.beside.run import PROMISED, run

    configured = settings()
    with console.status("") as status:
        result = run(events=events, rounds=rounds, cache_dir=configured.cache_dir, said=status.update)
    file = result.write(to or configured.paths.home / "bench")
    table = Table("turn", "events/s", "CPU µs/event", "rows/s trained beside")
    conditions = {
        "alone": result.alone,
        "beside a training": result.beside,
        "beside counting": result.counting,
    }
    for name, turns in conditions.items():
        for turn in turns:
            trained = "" if turn.trained_rows_s is None else f"{turn.trained_rows_s:,.0f}"
            ingest = turn.ingest
            table.add_row(name, f"{ingest.rate_events_s:,.0f}", f"{ingest.cpu_us_per_event:.2f}", trained)
    console.print(table)
    ratios = result.ratios()
    console.print(
        f"ingest keeps {ratios['cpu']:.3f} by CPU, {ratios['rate']:.3f} by the clock; at least {PROMISED:g} "
        f"promised: {'met' if result.holds else '[red]not met[/]'}. Beside what only counts, and uses no "
        f"memory: {ratios['cpu_counting']:.3f} by CPU",
        highlight=False,
    )
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result.as_json()))


@bench.command()
def page(
    minutes: Annotated[float, typer.Option(min=0.5, help="The demo is looked at for so long.")] = 60.0,
    stay_s: Annotated[
        float, typer.Option("--stay-seconds", min=0.1, help="A view is looked at so long, then the next.")
    ] = 3.0,
    home: Annotated[Path | None, typer.Option(help="Keep data and logs there.")] = None,
    to: To = None,
    as_json: Json = False,
) -> None:
    """Whether the page grows: a browser looks at a demo for an hour; its heap and the page's memory."""
    from loadtest.ingest.result import now
    from loadtest.page.run import run

    with console.status("") as status:
        held = run(minutes=minutes, stay_s=stay_s, home=home and home.absolute(), said=status.update)
    found = held.as_json()
    file = _dated(found, "page", now(), to)
    grown = held.growth
    if grown is None:
        console.print("fewer than four rounds over all views: too short to say whether anything grows")
    else:
        table = Table("", "second quarter, MiB", "last quarter, MiB", "times")
        for name, (before, after) in {"the page's process": grown.page_mib, **grown.heap_mib}.items():
            table.add_row(name, f"{before:.1f}", f"{after:.1f}", f"{after / before:.2f}")
        console.print(table)
        console.print("views: the browser's JavaScript heap after a collection; medians of each quarter")
    console.print(
        f"{held.events:,} events, {held.days_played} windows, {held.models} models were on the page",
        highlight=False,
    )
    for error in held.errors:
        console.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
    if not held.holds():
        raise typer.Exit(1)


@bench.command()
def swap(
    swaps: Annotated[int, typer.Option(min=1, help="Times that the model is swapped.")] = 100,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second, whatever is answered.")] = 100.0,
    apart: Annotated[
        float, typer.Option("--apart-seconds", min=0.1, help="From a swap to the next one's event.")
    ] = 0.5,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 1,
    size: Annotated[int, typer.Option(min=8, help="Width of the models' first hidden layer.")] = 512,
    cold: Annotated[
        str, typer.Option(help="Model events on the topic at a cold start, with commas between; empty: not.")
    ] = "10,10000",
    elsewhere: Annotated[
        bool,
        typer.Option(
            "--elsewhere",
            help="Swap it in a second service that nobody asks: what swaps cost others on this machine.",
        ),
    ] = False,
    to: To = None,
    as_json: Json = False,
) -> None:
    """Swap a model under load: failed, wrong and slow requests of a service that answers over HTTP."""
    from infra import stopping
    from loadtest.swap.run import AT_MOST, Options, measure

    try:
        cold_events = tuple(int(each) for each in cold.split(",") if each.strip())
    except ValueError as error:
        raise typer.BadParameter(f"--cold takes numbers with commas between, not {cold!r}") from error
    options = Options(
        swaps=swaps,
        rate_per_s=rate,
        apart_s=apart,
        rows=rows,
        size=size,
        cold_events=cold_events,
        elsewhere=elsewhere,
    )
    configured = settings()
    with console.status("") as status:
        result = stopping.run(measure(options, cache_dir=configured.cache_dir, said=status.update))
    file = result.write(to or configured.paths.home / "bench")
    found = result.as_json()
    console.print(result.table())
    ratio = found["p99_ratio"]
    met = "met" if result.within() else "[red]not met[/]"
    where = "in another service " if elsewhere else ""
    promised = "" if elsewhere else f", at most {AT_MOST:g} promised: {met}"
    console.print(
        f"{len(result.swaps)} swaps, {len(result.requests):,} requests, {len(result.errors())} failed, "
        f"{result.wrong} answered wrongly; p99 during a swap {where}is {ratio['during'] or 0:.2f} times that "
        f"without{promised}; in windows that are no swaps {ratio['sham'] or 0:.2f}",
        highlight=False,
        soft_wrap=True,
    )
    for side, starts in result.cold.items():
        for each in starts:
            console.print(
                f"cold start after {each['events']:,} events of {each['models']} models, {side}: "
                f"{each['records_read']:,} records in {each['took_ms']:.0f} ms",
                highlight=False,
            )
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
    if not result.holds():
        raise typer.Exit(1)
