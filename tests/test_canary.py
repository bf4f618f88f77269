"""A canary's trial: what the labels decide, what the topics tell of it, and what ends it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas import topics
from schemas.canary import CanaryTerms
from schemas.features import Label
from schemas.job import Gate
from schemas.model import CanaryJudged, CanaryPromoted, CanaryPublished, CanaryWithdrawn, CurrentModel
from schemas.prediction import Predictions
from tests.client_fixtures import canaried, published
from tests.trainer_fixtures import SPAN_MS, write_dataset
from trainers.canary import judge
from trainers.needed import Needed
from trainers.registry import Registry
from trainers.trial import Answers

TERMS = CanaryTerms(share=0.1, pairs=200, longest_ms=1_000)
HISTORY, CURRENT, CANARIES = (t.name for t in (topics.MODELS, topics.MODELS_CURRENT, topics.MODELS_CANARIES))


def answered(rows: int, *, good: float, better: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Truth, and two versions' answers of which each knows so much of it."""
    random = np.random.default_rng(seed)
    truth = (random.random(rows) < 0.4).astype(float)
    noise = random.normal(size=(2, rows))
    knows = np.array([[good], [better]])
    current, canary = 1 / (1 + np.exp(-(knows * (truth - 0.4) + noise)))
    return truth, current, canary


@pytest.mark.parametrize("metric", ["auc", "log_loss", "accuracy"])
def test_a_better_canary_is_promoted_a_worse_one_withdrawn_with_their_numbers(metric: str) -> None:
    gate = Gate(metric=metric)  # type: ignore[arg-type]
    for good, better, outcome in ((0.5, 4.0, "promoted"), (4.0, 0.5, "withdrawn")):
        verdict = judge(*answered(450, good=good, better=better), terms=TERMS, gate=gate)
        assert verdict.outcome == outcome
        assert (verdict.judged.look, verdict.judged.pairs) == (2, 400)
        found = verdict.judged.comparison
        assert found is not None
        assert found.confidence == pytest.approx(1 - 0.05 / 4)
        assert (found.overall.low > 0) == (outcome == "promoted")
        assert f"{found.overall.value:+.4f} on 400 requests" in verdict.reason


def test_noise_goes_on_until_the_last_look_and_is_withdrawn_there() -> None:
    truth, current, _ = answered(1_700, good=1.0, better=1.0)
    canary = np.clip(current + np.random.default_rng(5).normal(size=1_700) * 0.01, 0, 1)
    outcomes = [
        judge(truth[:n], current[:n], canary[:n], terms=TERMS, gate=Gate()).outcome
        for n in (0, 199, 200, 400, 800, 1_599, 1_600, 1_700)
    ]
    assert outcomes == ["goes on"] * 6 + ["withdrawn"] * 2
    # One that need only be no worse than so much is as good as that.
    assert judge(truth, current, canary, terms=TERMS, gate=Gate(tolerance=0.02)).outcome == "promoted"


@hypothesis_settings(max_examples=20, deadline=None)
@given(rows=st.integers(200, 1_599), more=st.integers(0, 199), seed=st.integers(0, 100))
def test_a_look_takes_the_first_of_the_labels_so_more_of_them_change_nothing_before_the_next(
    rows: int, more: int, seed: int
) -> None:
    given_ = answered(2_000, good=1.0, better=1.2, seed=seed)
    look = max(n for n in TERMS.looks() if n <= rows)
    one = judge(*(each[:look] for each in given_), terms=TERMS, gate=Gate())
    assert judge(*(each[:rows] for each in given_), terms=TERMS, gate=Gate()) == one
    until = min(rows + more, 2 * look - 1)
    assert judge(*(each[:until] for each in given_), terms=TERMS, gate=Gate()) == one


def test_labels_of_one_class_say_nothing() -> None:
    ones = np.ones(1_600)
    assert judge(ones[:200], ones[:200], ones[:200], terms=TERMS, gate=Gate()).outcome == "goes on"
    verdict = judge(ones, ones, ones, terms=TERMS, gate=Gate())
    assert (verdict.outcome, verdict.judged.comparison) == ("withdrawn", None)


