"""`tidemill jobs`, `gpus` and `train`: what is trained where, and asking for more."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from infra import stopping
from infra.command.app import answers, app, console, settings
from infra.command.drawing import drawn_into
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.job import Experiment, JobRequested

if TYPE_CHECKING:
    from infra.job_board import Board, Job
    from infra.kafka.connection import Connection
    from trainers.devices import Survey

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]

_COLOURS = {"running": "cyan", "sweeping": "cyan", "published": "green", "failed": "red", "refused": "yellow"}
_GIB = 2**30
_PIPED_WIDTH = 200


@app.command()
def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job, in full.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those too that ended long ago.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the table and end.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the job's curves into a PNG or SVG file.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the job, whether it runs or waits.")] = False,
    kubernetes: Annotated[
        bool,
        typer.Option("--kubernetes", help="Print the job as a Kubernetes Job, for `kubectl apply -f -`."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Follow the jobs: queue, device, progress, loss, time left. Ctrl-C ends the looking, not the jobs."""
    from infra.job_board import follow
    from infra.submit import connected
    from infra.submit import stop as ask_to_stop

    configured = settings()
    connection = connected(configured)
    if (stop or plot or kubernetes) and job_id is None:
        raise InvalidConfiguration(
            "name the job: `tidemill jobs JOB` with --stop, --plot FILE or --kubernetes"
        )

    async def now() -> Board:
        # Closed here: left to the loop's end, its client loses a connection that it has just opened.
        async with contextlib.aclosing(follow(connection)) as boards:
            async for board in boards:
                return board
        raise AssertionError("following never ends by itself")

    if job_id is not None and kubernetes:
        items = stopping.run(_as_kubernetes(connection, job_id))
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2))
        return
    if job_id is not None:
        job = stopping.run(now()).jobs.get(job_id)
        if job is None:
            raise InvalidConfiguration(f"no job {job_id} is known; `tidemill jobs --all` lists them")
        if stop:
            stopping.run(ask_to_stop(configured, job_id, reason="stopped by `tidemill jobs --stop`"))
            console.print(f"{job_id} is told to end")
        if plot:
            draw(job, plot)
            console.print(f"drawn: {plot}", highlight=False, soft_wrap=True)
        if as_json:
            print(json.dumps(job.as_json(_now_ms(), with_curve=True)))
        elif not stop and not plot:
            _describe(job)
        return

    if as_json:
        board = stopping.run(now())
        shown = _shown(board, everything=everything)
        print(json.dumps({"jobs": [job.as_json(_now_ms(), with_curve=False) for job in shown]}))
    elif once or not answers.is_terminal:
        shown = table(_shown(stopping.run(now()), everything=everything))
        (answers if answers.is_terminal else Console(width=_PIPED_WIDTH)).print(shown)
    else:
        stopping.run(_watch(follow(connection), everything=everything))


