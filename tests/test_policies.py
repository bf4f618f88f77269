"""Policies over a recorded stream: what would have been decided, trained, published and answered."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from infra.command.main import app
from infra.dataset import Dataset
from infra.demo.flights import DAY_MS, FIRST_DAY_MS, events
from infra.demo.recorded import record
from infra.lab.policies import declared
from infra.lab.policies.picture import draw
from infra.lab.policies.recorded import NothingRecorded, Recorded
from infra.lab.policies.recorded import record as fold
from infra.lab.policies.result import NothingToScore, judge
from infra.lab.policies.run import run
from infra.lab.policies.training import Trained, TrainingFailed
from infra.lab.policies.walk import Training, Walked
from infra.measures import log_losses
from schemas import topics
from schemas.client.load import load
from schemas.envelope import unwrap
from schemas.errors import InvalidConfiguration
from schemas.model import Artifact, Field, Manifest
from schemas.window import Window
from streams.announce.fold import Announcer, Progress
from streams.announce.log import read_commit
from streams.closing import closing
from streams.load import Loaded, load_pipeline
from streams.summary.profiling import beginning
from streams.training import last
from streams.trigger import every, first
from tests.worker_fixtures import PIPELINE

DAYS = 6
TRIGGERS = {
    "often": "first(windows=2) | every(windows=2)",
    "worse": "first(windows=2) | quality(baseline=2, labelled=0.1, minimum_rows=50) & every(windows=9)",
    "rarely": "first(windows=2) | every(windows=4)",
    "once": "first(windows=2)",
    "drifting": "first(windows=2) | drift('distance', least=0.9)",
}

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Site:
    """A recorded stream, and a lab that was interrupted once and has then run to its end."""

    home: Path
    loaded: Loaded
    dataset: Dataset
    answer: dict[str, Any]
    kept_over: bool
    mended: bool


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The year is read off its file once, however often the tests record some of it."""
    known = events(days=DAYS + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infra.demo.recorded.events", lambda *, days: known.filter(
            pl.col("time_ms") < FIRST_DAY_MS + days * DAY_MS
        ))  # fmt: skip
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("policies")
    file = home / "pipeline.py"
    file.write_text(PIPELINE.format(name="flights"))
    loaded = load_pipeline(str(file))
    dataset = record(loaded.pipeline, home / "dataset", days=DAYS)
    folder = home / "lab" / "policies"

    def stop(*_: object) -> None:
        if len(trained_in(folder)) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(loaded, dataset.uri, asked(loaded), folder, processes=1, progress=stop)
    sound, damaged = trained_in(folder)
    weights = folder / "artifacts" / f"{kept(damaged).outcome.sha256}.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = sound.stat().st_mtime_ns
    (home / "tidemill.toml").write_text(f'[paths]\nhome = "{home}"\n')
    line = ["--config", str(home / "tidemill.toml"), "policies", str(file), "--json", "--processes", "1"]
    line += [f"--trigger={name}={code}" for name, code in TRIGGERS.items()]
    ended = CliRunner().invoke(app, line, catch_exceptions=False)
    assert ended.exit_code == 0, ended.stderr
    return Site(
        home, loaded, dataset, json.loads(ended.stdout),
        kept_over=sound.stat().st_mtime_ns == before, mended=weights.read_bytes() == whole,
    )  # fmt: skip


def trained_in(folder: Path) -> list[Path]:
    return sorted((folder / "trainings").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)


def kept(file: Path) -> Any:
    return msgspec.json.decode(file.read_bytes(), type=Trained)


def asked(loaded: Loaded) -> list[declared.Policy]:
    return declared.policies(loaded, [f"{n}={c}" for n, c in TRIGGERS.items()], [])


def again(site: Site) -> tuple[Recorded, dict[str, Walked]]:
    """The same once more in this process: all is kept, and nothing is trained."""
    folder = site.home / "lab" / "policies"
    recorded, walked = run(site.loaded, site.dataset.uri, asked(site.loaded), folder, processes=1)
    return recorded, {each.policy.name: each for each in walked}


@pytest.fixture(scope="module")
def walked(site: Site) -> dict[str, Walked]:
    return again(site)[1]


