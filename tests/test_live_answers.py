"""How the live model's answers fare: each is counted once with its label, and what falls off is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from aiokafka import AIOKafkaProducer
from msgspec.structs import replace as replaced

from infra.dataset import Dataset
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.measures import auc, log_losses
from loadtest.quality import measure, window_of
from schemas import examples, topics
from schemas.contract import Announcement
from schemas.envelope import wrap
from schemas.job import JobRequested, JobSucceeded
from schemas.prediction import Predictions
from streams.announce.fold import Commit
from streams.announce.log import keep, read_commit, recall
from streams.check.trigger import trigger as mistakes
from streams.declared import InvalidPipeline
from streams.ingest import dataset_schema
from streams.ledger.commit import Ledger
from streams.live.assessor import Assessor, Superseded
from streams.live.tally import JUDGED, Assessment, PaneTally, Tally, assessment_of, tallied
from streams.live.track import Live
from streams.pipeline import Labels, Pipeline, Source
from streams.training import Training
from streams.trigger import Answer, Condition, History, Look, bias, cost, every, first, previous, quality
from streams.trigger.answers import _one_less_auc
from streams.window import Tumbling
from tests.test_announce import Event, Truth
from tests.test_trigger import closed

SECOND_MS = 1_000


def pipeline(name: str, when: Condition) -> Pipeline:
    return Pipeline(
        name=name,
        source=Source("events", schema=Event, event_time="at", key="id"),
        labels=Labels(
            Source("truth", schema=Truth, event_time="came", key="id"), column="outcome", within="5s"
        ),
        columns=["place", "value"],
        window=Tumbling("1s"),
        train_when=when,
        train=Training("nowhere:train"),
    )


# ── the triggers, as functions of what was counted ──────────────────────────────────────────────────


def pane(number: int, rows: int, rng: np.random.Generator, **options: Any) -> PaneTally:
    """A window of calibrated answers by version 3, as `tidemill bench quality` makes them, a second each."""
    made = window_of(number, rows, rng, **options)
    return replaced(made, version=3, start_ms=number * SECOND_MS)


def asked(condition: Condition, *panes: PaneTally, trainings_s: tuple[float, ...] = ()) -> Answer:
    live = Live(version=3, panes=panes, trainings_s=trainings_s)
    return condition.evaluate(Look(closed(), History(), live=live))


@pytest.mark.parametrize("day", [0.0, 0.25])
def test_steady_models_raise_few_alarms_and_a_fall_is_found_whatever_is_measured(day: float) -> None:
    """The short form of `tidemill bench quality`. At alpha .005 five of the 1,000 windows are expected."""
    for each in measure(lives=40, windows=25, rows=600, day=day, patience=12):
        # A CUSUM that has alarmed stays so; a slice is judged anew at each window.
        alarms = each.windows_with_alarm if "bias" in each.condition else each.lives_with_alarm
        assert alarms <= (12 if "bias" in each.condition else 5), each
        assert each.found >= 34, each


def test_an_evaluation_says_score_threshold_reference_and_forecast() -> None:
    rng = np.random.default_rng(0)
    panes = [pane(number, 400, rng) for number in range(6)]
    steady = asked(quality(), *panes).parts[0]
    assert (steady.evaluated, steady.fired) == (True, False)
    assert steady.threshold == pytest.approx(math.log(200))
    assert steady.reference == "the first 5 windows of version 3, starting 0-4000"
    assert steady.scores["baseline"] == pytest.approx(sum(p.whole.mean_loss for p in panes[:5]) / 5)
    fallen = asked(quality(), *panes, pane(7, 400, rng, noise=6)).parts[0]
    assert (fallen.fired, fallen.forecast_windows) == (True, 0.0)
    assert "log loss has risen by" in fallen.reason
    small = asked(quality(least=5.0), *panes, pane(7, 400, rng, noise=6))
    assert small.fired is False
    assert "below 5" in small.parts[0].reason
    worse = Live(version=3, panes=(*panes, pane(7, 400, rng, noise=6)))
    rising = Look(closed(), History(scores={"quality()": (0.1, 0.2)}), live=worse)
    (told,) = quality(alpha=1e-99).evaluate(rising).parts
    assert told.forecast_windows is not None
    assert told.forecast_windows > 0


def test_without_answers_labels_or_a_baseline_nothing_is_said_and_the_reason_is() -> None:
    rng = np.random.default_rng(0)
    panes = [pane(number, 200, rng) for number in range(6)]
    worth = cost(per_loss=1, per_training_second=1, over="1d")
    for condition in (quality(), quality("auc"), bias("place", of="error"), worth):
        answer = condition.evaluate(Look(closed(), History()))
        assert answer.fired is None
        assert answer.parts[0].reason == "not evaluated: no answer of a live model is known yet"
        few = asked(condition, *panes[:5])
        assert few.fired is None
        assert "version 3 has 5 windows to judge by" in few.parts[0].reason
        # A fifth of the labels may be the quick ones.
        awaited = [replaced(p, whole=replaced(p.whole, answers=1_000)) for p in panes]
        assert asked(condition, *awaited).fired is None
    one_class = Tally(answers=200, labelled=200, negatives=(4,) * 50, positives=(0,) * 50)
    alike = [PaneTally(version=3, start_ms=n, whole=one_class) for n in range(7)]
    assert "no AUC" in asked(quality("auc"), *alike).parts[0].reason
    assert "no training of this pipeline has been measured" in asked(worth, *panes).parts[0].reason


def test_a_training_is_worth_it_when_what_it_saves_exceeds_what_trainings_took() -> None:
    rng = np.random.default_rng(2)
    panes = [*(pane(number, 500, rng) for number in range(6)), pane(6, 500, rng, noise=3)]
    # Of 500 answers a second, over 10 s.
    cheap = cost(per_loss=1.0, per_training_second=1.0, over="10s")
    said = asked(cheap, *panes, trainings_s=(10.0, 30.0)).parts[0]
    assert said.threshold == 20.0
    assert said.score is not None
    rise = panes[6].whole.mean_loss - sum((p.whole for p in panes[:5]), Tally()).mean_loss
    assert said.scores["rise"] == pytest.approx(rise)
    assert 20 < said.score < rise * 5_000, "only what is sure of the rise counts"
    assert said.fired
    dear = cost(per_loss=1.0, per_training_second=1_000.0, over="10s")
    assert asked(dear, *panes, trainings_s=(10.0, 30.0)).fired is False
    assert asked(cheap, *panes[:6], trainings_s=(10.0,)).fired is False, "nothing has surely risen"


def test_auc_of_bins_is_the_auc_of_the_scores_up_to_a_bin() -> None:
    rng = np.random.default_rng(4)
    score = rng.random(4_000)
    label = (rng.random(4_000) < score).astype(float)
    frame = pl.DataFrame({"score": score, "label": label}).with_columns(
        key=pl.lit(""), _time=pl.lit(0), version=pl.lit(1)
    )
    (made,) = tallied(frame.select("version", "_time"), frame, pane=pl.col("_time"))
    found, exact = _one_less_auc(made.whole), auc(label, score)
    assert found is not None
    assert exact is not None
    assert 1 - found[0] == pytest.approx(exact, abs=0.002)
    assert math.sqrt(found[1]) == pytest.approx(0.0065, abs=0.002)
    assert made.whole.loss == pytest.approx(log_losses(label, score).sum())


def test_options_that_cannot_be_are_refused_and_check_knows_the_conditions() -> None:
    for make, said in (
        (lambda: quality("rmse"), "write 'log_loss' or 'auc'"),  # type: ignore[arg-type]
        (lambda: quality(baseline=1), "take 2 to 64"),
        (lambda: quality(labelled=0), "is no share"),
        (lambda: quality(alpha=2), "no chance of a false alarm"),
        (lambda: bias("place", of="error", windows=0), "at least the newest one"),
        (lambda: bias("place", of="error", against=previous(windows=2)), "leave against out"),
        (lambda: cost(per_loss=0, per_training_second=1, over="1d"), "per_loss must be above 0"),
    ):
        with pytest.raises(InvalidPipeline, match=said):
            make()
    schema = {"place": pl.String, "value": pl.Float64}

    def found(declared: Pipeline) -> str:
        return " ".join(problem.text for problem in mistakes(declared, schema))

    assert found(pipeline("p", first(windows=2) | quality() | bias("place", of="error"))) == ""
    assert "write first(windows=…) | …" in found(pipeline("p", quality()))
    assert "slices by 'plaec', no column" in found(
        pipeline("p", every(windows=1) | bias("plaec", of="error"))
    )
    unlabelled = replace(pipeline("p", every(windows=1) | quality()), labels=None)
    assert "answers, and no labels" in found(unlabelled)


# ── counted once, whoever counts ────────────────────────────────────────────────────────────────────


class Log:
    """A dataset whose commits are made here, as a worker makes them, and the counts beside them."""

    def __init__(self, declared: Pipeline, uri: Path) -> None:
        self.pipeline, self.uri = declared, str(uri)
        self.ledger = Ledger(uri, dataset_schema(declared))
        self.offsets: Counter[str] = Counter()
        self.watermark_ms = -10_000

    def commit(self, source: str, rows: list[dict[str, Any]], watermark_ms: int) -> Commit:
        time = {"events": "at", "truth": "came"}[source]
        framed = [
            {
                **row, "_source": source, "_partition": 0, "_offset": self.offsets[source] + n, "_row": 0,
                "_time": row[time], "_tags": [],
            }
            for n, row in enumerate(rows)
        ]  # fmt: skip
        self.offsets[source] += len(rows)
        self.watermark_ms = watermark_ms
        frame = pl.DataFrame(framed, schema=dict(self.ledger.schema))
        self.ledger.refresh()
        metadata = {"offsets": {}, "watermark_ms": watermark_ms, "committed_ms": 1}
        version = self.ledger.commit(
            frame, advances={}, watermarks={}, pipeline_watermark_ms=watermark_ms, metadata=metadata
        )
        return Commit(version, metadata, {source: frame})

    async def count(self, said: Mapping[str, Any], after: int | None) -> Commit:
        self.ledger.refresh()
        if self.ledger.marked(JUDGED) != after:
            raise Superseded("another")
        metadata = {"offsets": {}, "watermark_ms": self.watermark_ms, "committed_ms": 1, **said}
        version = self.ledger.commit(
            pl.DataFrame(schema=self.ledger.schema),
            advances={}, watermarks={}, metadata=metadata, marks=(JUDGED,),
        )  # fmt: skip
        return Commit(version, metadata, {})

    def panes(self) -> dict[tuple[int, int], PaneTally]:
        """All that was ever counted, by version and pane."""
        found: dict[tuple[int, int], PaneTally] = {}
        for record in Dataset(self.uri).commits():
            said = assessment_of(record.metadata)
            for each in said.panes if said else ():
                at = (each.version, each.start_ms)
                found[at] = found[at] + each if at in found else each
        return found


@pytest.fixture
async def producer(kafka: EmbeddedBroker) -> Any:
    await ensure(topics.TOPICS, Connection(bootstrap_servers=kafka.bootstrap_servers))
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    yield producer
    await producer.stop()


async def say(producer: AIOKafkaProducer, topic: topics.Topic, said: Announcement) -> None:
    key, value, headers = wrap(said, source="/test", time_ms=1).record()
    await producer.send_and_wait(topic.name, key=key, value=value, headers=headers)


class Story:
    """Events, answers of two versions and labels in random order; some are said again, or contradict."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.name = f"counted{seed}"
        self.events = [
            {"id": f"e{n}", "at": n * 50, "place": rng.choice("xy"), "value": 0.0} for n in range(200)
        ]
        self.answers = [(v, e, rng.random()) for e in self.events for v in (1, 2) if rng.random() < 0.8]
        self.truth = [
            {"id": e["id"], "came": e["at"] + rng.choice([0, 500, 4_000, 5_000, 6_000]), "outcome": 0.0}
            for e in self.events
            if rng.random() < 0.9
        ]
        self.truth += [{**each, "outcome": 1.0, "came": each["came"] + 9} for each in self.truth[::7]]
        answers, truth = self.answers, self.truth
        self.steps: list[tuple[str, list[Any]]] = [
            *(("answers", answers[n : n + 20]) for n in range(0, len(answers), 20)),
            *(("answers", answers[n : n + 2]) for n in range(0, 40, 2)),  # said again
            *(("truth", truth[n : n + 15]) for n in range(0, len(truth), 15)),
        ]
        rng.shuffle(self.steps)

    def predictions(self, number: int, version: int, rows: list[Any]) -> Predictions:
        own = [each for each in rows if each[0] == version]
        return Predictions(
            service=f"s{number}",
            name=self.name,
            version=version,
            sha256="0" * 64,
            features_id=f"{self.name}/{number}",
            keys=[e["id"] for _, e, _ in own],
            times_ms=[e["at"] for _, e, _ in own],
            scores=[s for *_, s in own],
            newest_event_ms=0,
            answered_ms=1,
        )

    def judged(self) -> dict[tuple[int, str], Any]:
        """By version and id, the event of each answer whose label came in time: by a plain loop."""
        came: dict[str, int] = {}
        for each in self.truth:
            came[each["id"]] = min(each["came"], came.get(each["id"], 10**9))
        return {(v, e["id"]): e for v, e, _ in self.answers if came.get(e["id"], 10**9) <= e["at"] + 5_000}


