"""From a job event to a model event, by a real trainer on a real broker."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import polars as pl
import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from infra.dataset import Dataset
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.point_in_time import examples
from infra.settings import Kafka, Paths, Settings
from infra.submit import ended, submit
from infra.walls import has_walls
from schemas import topics
from schemas.canary import CanaryTerms
from schemas.contract import Announcement
from schemas.errors import InvalidConfiguration
from schemas.job import (
    DatasetRange,
    Gate,
    JobAnswered,
    JobFailed,
    JobMerged,
    JobPreempted,
    JobProgress,
    JobQueued,
    JobRequested,
    JobRetried,
    JobSkipped,
    JobStarted,
    JobStopRequested,
    JobSucceeded,
    Resources,
)
from schemas.model import (
    CanaryPromoted,
    CanaryPublished,
    CanaryWithdrawn,
    ModelAdopted,
    ModelPublished,
    ModelRefused,
)
from schemas.selection import Balanced, Decay, Hard, Reservoir, Selection
from tests.client_fixtures import Cluster
from tests.test_example_service import frame, service
from tests.trainer_fixtures import (
    HOUR_MS,
    SPAN_MS,
    SPEC,
    STEP_MS,
    Topics,
    TrainerProcess,
    a_job,
    experiment,
    jobs_of,
    tidemill,
    write_dataset,
    write_model_code,
)
from trainers.assignment import Assignment
from trainers.devices import survey

ENDS = (JobFailed, JobSkipped, ModelPublished, ModelRefused)
CUT_MS = SPAN_MS * 3 // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    write_dataset(folder / "dataset")
    return folder / "dataset"


@pytest.fixture(scope="module")
def code(folder: Path) -> Path:
    return write_model_code(folder / "code")


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    """A cluster of our own: jobs that other tests announce are not ours to run."""
    with EmbeddedBroker(folder / "kafka") as broker:
        yield broker


@pytest.fixture(scope="module")
def trainer(folder: Path, code: Path, broker: EmbeddedBroker) -> Iterator[TrainerProcess]:
    trainer = TrainerProcess(folder / "home", broker.bootstrap_servers, code)
    trainer.start()
    yield trainer
    assert trainer.stop() == 0, trainer.log_file.read_text()


@pytest_asyncio.fixture
async def seen(broker: EmbeddedBroker, trainer: TrainerProcess) -> AsyncIterator[Topics]:
    connection = Connection(bootstrap_servers=broker.bootstrap_servers)
    await ensure((topics.JOBS, topics.MODELS, topics.MODELS_CURRENT), connection)
    async with Topics(broker.bootstrap_servers) as seen:
        yield seen


@pytest.fixture
def ending(dataset: Path) -> Callable[[int], DatasetRange]:
    return lambda end_ms: DatasetRange(uri=str(dataset), version=1, start_ms=0, end_ms=end_ms)


async def finish(seen: Topics, job: JobRequested) -> ModelPublished | ModelRefused | JobFailed | JobSkipped:
    """Ask for a job and wait for its end."""
    await seen.ask(job)
    return await seen.one(job, *ENDS)


async def test_a_job_becomes_a_model(seen: Topics, dataset: Path, trainer: TrainerProcess) -> None:
    job = a_job(dataset, "good:train", "becomes")
    published = await finish(seen, job)
    assert isinstance(published, ModelPublished), published
    manifest = published.manifest
    current = await seen.until(
        lambda: [
            e for t, i, e in seen.events if t == topics.MODELS_CURRENT.name and i == published.event_id()
        ]
    )
    assert current == [published]

    started, *progress, succeeded, last = seen.of_job(job)[1:]
    assert isinstance(started, JobStarted)
    assert started.attempt == 1
    gpus = survey().gpus
    assert started.device == (gpus[0].label if gpus else "cpu") == manifest.lineage.device
    assert last == published
    assert progress
    assert all(isinstance(e, JobProgress) and e.of == 60 and e.metrics.keys() == {"loss"} for e in progress)
    assert isinstance(succeeded, JobSucceeded)
    assert succeeded.artifact_sha256 == manifest.artifact.sha256

    labelled = examples(
        Dataset(dataset), SPEC, version=1, start_ms=0, end_ms=CUT_MS, label_known_by_ms=CUT_MS
    ).drop_nulls("late")
    assert labelled.height == (CUT_MS - HOUR_MS) // STEP_MS  # a label comes an hour later
    assert succeeded.rows == manifest.lineage.rows == labelled.height
    assert manifest.version == 1
    assert manifest.champion is None
    assert manifest.challenger is not None
    assert manifest.challenger.rows == (SPAN_MS - CUT_MS) // STEP_MS
    assert manifest.challenger.auc is not None
    assert manifest.challenger.auc > 0.85
    assert manifest.example == labelled.select(SPEC.names()).row(-1, named=True)
    assert [f.name for f in manifest.inputs] == SPEC.names()
    assert manifest.lineage.window_ids == [f"test/0-{CUT_MS}", f"test/{CUT_MS}-{SPAN_MS}"]
    asked = [(r.partition, r.start, r.end) for r in manifest.lineage.offsets if r.topic == "asked"]
    assert asked == [(0, 0, CUT_MS // STEP_MS // 2), (1, 0, CUT_MS // STEP_MS // 2)]
    source = (trainer.home.parent / "code" / "good.py").read_bytes()
    assert manifest.lineage.code_sha256 == hashlib.sha256(source).hexdigest()


async def test_an_artifact_is_served_whole_and_in_parts_and_nothing_else_is(
    seen: Topics, dataset: Path
) -> None:
    published = await finish(seen, a_job(dataset, "good:train", "served"))
    assert isinstance(published, ModelPublished)
    artifact = published.manifest.artifact
    async with httpx.AsyncClient(trust_env=False) as http:
        whole = await http.get(artifact.uri)
        rest = await http.get(artifact.uri, headers={"Range": "bytes=100-"})
        base = artifact.uri.rpartition("/")[0]
        strange = [
            (await http.get(f"{base}/{path}")).status_code
            for path in ("", "..%2ftrainer.log", f"{'0' * 64}.safetensors", ".store-port")
        ]
    assert whole.status_code == 200
    assert len(whole.content) == artifact.size_bytes
    assert hashlib.sha256(whole.content).hexdigest() == artifact.sha256
    assert rest.status_code == 206
    assert rest.content == whole.content[100:]
    assert strange == [404, 404, 404, 404]


async def test_a_challenger_is_judged_beside_the_live_model_on_the_same_rows_and_may_begin_from_it(
    seen: Topics, dataset: Path
) -> None:
    first = await finish(seen, a_job(dataset, "good:train", "beside", params={"steps": 5}))
    second = await finish(seen, a_job(dataset, "good:train", "beside", warm_start=True))
    assert isinstance(first, ModelPublished)
    assert isinstance(second, ModelPublished)
    assert second.manifest.version == 2
    assert second.manifest.champion == first.manifest.challenger
    assert second.manifest.lineage.parent_sha256 == first.manifest.artifact.sha256
    assert first.manifest.lineage.parent_sha256 is None

    worse = await finish(seen, a_job(dataset, "good:inverted", "beside", gate=Gate(slices=("place",))))
    assert isinstance(worse, ModelRefused)
    assert worse.champion is not None
    assert worse.challenger is not None
    assert worse.champion.auc == second.manifest.challenger.auc  # type: ignore[union-attr]
    assert worse.champion.slices.keys() == {"place=A", "place=B"}
    assert worse.challenger.auc == pytest.approx(1 - worse.champion.auc, abs=0.1)  # type: ignore[operator]
    assert f"{worse.challenger.auc:.4f}" in worse.reason
    assert second.manifest.comparison is not None
    assert second.manifest.comparison.overall.low > 0
    assert worse.comparison is not None
    assert worse.comparison.overall.high < 0
    assert worse.comparison.slices.keys() == worse.champion.slices.keys()
    assert f"{worse.comparison.overall.low:+.4f}" in worse.reason

    third = await finish(seen, a_job(dataset, "good:train", "beside"))
    assert isinstance(third, ModelPublished)
    assert third.manifest.version == 3  # a refusal takes no version
    assert third.manifest.champion == second.manifest.challenger


async def test_the_same_experiment_gives_the_same_weights(seen: Topics, dataset: Path) -> None:
    first = await finish(seen, a_job(dataset, "good:train", "again-1"))
    second = await finish(seen, a_job(dataset, "good:train", "again-2"))
    other = await finish(seen, a_job(dataset, "good:train", "again-3", seed=4))
    digests = [e.manifest.artifact.sha256 for e in (first, second, other) if isinstance(e, ModelPublished)]
    assert digests[0] == digests[1] != digests[2]


async def test_a_job_said_again_is_trained_once(seen: Topics, dataset: Path) -> None:
    job = a_job(dataset, "good:train", "once")
    await seen.ask(job, job)
    await seen.one(job, *ENDS)
    await seen.ask(job)
    later = a_job(dataset, "good:train", "once-later")
    assert isinstance(await finish(seen, later), ModelPublished)
    assert len(seen.of_job(job, JobRequested)) == 3
    assert len(seen.of_job(job, JobStarted)) == len(seen.of_job(job, ModelPublished)) == 1


async def test_a_network_that_only_says_its_loss_is_trained(seen: Topics, dataset: Path) -> None:
    job = a_job(dataset, "network:Network", "network", params={"epochs": 6, "learning_rate": 0.02})
    published = await finish(seen, job)
    assert isinstance(published, ModelPublished), published
    assert published.manifest.challenger is not None
    assert published.manifest.challenger.auc is not None
    assert published.manifest.challenger.auc > 0.75
    assert seen.of_job(job, JobProgress)


QUICK = Resources(device="cpu", memory_bytes=2**28, time_limit_s=2.0)
HUGE = Resources(device="cpu", memory_bytes=2**50)


@pytest.mark.parametrize(
    ("reference", "changes", "reason", "in_log"),
    [
        ("bad:raises", {}, "ValueError: no luck today", "no luck today"),
        ("bad:exits", {}, "SystemExit: 7", ""),
        ("bad:vanishes", {}, "exited with code 3", "about to vanish"),
        ("bad:segfaults", {}, "SIGSEGV", "Segmentation fault"),
        ("bad:shouts", {}, "RuntimeError: shouted enough", "line 199999"),
        ("bad:hangs", {"resources": QUICK}, "limit of 2 s", "grandchild"),
        ("bad:gives_nothing", {}, "NoneType", ""),
        ("good:nan", {}, "NaN or infinite weights", ""),
        ("good:nan_answers", {}, "predictions are NaN", ""),
        ("bad:absent", {}, "no 'absent'", ""),
        ("no.such.module:train", {}, "no module 'no'", ""),
        ("broken:train", {}, "cannot be imported", ""),
        ("good", {}, "has no ''", ""),
        ("good:train", {"code_sha256": "0" * 64}, "install the same version", ""),
        ("good:train", {"resources": HUGE}, "1048576.0 GiB of memory", ""),
    ],
)
async def test_a_job_that_fails_says_why_and_the_trainer_goes_on(
    seen: Topics, dataset: Path, reference: str, changes: dict, reason: str, in_log: str
) -> None:
    job = a_job(dataset, reference, f"fails-{reference.replace(':', '-')}", **changes)
    failed = await finish(seen, job)
    assert isinstance(failed, JobFailed), failed
    assert reason in failed.reason
    assert in_log in failed.log_tail
    assert len(failed.log_tail) <= 8_000
    if "grandchild" in in_log:
        grandchild = int(failed.log_tail.rpartition("grandchild ")[2].split()[0])
        assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie"


async def test_job_code_is_handed_neither_the_clusters_credentials_nor_a_signing_key(
    seen: Topics, dataset: Path
) -> None:
    job = a_job(dataset, "bad:looks_around", "nosy")
    await seen.ask(job)
    tail = (await seen.one(job, JobFailed)).log_tail
    around = tail.partition("seen: ")[2].partition("Traceback")[0]
    assert "PATH" in around  # it looked indeed
    assert "TIDEMILL_" not in around
    assert "AWS_" not in around
    assert ".pem" not in around


@pytest.mark.skipif(not has_walls(), reason="this kernel has no Landlock that serves")
async def test_job_code_reads_no_key_nor_another_jobs_folder_and_writes_to_nothing_of_the_trainers(
    seen: Topics, dataset: Path, trainer: TrainerProcess
) -> None:
    other = a_job(dataset, "bad:raises", "seen-by-none")
    await finish(seen, other)
    params = {"home": str(trainer.home), "other": other.job_id, "job": "snoops", "dataset": str(dataset)}
    job = a_job(dataset, "bad:snoops", "snoops", job_id="snoops", params=params)
    failed = await finish(seen, job)
    assert isinstance(failed, JobFailed)
    assert "PermissionError" in failed.reason
    assert "trainer.job_writes" in failed.reason
    assert "WORKED" not in failed.log_tail
    assert failed.log_tail.count(" refused") == 7
    assert "threads without walls: 0" in failed.log_tail
    await seen.until(lambda: not (trainer.home / "jobs" / "snoops" / "own").exists())


async def test_a_model_that_answers_all_alike_is_refused_even_as_the_first(
    seen: Topics, dataset: Path
) -> None:
    refused = await finish(seen, a_job(dataset, "good:constant", "constant"))
    assert isinstance(refused, ModelRefused)
    assert "every row alike" in refused.reason
    assert [finding.check for finding in refused.findings] == ["constant_answers"]
    unjudged = await finish(seen, a_job(dataset, "good:constant", "constant", evaluation=None))
    assert isinstance(unjudged, ModelRefused)


async def test_a_model_that_was_told_the_label_is_refused_with_the_feature_that_told(
    seen: Topics, dataset: Path
) -> None:
    told = msgspec.structs.replace(SPEC, columns=(*SPEC.columns, "told"))
    refused = await finish(seen, a_job(dataset, "good:train", "told", spec=told))
    assert isinstance(refused, ModelRefused)
    (finding,) = refused.findings
    assert (finding.check, finding.subject, finding.value) == ("feature_tells_label", "told", 1.0)
    assert "told: orders the labels" in refused.reason
    trusting = Gate(tolerance=0.01, trusted=("told",))
    assert isinstance(
        await finish(seen, a_job(dataset, "good:train", "told", spec=told, gate=trusting)), ModelPublished
    )


async def test_without_an_evaluation_only_a_first_model_is_published(seen: Topics, dataset: Path) -> None:
    first = await finish(seen, a_job(dataset, "good:train", "unjudged", evaluation=None))
    second = await finish(seen, a_job(dataset, "good:train", "unjudged", evaluation=None, seed=4))
    assert isinstance(first, ModelPublished)
    assert first.manifest.challenger is None
    assert isinstance(second, ModelRefused)
    assert "the live model stays" in second.reason


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "minimum_rows", "reason"),
    [
        (SPAN_MS * 9, SPAN_MS * 10, 1, "0 labelled rows"),
        (0, 4 * STEP_MS + HOUR_MS, 500, "at least 500"),
        (0, STEP_MS, 1, "one class"),
    ],
)
async def test_a_job_with_nothing_to_learn_from_is_skipped(
    seen: Topics, dataset: Path, start_ms: int, end_ms: int, minimum_rows: int, reason: str
) -> None:
    training = DatasetRange(uri=str(dataset), version=1, start_ms=start_ms, end_ms=end_ms)
    job = a_job(
        dataset, "good:train", "skipped", training=training, evaluation=None, minimum_rows=minimum_rows
    )
    skipped = await finish(seen, job)
    assert isinstance(skipped, JobSkipped), skipped
    assert reason in skipped.reason


@pytest.mark.parametrize(
    "selection",
    [
        Reservoir(rows=900),
        Decay(rows=900, half_life_ms=6 * HOUR_MS),
        Balanced(rows=900, by="place"),
        Hard(rows=900),
    ],
    ids=lambda selection: type(selection).__name__,
)
async def test_a_selection_gives_the_training_its_rows_and_no_others(
    seen: Topics, dataset: Path, selection: Selection
) -> None:
    name = f"chosen-{type(selection).__name__}"
    first = await finish(seen, a_job(dataset, "good:train", name, params={"steps": 5}))
    chosen = await finish(seen, a_job(dataset, "good:train", name, selection=selection))
    assert isinstance(first, ModelPublished)
    assert isinstance(chosen, ModelPublished), chosen
    lineage, whole = chosen.manifest.lineage, first.manifest.lineage
    assert (lineage.rows, whole.rows) == (900, (CUT_MS - HOUR_MS) // STEP_MS)
    assert lineage.input_sha256 != whole.input_sha256
    assert lineage.evaluation_sha256 == whole.evaluation_sha256
    assert lineage.champion_sha256 == first.manifest.artifact.sha256


async def test_an_experiment_that_contradicts_itself_fails(seen: Topics, dataset: Path) -> None:
    apart = experiment(dataset, "x", "x").evaluation
    assert apart is not None
    overlapping = msgspec.structs.replace(apart, start_ms=CUT_MS - 1)
    failed = await finish(seen, a_job(dataset, "good:train", "overlap", evaluation=overlapping))
    assert isinstance(failed, JobFailed)
    assert "overlaps" in failed.reason
    nowhere = DatasetRange(uri=str(dataset / "nowhere"), version=1, start_ms=0, end_ms=CUT_MS)
    failed = await finish(seen, a_job(dataset, "good:train", "nowhere", training=nowhere))
    assert isinstance(failed, JobFailed)
    assert "no dataset" in failed.reason


async def test_a_job_that_is_killed_from_outside_is_tried_again_after_a_pause(
    seen: Topics, dataset: Path, tmp_path: Path, trainer: TrainerProcess
) -> None:
    params = {"mark": str(tmp_path / "mark"), "go": str(tmp_path / "go")}
    killed = a_job(dataset, "bad:waits", "killed", params=params)
    await seen.ask(killed)
    await seen.until((tmp_path / "mark").exists)
    (process,) = jobs_of(trainer.pid)
    process.kill()
    retried = await seen.one(killed, JobRetried, JobFailed)
    assert isinstance(retried, JobRetried)
    assert "SIGKILL" in retried.reason
    (tmp_path / "go").touch()
    assert isinstance(await seen.one(killed, *ENDS), ModelPublished)
    first, second = seen.of_job(killed, JobStarted)
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.started_ms >= retried.not_before_ms > first.started_ms


async def test_the_same_training_is_done_once_and_a_job_that_asks_for_it_again_is_answered(
    seen: Topics, dataset: Path
) -> None:
    first = a_job(dataset, "good:train", "same")
    published = await finish(seen, first)
    assert isinstance(published, ModelPublished)
    again = a_job(dataset, "good:train", "same", resources=QUICK)  # on other hardware it is the same training
    await seen.ask(again)
    answered = await seen.one(again, JobAnswered, *ENDS)
    assert isinstance(answered, JobAnswered), answered
    assert answered.earlier_job_id == first.job_id
    assert answered.run_key == seen.of_job(first, JobStarted)[0].run_key
    assert not seen.of_job(again, JobStarted)

    failing = a_job(dataset, "bad:raises", "same")
    assert isinstance(await finish(seen, failing), JobFailed)
    # A failure is no result: whoever asks again has mended what was wrong.
    assert isinstance(await finish(seen, a_job(dataset, "bad:raises", "same")), JobFailed)


async def test_a_trial_is_scored_and_publishes_nothing(seen: Topics, dataset: Path) -> None:
    trial = a_job(dataset, "good:train", "tried", purpose="trial")
    await seen.ask(trial)
    succeeded = await seen.one(trial, JobSucceeded, *ENDS)
    assert isinstance(succeeded, JobSucceeded), succeeded
    assert succeeded.scores["auc"] > 0.85
    await finish(seen, a_job(dataset, "good:train", "tried-later"))
    assert seen.of_job(trial, *ENDS) == []


async def test_waiting_jobs_on_older_data_are_merged_into_the_newest_and_a_waiting_job_can_be_stopped(
    seen: Topics, dataset: Path, tmp_path: Path, ending: Callable[[int], DatasetRange]
) -> None:
    params = {"mark": str(tmp_path / "mark"), "go": str(tmp_path / "go")}
    at_work = a_job(dataset, "bad:waits", "merging", params=params)
    await seen.ask(at_work)
    await seen.until((tmp_path / "mark").exists)
    older, newest, stopped = (
        a_job(dataset, "good:train", "merging", job_id=name, training=ending(end_ms), **more)
        for name, end_ms, more in (
            ("merging-older", CUT_MS - HOUR_MS, {}),
            ("merging-newest", CUT_MS, {}),
            ("merging-stopped", CUT_MS, {"seed": 9}),
        )
    )
    await seen.ask(newest, older, stopped)
    assert (await seen.one(older, JobMerged)).into_job_id == newest.job_id
    queued = await seen.one(newest, JobQueued)
    assert queued.reason == "another job of model merging is at work"
    await seen.say(
        topics.JOBS.name, JobStopRequested(job_id=stopped.job_id, reason="thought better", requested_ms=1)
    )
    assert (await seen.one(stopped, JobFailed)).reason == "thought better"
    (tmp_path / "go").touch()
    assert isinstance(await seen.one(newest, *ENDS), ModelPublished | ModelRefused)
    assert not seen.of_job(older, JobStarted)
    assert len(seen.of_job(newest, JobQueued)) == 1


async def test_a_job_makes_room_for_a_more_urgent_one_and_goes_on_where_it_was_to_the_same_weights(
    seen: Topics, dataset: Path, tmp_path: Path
) -> None:
    undisturbed = a_job(dataset, "good:steady", "undisturbed")
    expected = await finish(seen, undisturbed)
    assert isinstance(expected, ModelPublished)

    cores = Resources(device="cpu", cpus=len(os.sched_getaffinity(0)), memory_bytes=2**28, time_limit_s=60)
    params = {"mark": str(tmp_path / "mark"), "go": str(tmp_path / "go")}
    patient = a_job(dataset, "good:steady", "patient", params=params, resources=cores)
    urgent = msgspec.structs.replace(a_job(dataset, "good:train", "urgent", resources=cores), priority=1)
    await seen.ask(patient)
    await seen.until((tmp_path / "mark").exists)
    await seen.ask(urgent)
    preempted = await seen.one(patient, JobPreempted)
    assert preempted.by_job_id == urgent.job_id
    assert preempted.checkpointed
    assert isinstance(await seen.one(urgent, *ENDS), ModelPublished)
    (tmp_path / "go").touch()
    published = await seen.one(patient, *ENDS)
    assert isinstance(published, ModelPublished), published
    assert [s.resumed for s in seen.of_job(patient, JobStarted)] == [False, True]
    assert next(p.step for p in seen.of_job(patient, JobProgress) if p.attempt == 2) == 22
    assert published.manifest.artifact.sha256 == expected.manifest.artifact.sha256


async def test_a_job_that_takes_more_memory_than_it_asked_for_is_ended(seen: Topics, dataset: Path) -> None:
    modest = Resources(device="cpu", memory_bytes=2**28, time_limit_s=60)
    failed = await finish(seen, a_job(dataset, "bad:hoards", "hoards", resources=modest))
    assert isinstance(failed, JobFailed)
    assert "had asked for 256 MiB" in failed.reason
    assert "memory_bytes" in failed.reason
    assert "hoarding" in failed.log_tail


async def test_a_start_takes_under_a_second_and_so_does_publication(seen: Topics, dataset: Path) -> None:
    for seed in (0, 1):  # the first ones load what later ones find loaded
        assert isinstance(
            await finish(seen, a_job(dataset, "good:train", "quick", seed=seed)), ModelPublished
        )
    job = a_job(dataset, "good:train", "quick", seed=2)
    published = await finish(seen, job)
    assert isinstance(published, ModelPublished)
    (started,), (succeeded,) = seen.of_job(job, JobStarted), seen.of_job(job, JobSucceeded)
    assert started.started_ms - job.requested_ms < 1_000
    assert published.manifest.published_ms - succeeded.finished_ms < 1_000


async def test_a_training_in_two_ranks_comes_to_what_one_comes_to_and_is_begun_again_when_a_rank_dies(
    seen: Topics, dataset: Path, tmp_path: Path, trainer: TrainerProcess
) -> None:
    params = {"epochs": 20, "learning_rate": 0.02, "mark": str(tmp_path / "fell")}
    ranks = Resources(device="cpu", ranks=2, cpus=2, memory_bytes=2**29, time_limit_s=60)
    one = await finish(seen, a_job(dataset, "network:Network", "one-rank", params=params))
    job = a_job(dataset, "ranked:Falling", "two-ranks", params=params, resources=ranks)
    two = await finish(seen, job)
    assert isinstance(one, ModelPublished)
    assert isinstance(two, ModelPublished), two
    assert (tmp_path / "fell").exists()
    assert len(seen.of_job(job, JobStarted)) == 1
    weights = [
        load_file(trainer.home / "artifacts" / f"{e.manifest.artifact.sha256}.safetensors")
        for e in (one, two)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-3)


async def test_a_person_asks_by_the_command_line_sees_the_job_and_its_curve(
    seen: Topics, dataset: Path, tmp_path: Path, trainer: TrainerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in trainer.environment.items():
        monkeypatch.setenv(name, value)
    wanted = tmp_path / "experiment.json"
    wanted.write_bytes(msgspec.json.encode(experiment(dataset, "good:train", "by-hand")))

    async def said(*arguments: str) -> str:
        code, answer = await tidemill(*arguments)
        assert code == 0
        return answer

    asking = ("train", "--experiment", str(wanted))
    came = json.loads(await said(*asking, "--why", "a try", "--json"))
    assert (came["state"], came["model"], came["why"]) == ("published", "by-hand", "a try")
    assert came["curve"][-1]["step"] == came["curve"][-1]["of"] == 60
    assert json.loads(await said(*asking, "--json"))["state"] == "answered"

    picture = tmp_path / "curve.png"
    await said("jobs", came["job_id"], "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "published" in await said("jobs", "--once", "--all")
    rendered = json.loads(await said("jobs", came["job_id"], "--kubernetes"))
    order = rendered["items"][0]["data"]["assignment.json"]
    assert msgspec.json.decode(order, type=Assignment).champion is not None
    wanted.write_text('{"pipeline": 1}')
    with pytest.raises(InvalidConfiguration, match="is no experiment"):
        await tidemill(*asking)


async def test_a_training_is_asked_for_from_python_by_the_same_event(
    seen: Topics, dataset: Path, trainer: TrainerProcess, broker: EmbeddedBroker
) -> None:
    configured = Settings(kafka=Kafka(bootstrap_servers=broker.bootstrap_servers))
    wanted = experiment(dataset, "good:train", "from-python")
    job = await submit(configured, wanted, priority=2, why="to see")
    assert (await ended(configured, job.job_id)).state == "published"
    (event,) = seen.of_job(job, JobRequested) or [await seen.one(job, JobRequested)]
    assert event == job
    assert (event.experiment, event.priority, event.why) == (wanted, 2, "to see")


async def test_labels_withdraw_a_canary_and_promote_the_next(
    seen: Topics, broker: EmbeddedBroker, trainer: TrainerProcess, dataset: Path, tmp_path: Path
) -> None:
    await ensure(topics.TOPICS, Connection(bootstrap_servers=broker.bootstrap_servers))
    name, terms = "tried", CanaryTerms(share=0.5, pairs=200, longest_ms=3_600_000)
    first = await finish(seen, a_job(dataset, "good:inverted", name))
    assert isinstance(first, ModelPublished), first
    store: Any = SimpleNamespace(url=first.manifest.artifact.uri.rpartition("/")[0] + "/")
    keys = Settings(paths=Paths(home=trainer.home)).paths.signing_keys / "trusted.txt"
    rows = (
        Dataset(dataset)
        .rows("asked", version=1, start_ms=0, end_ms=SPAN_MS, columns=["id", "place", "x"])
        .select("_time", "place", "x", flight_id="id", temp=pl.lit(0.0), recent=pl.lit(120))
    )

    async def tell(kind: type[Announcement], **having: Any) -> Any:
        def found() -> list[Any]:
            return [
                e
                for topic, _, e in seen.events
                if topic == topics.MODELS.name and isinstance(e, kind) and getattr(e, "name", "") == name
                if all(getattr(e, k) == v for k, v in having.items())
            ]

        return (await seen.until(found, timeout_s=90))[-1]

    async def offer(seed: int) -> CanaryPublished:
        job = a_job(dataset, "good:train", name, seed=seed)
        await seen.ask(msgspec.structs.replace(job, canary=terms))
        return await seen.one(job, CanaryPublished, JobFailed, ModelRefused)

    async with (
        Cluster(broker.bootstrap_servers) as cluster,
        service(cluster, store, tmp_path, name, "--trusted-keys", str(keys)),
    ):
        await tell(ModelAdopted, version=1)
        worse = await offer(4)
        assert isinstance(worse, CanaryPublished), worse
        assert (worse.manifest.version, worse.beside_version) == (2, 1)
        await tell(ModelAdopted, version=2, canary=True)
        # No second beside it; and in a world upside down the first one is right, which says the opposite.
        assert isinstance(refused := await offer(5), ModelRefused)
        assert "version 2 is on trial" in refused.reason
        await cluster.send(frame(f"{name}/upside-down", rows.with_columns(x=-pl.col("x"))), topics.FEATURES)
        withdrawn = await tell(CanaryWithdrawn, version=2)
        assert withdrawn.judged.comparison.overall.high < 0
        assert withdrawn.judged.pairs in {200, 400, 800, 1600}
        better = await offer(6)
        assert isinstance(better, CanaryPublished), better
        await tell(ModelAdopted, version=3, canary=True)
        trainer.kill()
        await cluster.send(frame(f"{name}/as-it-is", rows), topics.FEATURES)
        trainer.start()
        promoted = await tell(CanaryPromoted, canary_version=3)
        assert promoted.manifest.version == 4
        assert promoted.manifest.artifact == better.manifest.artifact
        assert promoted.judged.comparison.overall.low > 0
        current = await seen.until(
            lambda: [e for t, _, e in seen.events if t == topics.MODELS_CURRENT.name and e == promoted]
        )
        assert len(current) == 1
    ends = [i for t, i, e in seen.events if t == topics.MODELS.name and "/canary-" in i and e.key() == name]
    assert len(ends) == len(set(ends)) == 4