def live_decisions(site: Site, policy: declared.Policy) -> list[Any]:
    """What a worker with this policy in its pipeline would have announced: its own fold over the log."""
    pipeline = policy.pipeline(site.loaded.pipeline)
    progress = Progress(closing(pipeline.window), history=beginning(pipeline))
    announcer = Announcer(
        pipeline, site.dataset.uri, progress, read_rows=site.dataset.rows,
        configuration_sha256=site.loaded.sha256,
    )  # fmt: skip
    said = [
        each
        for version in range(site.dataset.newest_version() + 1)
        for each in announcer.apply(read_commit(pipeline, site.dataset.uri, version))
    ]
    return [unwrap(each.envelope) for each in said if each.topic == topics.DECISIONS.name]


# The year without a cluster.


def test_a_recorded_year_that_was_broken_off_goes_on_where_its_ledger_stands(
    site: Site, tmp_path: Path
) -> None:
    def broken_off(day: int) -> None:
        if day == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(site.loaded.pipeline, tmp_path, days=DAYS, on_day=broken_off)
    whole = record(site.loaded.pipeline, tmp_path, days=DAYS)
    rows = [
        pl.scan_delta(each.uri).sort("_source", "_partition", "_offset", "_row").collect()
        for each in (whole, site.dataset)
    ]
    assert rows[0].equals(rows[1])
    assert whole.newest_version() == DAYS


# What is tried is what runs.


def test_a_policy_decides_as_a_worker_with_it_would(site: Site, walked: dict[str, Walked]) -> None:
    for policy in asked(site.loaded)[-2:]:
        live = live_decisions(site, policy)
        assert len(live) == DAYS
        assert [msgspec.to_builtins(d) for d in walked[policy.name].decisions] == [
            msgspec.to_builtins(d) for d in live
        ]


def test_every_row_is_answered_by_the_model_that_was_live_at_its_time(site: Site) -> None:
    recorded, walked = again(site)
    store = site.home / "lab" / "policies" / "artifacts"
    times = recorded.rows.get_column("_time").to_numpy()
    label = recorded.pipeline.spec().label
    assert label is not None
    for each in walked.values():
        live = [t for t in each.trainings if t.live_ms is not None]
        assert live
        assert np.isnan(each.scores[times < live[0].live_ms]).all()
        for number, training in enumerate(live):
            until = live[number + 1].live_ms if number + 1 < len(live) else 2**62
            mine = (times >= training.live_ms) & (times < until)
            content = (store / f"{outcome_of(site, training).sha256}.safetensors").read_bytes()
            network = load(manifest_of(site, training), content)
            if mine.any():
                asked = recorded.rows.filter(pl.Series(mine)).to_dict(as_series=True)
                assert np.allclose(each.scores[mine], network.predict(asked), atol=1e-6)


def test_a_trigger_on_the_live_model_sees_its_answers_and_the_labels_known_by_then(site: Site) -> None:
    recorded, walked = again(site)
    mine = walked["worse"]
    live_from_ms = mine.live_from_ms
    assert live_from_ms is not None
    said = [next(e for e in d.evaluations if e.condition == "quality()") for d in mine.decisions]
    judged = [each for each in said if each.evaluated]
    assert judged, said[-1].reason
    assert "no answer of a live model is known yet" in said[0].reason
    # The baseline is the mean loss of the first two windows that the model answered, by a plain count.
    rows = recorded.rows.with_columns(score=pl.Series(mine.scores)).drop_nulls(recorded.label)
    end_ms = max(mine.decisions[-1].window.end_ms, recorded.windows[-1].event.watermark_ms)
    rows = rows.filter(pl.col("score").is_not_nan(), pl.col("_label_time") < end_ms)
    start = recorded.pipeline.window.start(pl.col("_time"))
    means = [
        np.mean(log_losses(own.get_column(recorded.label).to_numpy(), own.get_column("score").to_numpy()))
        for _, own in sorted(rows.with_columns(_start=start).partition_by("_start", as_dict=True).items())
        if own.height >= 50
    ]
    assert judged[-1].scores["baseline"] == pytest.approx(np.mean(means[:2]))


def test_no_model_has_seen_what_came_after_it_went_live(site: Site, walked: dict[str, Walked]) -> None:
    for each in walked.values():
        for training in each.trainings:
            experiment = outcome_of(site, training).lineage.experiment
            assert experiment.training.end_ms <= experiment.evaluation.start_ms
            assert experiment.evaluation.end_ms <= training.asked_ms
            assert training.live_ms is None or training.live_ms >= training.asked_ms


def outcome_of(site: Site, training: Training) -> Any:
    return kept(site.home / "lab" / "policies" / "trainings" / f"{training.run_key}.json").outcome