def test_answers_are_paired_by_event_and_labelled_by_the_rule_of_trainings(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", rows=200)
    event = canaried("m", 3, b"x", store="http://s/", beside=2)
    answers = Answers(event, Label(source="answered", column="late", key="id", within_ms=SPAN_MS))

    def said(version: int, keys: range, *, canary: bool = False, name: str = "m") -> None:
        answers.note(
            Predictions(
                service="s",
                name=name,
                version=version,
                sha256="",
                features_id="f",
                keys=[f"e{n}" for n in keys],
                times_ms=[n * 60_000 for n in keys],
                scores=[n / 1_000 + version for n in keys] if version > 3 else [n / 1_000 for n in keys],
                newest_event_ms=0,
                answered_ms=0,
                canary=canary,
            )
        )

    assert answers.labelled(str(tmp_path / "data")).is_empty()
    said(2, range(150))
    said(2, range(150))
    said(1, range(150, 200))
    said(2, range(150, 200), name="other")
    said(3, range(100, 200), canary=True)
    said(3, range(10))  # not as a canary's
    rows = answers.labelled(str(tmp_path / "data"))
    assert rows.get_column("key").to_list() == [f"e{n}" for n in range(100, 150)]
    assert rows.get_column("canary").to_list() == rows.get_column("current").to_list()
    assert set(rows.get_column("label")) == {0.0, 1.0}


def promoted(event: CanaryPublished, version: int, beside: int) -> CanaryPromoted:
    return CanaryPromoted(
        name=event.name,
        manifest=msgspec.structs.replace(event.manifest, version=version, canary=None),
        canary_version=event.manifest.version,
        from_version=beside,
        reason="better",
        judged=CanaryJudged(look=1, pairs=200),
        promoted_ms=1,
    )


def withdrawn(event: CanaryPublished) -> CanaryWithdrawn:
    return CanaryWithdrawn(
        name=event.name,
        version=event.manifest.version,
        sha256=event.manifest.artifact.sha256,
        reason="worse",
        judged=CanaryJudged(look=1, pairs=200),
        withdrawn_ms=1,
    )


def test_what_a_trainer_knows_of_a_trial_is_what_the_topics_tell() -> None:
    first, canary = published("m", 1, b"1", store="s/"), canaried("m", 2, b"2", store="s/", beside=1)
    registry = Registry()
    for topic in (HISTORY, CURRENT):
        registry.note(topic, first)
    registry.note(HISTORY, canary)
    assert registry.canaries() == registry.unsaid_canaries() == [canary]
    assert (registry.champion("m"), registry.next_version("m")) == (first.manifest, 3)
    assert registry.decided_by("") is None
    assert "job-2" in registry.over
    registry.note(CANARIES, canary)
    assert registry.unsaid_canaries() == []
    # It is ended once, and an old event that is said again is answered with the end.
    end = withdrawn(canary)
    registry.note(HISTORY, end)
    assert (registry.canaries(), registry.unsaid_canaries()) == ([], [end])
    registry.note(CANARIES, end)
    assert registry.unsaid_canaries() == []
    registry.note(CANARIES, canary)
    assert (registry.canaries(), registry.unsaid_canaries(), registry.overtaken()) == ([], [end], [])


def test_a_promotion_is_said_to_the_end_after_a_crash_between_its_topics() -> None:
    first, canary = published("m", 1, b"1", store="s/"), canaried("m", 2, b"2", store="s/", beside=1)
    end, registry = promoted(canary, 3, 1), Registry()
    for topic, event in ((HISTORY, first), (CURRENT, first), (HISTORY, canary), (CANARIES, canary)):
        registry.note(topic, event)
    registry.note(HISTORY, end)
    assert (registry.unsaid_current(), registry.unsaid_canaries()) == ([end], [end])
    assert (registry.champion("m"), registry.canaries(), registry.overtaken()) == (end.manifest, [], [])


def test_a_newer_model_overtakes_a_canary_and_one_that_nobody_trusted_signed_is_none() -> None:
    registry, canary = Registry(), canaried("m", 2, b"2", store="s/", beside=1)
    registry.note(HISTORY, published("m", 1, b"1", store="s/"))
    registry.note(HISTORY, canaried("m", 7, b"7", store="s/", beside=1), trusted=False)
    assert registry.canaries() == []
    assert registry.next_version("m") == 8
    registry.note(HISTORY, canary)
    registry.note(HISTORY, promoted(canary, 9, 1), trusted=False)  # nobody's promotion
    assert registry.canaries() == [canary]
    registry.note(HISTORY, published("m", 10, b"3", store="s/"))
    assert (registry.canaries(), registry.overtaken()) == ([], [canary])


def test_a_canarys_artifact_is_needed_and_the_current_one_stays() -> None:
    found = Needed()
    first, canary = published("m", 1, b"1", store="s/"), canaried("m", 2, b"2", store="s/", beside=1)
    events: list[tuple[str, CurrentModel | CanaryPublished]] = [
        (HISTORY, first),
        (CURRENT, first),
        (HISTORY, canary),
    ]
    for topic, event in events:
        found.note(topic, event)
    reasons = found.reasons(now_ms=2**45, keep_ms=0, keep_versions=1)
    assert reasons[first.manifest.artifact.sha256] == "m 1 is current"
    assert reasons[canary.manifest.artifact.sha256] == "m 2 is its newest canary"
