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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
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
from tests.mlflow_fixtures import recording
from tests.running_fixtures import Road, Samples, road, sums
from tests.worker_fixtures import wait_until

DAY_MS = 86_400_000
FOLDER = Path(__file__).resolve().parent.parent / "infra" / "pages"
AT_THE_END = {"operations", "new_rules"}
"""Pages that lose the dataset and make another one live."""
PAGES = [
    page
    for page in sorted(FOLDER.rglob("*.md"))
    if page.parent.name != "reference" and page.stem not in AT_THE_END | {"README"}
]
BAD_BASKET = {"visit_id": "odd", "at": 1_704_067_200_000, "shop": "north", "basket": -5.0}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """The road of a new project, its events played to the first model that is live."""
    settings = {
        "TIDEMILL_LOG__LEVEL": "debug",
        # Windows close in one commit after another, as they do where events come as they happen.
        "TIDEMILL_WORKER__BATCH_ROWS": "256",
    }
    with road(tmp_path_factory.mktemp("running"), "kiosk", **settings) as opened:
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_every_snippet_of_the_pages_runs(played: Road, page: Path) -> None:
    run_page(played, page)


def run_page(played: Road, page: Path) -> None:
    """`sh` line by line, `python` as one program, `toml` as settings; `text` is shown and not run.

    A line that several pages have runs once. A program that begins with a file's name is that file.
    """
    port = (played.home / "artifacts" / ".store-port").read_text()
    (door,) = re.findall(r"the door is open at (\S+)/v1", (played.project / "door.log").read_text())
    here = {
        "http://127.0.0.1:8710": door,
        "kafka-1:9092": played.broker.bootstrap_servers,
        "http://models:8700/": f"http://127.0.0.1:{port}/",
    }
    blocks = re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} <= {"sh", "python", "toml", "text"}
    assert any(kind in {"sh", "python"} for kind, _ in blocks)
    for kind, text in blocks:
        if kind == "toml":
            said = played.project / "snippet.toml"
            said.write_text(text)
            assert load_settings(said).paths.home  # refuses a name or a value that is none
        elif kind != "text":
            keys = json.loads(played.tidemill("keys", "--json"))
            now = here | {"trusted.txt": keys["trusted_file"], " KEY": f" {keys['keys'][0]['id']}"}
            run_block(played, kind, re.sub("|".join(map(re.escape, now)), lambda m, now=now: now[m[0]], text))


def run_block(played: Road, kind: str, text: str) -> None:
    text = textwrap.dedent(text)
    if kind == "python":
        named = re.match(r"# (\w+\.py)\n", text)
        file = f"snippet_{len(played.ran)}.py" if named is None else named[1]
        (played.project / file).write_text(text)
        text = f"python {file}"
    for command in text.splitlines():
        if command in played.ran:
            continue
        played.ran.add(command)
        words = shlex.split(command, comments=True)
        BEFORE.get(tuple(words[:3]), lambda _: None)(played)
        match words:
            case ["tidemill", "watch", *_]:
                played.until(words[1:], lambda process: process.net_connections())
            case ["tidemill", "mirror", *_]:
                asyncio.run(mirrored(played, words[1:]))
            case ["tidemill", *arguments]:
                played.tidemill(*arguments)
            case [
                "kafka-topics",
                "--bootstrap-server",
                servers,
                "--alter",
                "--topic",
                topic,
                "--partitions",
                n,
            ]:
                asyncio.run(give_partitions(servers, topic, int(n)))
            case ["python" | "curl" as program, *arguments]:
                program = sys.executable if program == "python" else program
                done = subprocess.run(
                    [program, *arguments],
                    cwd=played.project,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=300,
                )
                assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            case _:
                pytest.fail(f"nothing here knows how to run: {command}")


async def mirrored(played: Road, words: list[str]) -> None:
    """Tell a stand-in that knows MLflow's names alone, until it has the live model."""
    async with recording() as (seen, url):
        words = [url if word.startswith("http:") else word for word in words]
        await asyncio.to_thread(played.until, words, lambda _: seen.aliases)
        assert seen.wrong == []


async def give_partitions(servers: str, topic: str, total: int) -> None:
    """What Kafka's own tool does, which is not among the broker's jars."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total_count=total)})
    finally:
        await admin.close()


def a_second_version(played: Road) -> None:
    """There is a version to go back from."""
    if len(json.loads(played.tidemill("models", "kiosk", "--json"))["models"]) == 1:
        played.tidemill("train", "pipeline.py")


def a_lost_disk(played: Road) -> None:
    """The backup holds all, and the dataset is gone."""
    again = json.loads(played.tidemill("dataset", "backup", "kiosk", "--to", "../backup/kiosk", "--json"))
    assert (again["copied_files"], again["files"] > 0) == (0, True)
    shutil.rmtree(played.home / "dataset" / "kiosk")


BEFORE: Mapping[tuple[str, ...], Callable[[Road], None]] = {
    ("tidemill", "rollback", "kiosk"): a_second_version,
    ("tidemill", "dataset", "restore"): a_lost_disk,
}
"""What makes a situation in which a command is called for, by how the command begins."""


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
    """By the page's own commands, once worker and trainer have ended."""
    for part in played.parts.values():
        part.end()
    dataset = Dataset(played.home / "dataset" / "kiosk")
    version = dataset.newest_version()
    run_page(played, FOLDER / "operations.md")
    dataset = Dataset(played.home / "dataset" / "kiosk")
    assert dataset.newest_version() == version

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
    rows = dataset.rows("kiosk.visits", version=dataset.newest_version(), start_ms=0, end_ms=2**62)
    assert rows.height == rows.get_column("visit_id").n_unique() == len(visits) + len(later)
    # Before the restore and after it: each window is announced once, by its id.
    ids = [e.id for e in events_of(played, topics.WINDOWS.name) if e.id.startswith("kiosk/")]
    assert len(ids) == len(set(ids)) > 0


def test_other_rules_are_made_the_live_ones_and_taken_back_by_the_page(played: Road) -> None:
    for part in played.parts.values():
        part.end()
    pipeline = played.project / "pipeline.py"
    shutil.copy(pipeline, played.project / "pipeline_before.py")
    pipeline.write_text(pipeline.read_text().replace('"basket", 0, 1_000', '"basket", 0, 60'))
    run_page(played, FOLDER / "how_to" / "new_rules.md")
    said = [e.type for e in events_of(played, topics.WINDOWS.name)]
    assert said.count("tidemill.dataset.switched.v1") == 2