def manifest_of(site: Site, training: Training) -> Any:
    outcome = outcome_of(site, training)
    return Manifest(
        name="flights",
        version=1,
        artifact=Artifact(uri="", size_bytes=outcome.size_bytes, sha256=outcome.sha256),
        architecture=outcome.architecture,
        config=outcome.config,
        inputs=outcome.inputs,
        outputs=[Field(name="probability", type="float")],
        example=outcome.example,
        champion=None,
        challenger=None,
        lineage=outcome.lineage,
        published_ms=0,
        comparison=None,
    )


# Each experiment once.


def test_what_two_policies_ask_for_is_trained_once(site: Site) -> None:
    answer = site.answer
    asked = [model["run_key"] for policy in answer["policies"] for model in policy["models"]]
    assert len(asked) == answer["trainings_asked_for"]
    assert answer["trainings_shared"] == len(asked) - len(set(asked)) >= 3
    first_of_each = {policy["models"][0]["run_key"] for policy in answer["policies"]}
    assert len(first_of_each) == 1


def test_after_ctrl_c_the_same_command_goes_on_with_what_it_had_trained(site: Site) -> None:
    assert site.kept_over
    folder = site.home / "lab" / "policies"
    before = {file: file.stat().st_mtime_ns for file in trained_in(folder)}
    recorded, walked = again(site)
    assert {file: file.stat().st_mtime_ns for file in trained_in(folder)} == before
    told = judge(recorded, list(walked.values())).as_json()
    assert told == {name: value for name, value in site.answer.items() if name != "picture"}


def test_a_training_that_was_damaged_is_done_anew(site: Site) -> None:
    assert site.mended


def test_one_training_that_fails_ends_the_run_with_its_own_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def walk(policy: declared.Policy, *_: object, **__: object) -> Walked:
        if policy.name == "often":
            raise TrainingFailed("flights-20130103T0500: no weights")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(policy.name)
        raise AssertionError

    monkeypatch.setattr("infra.lab.policies.run.walk", walk)
    with pytest.raises(TrainingFailed, match="no weights"):
        again(site)
    assert sorted(ended) == sorted(set(TRIGGERS) - {"often"})


# Scores, costs, the frontier.


def test_the_answer_names_score_costs_frontier_and_the_code_to_paste(site: Site) -> None:
    answer = site.answer
    by_name = {policy["name"]: policy for policy in answer["policies"]}
    assert set(by_name) == set(TRIGGERS)
    assert by_name["often"]["trainings"] > by_name["rarely"]["trainings"] > by_name["once"]["trainings"] == 1
    assert all(0 < policy["auc"] < 1 and policy["cpu_s"] > 0 for policy in by_name.values())
    assert by_name["once"]["efficient"]
    assert 0 < answer["label_coverage"] <= 1
    assert Path(answer["picture"]).read_bytes().startswith(b"\x89PNG")
    best = by_name[answer["best"]]
    space: dict[str, Any] = {}
    imports, _, rest = answer["code"].partition("\n\n")
    exec(imports, space)
    written = dict(line.rstrip(",").split("=", 1) for line in rest.splitlines() if not line.startswith("#"))
    assert written["train_when"] == best["train_when"]
    mine = next(p for p in asked(site.loaded) if p.name == answer["best"])
    assert eval(written["train_when"], space) == mine.train_when
    assert eval(written["data"], space) == mine.select


def made_up(site: Site, scores: dict[str, tuple[float, int, float]]) -> tuple[Recorded, list[Walked]]:
    """Policies of any score and cost: noise of that size on the truth, so many trainings, CPU s each."""
    folder = site.home / "lab" / "policies"
    recorded = fold(site.loaded.pipeline, site.dataset.uri, [], folder)
    truth = recorded.rows.get_column(recorded.label).cast(pl.Float64).fill_null(0).to_numpy()
    draws = np.random.default_rng(0).random(len(truth))
    walked = []
    for name, (noise, trainings, cpu_s) in scores.items():
        policy = declared.Policy(
            name=name, trigger="every(windows=1)", data="last(windows=1)", train_when=every(windows=1),
            select=last(windows=1),
        )  # fmt: skip
        done = [
            Training(
                asked_ms=0, live_ms=0, job_id=f"{n}", run_key=f"{name}{n}", cpu_s=cpu_s, gpu_s=0.0, reason=""
            )
            for n in range(trainings)
        ]  # fmt: skip
        scored = np.clip((1 - noise) * truth + noise * draws, 0, 1)
        walked.append(Walked(policy=policy, scores=scored, trainings=done))
    return recorded, walked