@pytest.mark.parametrize("seed", range(3))
async def test_each_answer_counts_once_with_its_label_whoever_counts_and_whenever_he_dies(
    kafka: EmbeddedBroker,
    producer: AIOKafkaProducer,
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.live.assessor._TURN_S", 0.0)
    story = Story(seed)
    rng = story.rng
    declared = pipeline(story.name, every(windows=1) | quality() | bias("place", of="error"))
    log = Log(declared, tmp_path / story.name)
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    log.commit("events", story.events, -10_000)
    counting: list[Assessor] = []

    async def another() -> Assessor:
        counting.append(Assessor(declared, log.uri, connection, log.count))
        await counting[-1].take_up(Dataset(log.uri).newest_version())
        return counting[-1]

    assessor = await another()
    for number, (kind, rows) in enumerate(story.steps):
        if kind == "truth":
            assessor.take(log.commit("truth", rows, -10_000))
        else:
            for version in (1, 2):
                await say(producer, topics.PREDICTIONS, story.predictions(number, version, rows))
        if rng.random() < 0.6:
            await assessor.turn(-10_000)
        if rng.random() < 0.2:  # it is gone, and has not counted what it heard last
            assessor = await another()
    answers, judged = len(story.answers), story.judged()

    def counted() -> tuple[int, int]:
        panes = log.panes().values()
        return sum(p.whole.answers for p in panes), sum(p.whole.labelled for p in panes)

    await until_counted(assessor, lambda: counted() == (answers, len(judged)))
    assert counted() == (answers, len(judged))
    for (version, start_ms), tally in log.panes().items():
        own = [e for (v, _), e in judged.items() if v == version and e["at"] // 1_000 * 1_000 == start_ms]
        assert tally.whole.labelled == len(own)
        places = Counter(e["place"] for e in own)
        assert {place: t.labelled for place, t in tally.slices.get("place", {}).items()} == places
    # Who was thought dead and comes back has nothing to say: his counts are in already.
    before = log.panes()
    for stale in counting[:-1]:
        for _ in range(3):
            with contextlib.suppress(Superseded):
                await stale.turn(-10_000)
    assert log.panes() == before
    # What is not awaited any more is forgotten, and does not count when it is said late.
    await assessor.turn(10**9)
    late = replaced(story.predictions(0, 2, story.answers[:0]), keys=["e1"], times_ms=[50], scores=[0.5])
    await say(producer, topics.PREDICTIONS, late)
    for _ in range(5):
        await asyncio.sleep(0.05)
        await assessor.turn(10**9)
    assert log.panes() == before
    for each in counting:
        await each.close()


async def until_counted(assessor: Assessor, done: Callable[[], bool], watermark_ms: int = -10_000) -> None:
    """Turn after turn, until that holds or for some seconds."""
    for _ in range(200):
        await assessor.turn(watermark_ms)
        if done():
            return
        await asyncio.sleep(0.02)


async def test_measured_trainings_are_the_pipelines_own_and_count_once(
    kafka: EmbeddedBroker, producer: AIOKafkaProducer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.live.assessor._TURN_S", 0.0)
    declared = pipeline("timed", every(windows=1) | cost(per_loss=1, per_training_second=1, over="1d"))
    log = Log(declared, tmp_path / "timed")
    log.commit("events", [{"id": "e", "at": 0, "place": "x", "value": 0.0}], 0)
    job = next(each for each in examples.announced() if isinstance(each, JobRequested))
    done = next(each for each in examples.announced() if isinstance(each, JobSucceeded))
    for job_id, owner, purpose in (
        ("timed-1", "timed", "challenger"), ("timed-2", "timed", "challenger"),
        ("timed-trial", "timed", "trial"), ("other-1", "other", "challenger"),
    ):  # fmt: skip
        experiment = replaced(job.experiment, pipeline=owner, purpose=purpose)
        await say(producer, topics.JOBS, replaced(job, job_id=job_id, experiment=experiment))
    for job_id, seconds in (("timed-trial", 9.0), ("other-1", 8.0), ("timed-1", 2.5)):
        await say(producer, topics.JOBS, replaced(done, job_id=job_id, train_s=seconds))
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)

    async def counted(wanted: tuple[float, ...]) -> None:
        assessor = Assessor(declared, log.uri, connection, log.count)
        await assessor.take_up(Dataset(log.uri).newest_version())

        def live() -> Live:
            return recall(declared, log.uri, through_version=Dataset(log.uri).newest_version()).live

        await until_counted(assessor, lambda: len(live().trainings_s) >= len(wanted), 0)
        await assessor.close()
        assert live().trainings_s == wanted

    await counted((2.5,))
    await say(producer, topics.JOBS, replaced(done, job_id="timed-2", train_s=4.0))
    await counted((2.5, 4.0))


def test_a_fold_taken_up_from_the_log_or_a_snapshot_knows_the_same_of_the_live_model(tmp_path: Path) -> None:
    declared = pipeline("p", every(windows=1) | quality())
    log = Log(declared, tmp_path / "p")
    rng = np.random.default_rng(0)
    live, kept_at, said = Live(), 0, Assessment(model="p", dataset_version=0, watermark_ms=0, readings=())
    for number in range(12):
        event = {"id": f"e{number}", "at": number, "place": "x", "value": 0.0}
        commit = log.commit("events", [event], number)
        own = replaced(pane(number % 4, 50, rng), version=1 if number < 6 else 2)
        said = replaced(said, dataset_version=commit.version, panes=(own,), trainings_s=(float(number),))
        log.ledger.refresh()
        metadata = {"offsets": {}, "watermark_ms": number, JUDGED: msgspec.to_builtins(said)}
        nothing = pl.DataFrame(schema=log.ledger.schema)
        made = log.ledger.commit(nothing, advances={}, watermarks={}, metadata=metadata, marks=(JUDGED,))
        live = live.after(metadata)
        assert live.version == own.version
        assert assessment_of(read_commit(declared, log.uri, made).metadata) == said
        kept_at = made if number == 7 else kept_at
    newest = Dataset(log.uri).newest_version()
    assert recall(declared, log.uri, through_version=newest).live == live
    assert [p.start_ms for p in live.panes] == [0, 1_000, 2_000, 3_000]
    assert live.trainings_s == (7.0, 8.0, 9.0, 10.0, 11.0)
    keep(declared, log.uri, recall(declared, log.uri, through_version=kept_at))
    assert recall(declared, log.uri, through_version=newest).live == live
    # An older version's answers tell nothing any more.
    older = replaced(said, panes=(replaced(pane(9, 50, rng), version=1),), trainings_s=())
    assert live.after({JUDGED: msgspec.to_builtins(older)}) == live
