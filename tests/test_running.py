"""A worker and a trainer, run by their commands, say of themselves what is so: metrics, logs, traces."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from infra.dataset import Dataset
from infra.kafka.connection import Connection
from infra.kafka.read import read_to_end
from infra.observe.metrics import of_part, series_of
from infra.settings import load as load_settings
from schemas import topics
from schemas.client import ModelFollower
from schemas.envelope import Envelope, open_record
from tests.running_fixtures import Road, Samples, road, sums
from tests.worker_fixtures import wait_until

DAY_MS = 86_400_000
FOLDER = Path(__file__).resolve().parent.parent / "infra" / "pages"
PAGES = [p for p in sorted(FOLDER.rglob("*.md")) if p.parent.name != "reference" and p.name != "README.md"]
BAD_BASKET = {"visit_id": "odd", "at": 1_704_067_200_000, "shop": "north", "basket": -5.0}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """The road of a new project, its events played to the first model that is live."""
    with road(tmp_path_factory.mktemp("running"), "kiosk", TIDEMILL_LOG__LEVEL="debug") as opened:
        opened.tidemill("topics", "--create", "--pipeline", "pipeline.py")
        trainer, worker = opened.start("trainer"), opened.start("worker")
        opened.start("door", "--pipeline", "pipeline.py")
        opened.start("page")
        opened.push()
        odd = opened.project / "odd.ndjson"
        odd.write_text(
            json.dumps(BAD_BASKET) + "\n" + json.dumps({**BAD_BASKET, "basket": 5.0, "visit_id": "v0"})
        )
        opened.tidemill("push", "kiosk.visits", "odd.ndjson", "--pipeline", "pipeline.py")
        wait_until(
            lambda: sums(trainer.samples(), "tidemill_trainer_models_total") >= 1,
            "a model is judged",
            within_s=180,
        )
        wait_until(
            lambda: sums(worker.samples(), "tidemill_worker_events_total", topic="kiosk.visits") >= 2162,
            "all visits are committed",
            within_s=180,
        )
        yield opened


@pytest.mark.parametrize("part", ["worker", "trainer", "door", "page"])
def test_a_process_serves_every_metric_that_is_declared_for_it_and_no_other(played: Road, part: str) -> None:
    families = played.parts[part].families()
    declared = {metric.name: metric for metric in of_part(part)}
    assert {name.removesuffix("_total") for name in declared} == set(families)
    for name, metric in declared.items():
        family = families[name.removesuffix("_total")]
        assert family.type == metric.kind
        if not metric.library:
            assert family.documentation == metric.meaning
        assert {sample.name for sample in family.samples} <= set(series_of(metric))
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_the_counters_are_what_was_pushed(played: Road) -> None:
    def announced() -> Samples | None:
        s = played.parts["worker"].samples()
        said, committed = "tidemill_herald_announced_version", "tidemill_worker_dataset_version"
        return s if sums(s, said) == sums(s, committed) else None

    worker = wait_until(announced, "all is announced")
    assert worker is not None
    visits = {"topic": "kiosk.visits"}
    assert sums(worker, "tidemill_worker_events_total", **visits) == 2162
    assert sums(worker, "tidemill_worker_rejected_total", **visits) == 1
    assert sums(worker, "tidemill_worker_rejected_total", rule="between(basket)") == 1
    assert sums(worker, "tidemill_worker_dropped_total", rule="dedupe") == 1
    assert sums(worker, "tidemill_worker_rows_total", **visits) == 2160
    assert sums(worker, "tidemill_herald_leads", pipeline="kiosk") == 1
    assert sums(worker, "tidemill_worker_commit_seconds_count") > 0
    closed = sums(worker, "tidemill_herald_windows_total", kind="closed")
    assert closed == sums(worker, "tidemill_herald_decisions_total") > 4
    assert sums(worker, "tidemill_worker_position_offset", **visits) == 2162
    trainer = played.parts["trainer"].samples()
    assert sums(trainer, "tidemill_trainer_model_version", model="kiosk") >= 1
    assert sums(trainer, "tidemill_trainer_job_events_total", event="succeeded") >= 1
    assert sums(trainer, "tidemill_trainer_training_seconds_count") >= 1


def events_of(played: Road, topic: str) -> list[Envelope]:
    """What the road announced there."""
    connection = Connection(bootstrap_servers=played.broker.bootstrap_servers)

    async def read() -> list[Envelope]:
        records = read_to_end(connection, {topic: None})
        return [open_record(r.key, r.value, r.headers) async for r in records]

    return asyncio.run(read())


def test_the_logs_lead_from_an_event_to_the_model_that_it_helped_to_make(played: Road) -> None:
    worker, trainer = played.parts["worker"].log(), played.parts["trainer"].log()
    assert {(line["part"], line["pipeline"]) for line in worker if "version" in line} == {("worker", "kiosk")}

    # From the model back to its job, its decision, the window, the version; and from the event to it.
    (published, *_) = [line for line in trainer if line.get("published")]
    assert (published["model"], published["model_version"]) == ("kiosk", 1)
    of_job = [line for line in worker if line.get("job") == published["job"]]
    assert {line["event"] for line in of_job} == {"decided", "job requested"}
    (decided,) = [line for line in of_job if line["event"] == "decided"]
    assert published["decision"] == decided["decision"]
    of_window = [line for line in worker if line.get("window") == decided["window"]]
    (closed,) = [line for line in of_window if line["event"] == "window closed"]
    assert closed["version"] == decided["version"]
    commits = [line for line in worker if line["event"] == "committed"]
    of_the_first = [
        line for line in commits if (at := line["offsets"].get("kiosk.visits/0")) and at[0] == 0 < at[1]
    ]
    assert [line["version"] <= closed["version"] for line in of_the_first] == [True]
    refused = [line for line in worker if line["event"] == "refused"]
    assert [line["rule"] for line in refused] == ["between(basket)"]
    assert refused[0]["letter"].startswith("kiosk/kiosk.visits/")


async def test_a_trace_leads_from_the_commit_over_the_events_to_the_adoption(
    played: Road, tmp_path: Path
) -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    port = (played.home / "artifacts" / ".store-port").read_text()
    async with ModelFollower(
        "kiosk",
        client={"bootstrap_servers": played.broker.bootstrap_servers},
        service="test",
        stores=[f"http://127.0.0.1:{port}/"],
        cache_dir=tmp_path,
        tracer=provider.get_tracer("test"),
    ) as models:
        await models.ready()
        await asyncio.to_thread(wait_until, exported.get_finished_spans, "the adoption is recorded")
    adopted = exported.get_finished_spans()[0]
    assert adopted.name == "adopt"
    parent = adopted.parent
    assert parent is not None
    trace_id = f"{parent.trace_id:032x}"

    def spans() -> dict[str, dict[str, Any]]:
        """Of this trace, by id."""
        lines = [
            json.loads(line)
            for part in ("worker", "trainer")
            for line in played.traces(part).read_text().splitlines()
        ]
        mine = [line for line in lines if line["context"]["trace_id"] == f"0x{trace_id}"]
        return {line["context"]["span_id"]: line for line in mine}

    def road_back() -> list[str]:
        """Names of the spans from where the model was adopted to the beginning."""
        known, at, names = spans(), f"0x{parent.span_id:016x}", list[str]()
        while at in known:
            names.append(known[at]["name"])
            at = known[at]["parent_id"]
        return names

    wanted = ["publish", "job", "job requested", "decided", "commit"]
    await asyncio.to_thread(wait_until, lambda: road_back() == wanted, "all spans are recorded")
    found = list(spans().values())
    assert {"window closed", "train"} <= {span["name"] for span in found}
    (published,) = [span for span in found if span["name"] == "publish"]
    assert published["attributes"]["tidemill.model"] == "kiosk"
    # The events carry it, by CloudEvents' own extension; the adoption says where it was recorded.
    said = await asyncio.to_thread(events_of, played, topics.MODELS.name)
    of_trace = {e.type for e in said if trace_id in e.extensions.get("traceparent", "")}
    assert of_trace == {"tidemill.model.published.v1", "tidemill.model.adopted.v1"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_every_snippet_of_the_pages_runs(played: Road, page: Path) -> None:
    """`sh` line by line, `python` as one program, `toml` as settings; `text` is shown and not run.

    A line that several pages have runs once.
    """
    port = (played.home / "artifacts" / ".store-port").read_text()
    (door,) = re.findall(r"the door is open at (\S+)/v1", (played.project / "door.log").read_text())
    here = {
        "http://127.0.0.1:8710": door,
        "kafka-1:9092": played.broker.bootstrap_servers,
        "http://models:8700/": f"http://127.0.0.1:{port}/",
        "trusted.txt": json.loads(played.tidemill("keys", "--json"))["trusted_file"],
    }
    blocks = re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} <= {"sh", "python", "toml", "text"}
    assert any(kind == "sh" for kind, _ in blocks)
    for kind, text in blocks:
        if kind == "toml":
            said = played.project / "snippet.toml"
            said.write_text(text)
            assert load_settings(said).paths.home  # refuses a name or a value that is none
        elif kind != "text":
            run_block(played, kind, re.sub("|".join(map(re.escape, here)), lambda m: here[m[0]], text))


def run_block(played: Road, kind: str, text: str) -> None:
    text = textwrap.dedent(text)
    if kind == "python":
        (played.project / "snippet.py").write_text(text)
        text = "python snippet.py"
    for command in text.splitlines():
        if command != "python snippet.py" and command in played.ran:
            continue
        played.ran.add(command)
        program, *arguments = shlex.split(command)
        if program == "tidemill":
            played.tidemill(*arguments)
            continue
        assert program in ("python", "curl")
        program = sys.executable if program == "python" else program
        done = subprocess.run(
            [program, *arguments],
            cwd=played.project,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_both_are_ready_and_the_lag_is_none_once_all_is_read(played: Road) -> None:
    for part in played.parts.values():
        wait_until(part.is_ready, f"the {part.name} is ready")
        wait_until(lambda part=part: sums(part.samples(), "tidemill_ready") == 1, "its metric says so, too")
        assert sums(part.samples(), "tidemill_cluster_contact_age_seconds") < 15
    worker = played.parts["worker"]
    lags = wait_until(
        lambda: {k: v for k, v in worker.samples().items() if k[0] == "tidemill_worker_lag_records"},
        "the ends are looked at",
    )
    assert len(lags) == 4
    wait_until(lambda: sums(worker.samples(), "tidemill_worker_lag_records") == 0, "nothing is left")


def test_without_its_cluster_a_process_lives_and_is_not_ready_and_comes_back(played: Road) -> None:
    # The last test of this module: the broker is gone for a while.
    played.broker.stop()
    for part in played.parts.values():
        wait_until(lambda part=part: not part.is_ready(), f"the {part.name} misses the cluster", within_s=90)
        assert part.ask("live").status_code == 200
        assert "no broker has answered for" in part.ask("ready").text
    played.broker.start()
    for part in played.parts.values():
        wait_until(part.is_ready, f"the {part.name} is ready again", within_s=90)
        assert part.end() == 0


def test_a_backup_that_is_restored_goes_on_without_loss_or_doubling(played: Road) -> None:
    """After the test above, which ended worker and trainer."""
    for part in played.parts.values():
        part.end()
    told = json.loads(played.tidemill("dataset", "backup", "--to", "backup", "--json"))
    again = json.loads(played.tidemill("dataset", "backup", "--to", "backup", "--json"))
    assert told["copied_files"] == told["files"] > 0
    assert (again["version"], again["copied_files"]) == (told["version"], 0)
    shutil.rmtree(played.home / "dataset")
    restored = json.loads(played.tidemill("dataset", "restore", "backup", "--json"))
    assert restored["version"] == told["version"]

    visits = [json.loads(line) for line in (played.project / "kiosk.visits.ndjson").read_text().splitlines()]
    later = [
        {**visit, "visit_id": f"later-{visit['visit_id']}", "at": visit["at"] + 3 * DAY_MS}
        for visit in visits
    ]
    (played.project / "later.ndjson").write_text("".join(json.dumps(visit) + "\n" for visit in later))
    played.tidemill("push", "kiosk.visits", "later.ndjson", "--pipeline", "pipeline.py")
    worker = played.start("worker")
    wait_until(
        lambda: sums(worker.samples(), "tidemill_worker_events_total", topic="kiosk.visits") >= len(later),
        "what was pushed since is committed",
    )
    worker.end()
    dataset = Dataset(played.home / "dataset" / "kiosk")
    rows = dataset.rows("kiosk.visits", version=dataset.newest_version(), start_ms=0, end_ms=2**62)
    assert rows.height == rows.get_column("visit_id").n_unique() == len(visits) + len(later)
    # Before the restore and after it: each window is announced once, by its id.
    ids = [e.id for e in events_of(played, topics.WINDOWS.name) if e.id.startswith("kiosk/")]
    assert len(ids) == len(set(ids)) > 0