def test_the_one_to_take_is_the_cheapest_within_the_margin(site: Site) -> None:
    recorded, walked = made_up(
        site,
        {"dear": (0.6, 40, 1.0), "cheap": (0.61, 10, 1.0), "bad": (0.9, 2, 1.0), "waste": (0.9, 60, 1.0)},
    )
    result = judge(recorded, walked, within=0.02)
    assert result.reference == "dear"
    assert result.best == "cheap"
    assert {s.policy.name for s in result.standings if s.efficient} == {"dear", "cheap", "bad"}
    apart = result.of("cheap").apart
    assert apart is not None
    assert apart.low <= apart.value < 0
    assert judge(recorded, walked, within=0.0).best == "dear"
    assert judge(recorded, walked, within=1.0).best == "bad"
    assert judge(recorded, walked, measure="log_loss", reference="bad", within=0).best == "bad"


def test_all_policies_are_scored_on_the_rows_that_each_of_them_answered(site: Site) -> None:
    recorded, walked = made_up(site, {"early": (0.5, 1, 1.0), "late": (0.5, 1, 1.0), "never": (0.5, 0, 0.0)})
    half = recorded.rows.height // 2
    walked[1].scores[:half] = np.nan
    walked[2].scores[:] = np.nan
    result = judge(recorded, walked)
    labelled = recorded.rows.get_column(recorded.label).is_not_null()
    assert result.rows == labelled[half:].sum()
    assert list(result.held_back) == ["never"]
    assert [s.policy.name for s in result.standings] == ["early", "late"]


def test_without_a_model_there_is_nothing_to_score(site: Site) -> None:
    recorded, walked = made_up(site, {"never": (0.5, 0, 0.0)})
    walked[0].scores[:] = np.nan
    with pytest.raises(NothingToScore, match="longer span"):
        judge(recorded, walked)


def test_a_picture_that_cannot_be_drawn_names_its_file(site: Site, tmp_path: Path) -> None:
    recorded, walked = made_up(site, {"one": (0.5, 1, 1.0)})
    with pytest.raises(InvalidConfiguration, match=r"policies\.odd"):
        draw(judge(recorded, walked), tmp_path / "policies.odd")


# What an engineer writes.


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        ("every(windows=0)", "at least 1"),
        ("every(", "is no expression"),
        ("evry(windows=2)", "there are .*every"),
        ("7", "is no condition but int"),
        ("drift()", "first"),
        ("first(windows=2) | drift('distanc')", "did you mean 'distance'"),
        ("__import__('os').getcwd()", "__import__"),
    ],
)
def test_a_trigger_that_cannot_be_is_refused_by_name(site: Site, trigger: str, said: str) -> None:
    with pytest.raises(declared.BadPolicy, match=said):
        declared.policies(site.loaded, [trigger], [])


def test_two_policies_of_one_name_are_refused(site: Site) -> None:
    with pytest.raises(declared.BadPolicy, match="name them apart"):
        declared.policies(site.loaded, ["a=every(windows=2)", "a=every(windows=3)"], [])


def test_every_trigger_is_tried_with_every_selection(site: Site) -> None:
    found = declared.policies(
        site.loaded,
        ["two=every(windows=2)", "three=every(windows=3)"],
        ["last(windows=5)", "reservoir(rows=9)"],
    )
    assert [p.name for p in found] == [
        "two on last(windows=5)", "two on reservoir(rows=9)", "three on last(windows=5)",
        "three on reservoir(rows=9)",
    ]  # fmt: skip


def test_with_nothing_named_the_pipelines_own_trigger_is_among_those_tried(site: Site) -> None:
    found = {p.name: p for p in declared.policies(site.loaded, [], [])}
    own = found[declared.OWN]
    assert own.trigger == "every(windows=2) & labelled(rows=100)"
    assert own.data == "last(windows=2)"
    assert own.train_when == site.loaded.pipeline.train_when
    assert found["once"].train_when == first(windows=28)


def test_a_span_without_windows_says_which_there_are(site: Site) -> None:
    begins = str(Window(FIRST_DAY_MS, FIRST_DAY_MS + 86_400_000))
    with pytest.raises(NothingRecorded, match=begins):
        fold(site.loaded.pipeline, site.dataset.uri, [], site.home / "other", start_ms=2**45)