async def _as_kubernetes(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """The manifests of a job as it was asked for, beside the model that is live now."""
    from infra.kafka.read import read_to_end
    from schemas.envelope import NotAnAnnouncement, open_record, unwrap
    from schemas.model import CurrentModel
    from trainers.kubernetes import manifests

    asked: JobRequested | None = None
    live: dict[str, CurrentModel] = {}
    async for record in read_to_end(connection, {topics.JOBS.name: None, topics.MODELS_CURRENT.name: None}):
        with contextlib.suppress(NotAnAnnouncement):
            match unwrap(open_record(record.key, record.value, record.headers)):
                case JobRequested() as event if event.job_id == job_id:
                    asked = event
                case CurrentModel() as event:
                    live[event.name] = event
                case _:
                    pass
    if asked is None:
        raise InvalidConfiguration(f"no job {job_id} is known; `tidemill jobs --all` lists them")
    champion = live.get(asked.experiment.model)
    return manifests(asked, champion=None if champion is None else champion.manifest)


async def _watch(boards: Any, *, everything: bool) -> None:
    with Live(console=answers, auto_refresh=False) as live:
        async for board in boards:
            live.update(table(_shown(board, everything=everything)), refresh=True)


def _shown(board: Board, *, everything: bool) -> list[Job]:
    """All that are not over, then the newest that are."""
    known = list(board.jobs.values())
    over = [job for job in known if job.is_over]
    return [job for job in known if not job.is_over] + (over if everything else over[-10:])[::-1]


def table(shown: Sequence[Job]) -> Table:
    """Jobs as a person reads them."""
    drawn = Table(pad_edge=False)
    for name, width in (("job", 20), ("state", 9), ("device", 3), ("progress", 7), ("took", 4), ("left", 4)):
        drawn.add_column(name, no_wrap=True, min_width=width)
    for name in ("metrics", "why, or what came of it"):
        drawn.add_column(name, no_wrap=True, ratio=1)
    now_ms = _now_ms()
    for job in shown:
        colour = _COLOURS.get(job.state)
        state = f"[{colour}]{job.state}[/]" if colour else job.state
        newest, left_s = job.newest, job.remaining_s(now_ms)
        metrics = newest.metrics if newest and not job.is_over else job.scores
        drawn.add_row(
            job.job_id,
            state + (f" ({job.attempt})" if job.attempt > 1 else ""),
            job.device,
            f"{newest.step}/{newest.of}" if newest else "",
            _seconds(((job.ended_ms or now_ms) - job.started_ms) / 1000) if job.started_ms else "",
            "" if left_s is None else _seconds(left_s),
            " ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
            (job.reason or job.why)[:80],
        )
    return drawn


def _describe(job: Job) -> None:
    drawn = Table(show_header=False, box=None)
    facts = job.as_json(_now_ms(), with_curve=False)
    for name, value in facts.items():
        if value not in ("", None, 0, {}):
            drawn.add_row(f"[bold]{name}[/]", str(value))
    answers.print(drawn)
    if job.log_tail:
        answers.print(job.log_tail, markup=False, highlight=False)


def draw(job: Job, file: Path) -> None:
    """The job's loss and metrics by step, each attempt a line.

    Raises:
        InvalidConfiguration: it has said no metrics, or the file is of no kind that can be drawn.
    """
    names = sorted({name for point in job.curve for name in point.metrics})
    if not names:
        raise InvalidConfiguration(
            f"{job.job_id} said no metrics; call ctx.progress(step, of, loss=…) in its model code"
        )
    size_inches = (8, 2.5 * len(names))
    with drawn_into(file, rows=len(names), size_inches=size_inches, share_x=True) as (figure, axes):
        for axis, name in zip(axes[:, 0], names, strict=True):
            for attempt in sorted({point.attempt for point in job.curve}):
                mine = [p for p in job.curve if p.attempt == attempt and name in p.metrics]
                label = f"attempt {attempt}" if attempt else "sweep"
                axis.plot([p.step for p in mine], [p.metrics[name] for p in mine], marker=".", label=label)
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
            if job.attempt > 1:
                axis.legend()
        axes[-1, 0].set_xlabel("step")
        figure.suptitle(f"{job.job_id}: {job.state}")


@app.command()
def gpus(as_json: Json = False) -> None:
    """The GPUs as NVML shows them now: memory, use, processes, slices. Nothing is started on them."""
    from trainers.devices import survey

    found = survey()
    if as_json:
        print(json.dumps(msgspec.to_builtins(found, str_keys=True)))
        return
    _show_gpus(found)


def _show_gpus(found: Survey) -> None:
    drawn = Table("device", "memory free", "of", "busy", "processes", "id")
    for gpu in found.gpus:
        processes = ", ".join(f"{pid}: {size / _GIB:.1f} GiB" for pid, size in gpu.used_by.items())
        memory = f"{gpu.free_bytes / _GIB:.1f} GiB", f"{gpu.total_bytes / _GIB:.1f} GiB"
        drawn.add_row(gpu.label, *memory, f"{gpu.busy_percent} %", processes, gpu.uuid)
    if found.gpus:
        answers.print(drawn)
    for fault in found.faults:
        console.print(f"[red]{fault}[/]", highlight=False)
    if not found.gpus:
        console.print("no GPU answers here; jobs train on the CPU")


@app.command()
def train(
    pipeline: Annotated[
        str | None, typer.Argument(help="Module or file of the pipeline; its newest closed window is used.")
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option(help="A JSON file with a whole experiment instead; - reads stdin.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="name=value over the declared parameters; value as JSON or text.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the declared one.")] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="A head start in the queue.")] = 0,
    why: Annotated[str, typer.Option(help="In words, for whoever reads the event.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for what comes of it.")] = True,
    as_json: Json = False,
) -> None:
    """Ask for a training, as the pipeline's trigger would: the same event, the same gate."""
    from infra.submit import ended, submit

    configured = settings()
    asked = wanted(pipeline, experiment, given(param or []), seed)
    job = stopping.run(submit(configured, asked, priority=priority, why=why or "asked for by a person"))
    console.print(f"asked for {job.job_id}", highlight=False)
    if not wait:
        if as_json:
            print(json.dumps({"job_id": job.job_id}))
        return
    came = stopping.run(ended(configured, job.job_id))
    if as_json:
        print(json.dumps(came.as_json(_now_ms(), with_curve=True)))
    else:
        answers.print(table([came]))
        if came.log_tail:
            answers.print(came.log_tail, markup=False, highlight=False)
    if came.state == "failed":
        raise typer.Exit(1)


def wanted(named: str | None, file: Path | None, params: dict[str, Any], seed: int | None) -> Experiment:
    """The experiment of a file, or of a pipeline's newest window, with parameters over its own.

    Raises:
        InvalidConfiguration: there is none, or no such pipeline.
    """
    found = _from_pipeline(named) if file is None else _from_file(file)
    return msgspec.structs.replace(
        found, params={**found.params, **params}, seed=found.seed if seed is None else seed
    )


def _from_file(file: Path) -> Experiment:
    try:
        content = typer.get_binary_stream("stdin").read() if str(file) == "-" else file.read_bytes()
        return msgspec.json.decode(content, type=Experiment)
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InvalidConfiguration(f"{file} is no experiment: {error}; see schemas.job.Experiment") from error


def _from_pipeline(named: str | None) -> Experiment:
    from infra.exclusion import excluded_at
    from infra.kafka.read import read_to_end
    from infra.submit import connected
    from infra.switched import live_dataset
    from schemas.envelope import NotAnAnnouncement, open_record, unwrap
    from schemas.window import WindowClosed
    from streams.by_hand import experiment_now
    from streams.load import load_pipeline

    configured = settings()
    loaded = load_pipeline(named or configured.worker.pipeline)
    connection = connected(configured)

    async def windows() -> list[WindowClosed]:
        found: list[WindowClosed] = []
        async for record in read_to_end(connection, {topics.WINDOWS.name: None}):
            with contextlib.suppress(NotAnAnnouncement):
                event = unwrap(open_record(record.key, record.value, record.headers))
                if isinstance(event, WindowClosed):
                    found.append(event)
        return found

    dataset, _ = live_dataset(configured.paths.dataset, loaded.pipeline.name)
    excluded = [each.span for each in excluded_at(str(dataset))] if dataset.is_dir() else []
    return experiment_now(loaded, stopping.run(windows()), excluded)


def given(params: Sequence[str]) -> dict[str, Any]:
    """Parameters as they are written on the command line, name=value, the value JSON or text.

    Raises:
        InvalidConfiguration: one is not written so.
    """
    found: dict[str, Any] = {}
    for each in params:
        name, sign, value = each.partition("=")
        if not sign or not name:
            raise InvalidConfiguration(f"--param {each!r}: write name=value")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes}:{rest:02d}"


def _now_ms() -> int:
    return int(time.time() * 1000)
