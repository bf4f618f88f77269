"""What the page knows: counts of all, the newest in full, and a size that does not grow with what comes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.page.view import SECTIONS, View
from schemas.contract import Announcement
from schemas.dead_letter import DeadLetter
from schemas.decision import Decision
from schemas.envelope import wrap
from schemas.examples import announced
from schemas.job import JobFailed, JobProgress, JobRequested, JobStarted
from schemas.model import AdoptionRefused, ModelAdopted, ModelPublished, ModelRefused
from schemas.standing import PartitionStands, PipelineStands
from schemas.window import Window, WindowAmended, WindowClosed

EXAMPLES: dict[type, Any] = {type(example): example for example in announced()}
FILES = Path(__file__).parent.parent / "infra/page/static"
replace = msgspec.structs.replace


def told(view: View, *events: Announcement, at_ms: int = 0) -> None:
    for offset, event in enumerate(events):
        view.note(wrap(event, source="/test", time_ms=at_ms), written_ms=at_ms, offset=offset)


def stands(version: int, at_ms: int, *, upto: int) -> PipelineStands:
    partition = PartitionStands(topic="events", partition=0, next=upto, watermark_ms=at_ms)
    return replace(
        EXAMPLES[PipelineStands],
        dataset_version=version,
        committed_ms=at_ms,
        partitions=[partition],
        watermark_ms=at_ms,
    )


def test_rate_and_lag_are_those_between_two_standings_and_before_the_topics_end() -> None:
    now_ms = 12_000
    view = View(now_ms=lambda: now_ms)
    told(view, stands(1, 10_000, upto=100), stands(2, 12_000, upto=500))
    view.ends_are({("events", 0): 530})
    (pipeline,) = view.as_json("road")["pipelines"]
    (partition,) = pipeline["partitions"]
    assert (partition["rate"], partition["lag"], partition["next"]) == (200.0, 30, 500)
    assert (pipeline["at_ms"], pipeline["rates"]) == ([12_000], {"events": [200.0]})
    # An older one, told again by a restarted worker, takes nothing back; silence is a rate of 0.
    told(view, stands(1, 10_000, upto=100))
    now_ms = 60_000
    assert view.as_json("road")["pipelines"][0]["partitions"][0]["rate"] == 0.0
    told(view, stands(3, 60_000, upto=600))
    assert view.as_json("road")["pipelines"][0]["rates"]["events"][1:3] == [0.0, 0.0]


def test_a_repeat_changes_nothing_and_every_example_is_taken() -> None:
    view = View()
    for _ in range(3):
        told(view, *announced())
    said = {section: view.as_json(section) for section in SECTIONS}
    json.dumps(said)
    (windows,) = said["windows"]["pipelines"]
    assert (windows["closed"], windows["amended"], windows["late_rows"]) == (1, 1, 2)
    assert said["letters"]["total"] == 1
    assert said["decisions"]["pipelines"][0]["verdicts"] == {"yes": 1, "no": 0, "not_evaluated": 0}
    assert said["jobs"]["requested"] == 1
    assert [(row["name"], row["version"]) for row in said["models"]["models"]] == [
        ("flights", 5),
        ("flights", 3),
        ("flights", 2),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_events_are_read_none_ends_the_page(seed: int) -> None:
    """Topics are read side by side, and the oldest events expire: an end may come without its beginning."""
    events = list(announced())
    random.Random(seed).shuffle(events)
    view = View()
    for event in events:
        told(view, event)
        json.dumps({section: view.as_json(section) for section in SECTIONS})
    assert view.as_json("windows")["pipelines"][0]["closed"] == 1


def test_an_amended_window_is_shown_as_it_is_by_now() -> None:
    view = View()
    closed, amended = EXAMPLES[WindowClosed], EXAMPLES[WindowAmended]
    told(view, closed, replace(amended, summary=replace(amended.summary, rows=844)))
    (row,) = view.as_json("windows")["pipelines"][0]["windows"]
    assert (row["rows"], row["amended"], row["late_rows"], row["dropped"]) == (844, 1, 2, 3)
    (rules,) = view.as_json("rules")["pipelines"]
    assert rules["tags"]["night"] == {"rows": 61, "share": 61 / 844}
    assert (rules["dropped"], rules["rejected"]) == ({"dedupe": 3}, {"between(distance)": 1})


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (b'{"a": "\xc3\xbc"}', "text", '{"a": "ü"}'),
        (b"\xff\x00\x01", "hex", "ff 00 01"),
        (b"a" * 2_047 + "ü".encode() + b"b", "text", "a" * 2_047),
        (None, "text", ""),
    ],
    ids=["text", "no text", "cut within a character", "not in the letter"],
)
def test_a_letter_shows_the_beginning_of_its_bytes(value: bytes | None, form: str, shown: str) -> None:
    view = View()
    told(view, replace(EXAMPLES[DeadLetter], record_value=value))
    (letter,) = view.as_json("letters")["letters"]
    assert (letter["form"], letter["bytes"]) == (form, shown)
    assert letter["size_bytes"] == (None if value is None else len(value))


def test_the_page_holds_no_more_after_a_year_than_after_a_month() -> None:
    """Not of the events' number, but of what is shown: each section as JSON, and all that the fold keeps."""
    view, sizes = View(), []
    for number, event in enumerate(_year(days=900)):
        view.note(wrap(event, source="/test", time_ms=number), written_ms=number, offset=number)
        if isinstance(event, WindowClosed) and event.dataset_version in (500, 899):
            shown = {section: len(json.dumps(view.as_json(section))) for section in SECTIONS}
            sizes.append(shown | _held(view))
    half, whole = sizes
    for name in whole:
        assert whole[name] <= half[name] * 1.05 + 200, name
    assert max(len(json.dumps(view.as_json(section))) for section in SECTIONS) < 600_000
    # What is counted is counted of all.
    assert view.as_json("windows")["pipelines"][0]["closed"] == 900
    assert view.as_json("letters")["total"] == 900
    assert view.as_json("jobs")["states"] == {"refused": 450, "published": 450}
    assert view.as_json("jobs")["requested"] == 900


def _held(view: View) -> dict[str, int]:
    return {
        "jobs": len(view.jobs.jobs),
        "ids": len(view.jobs._ids),
        "points": sum(len(job.curve) for job in view.jobs.jobs.values()),
        "versions": len(view.models.board._said),
        "refused adoptions": len(view.models.board._refused),
    }


def _year(days: int) -> Iterator[Announcement]:
    """Each day a window, its decision, a letter, a job published or refused, and what services say."""
    base = EXAMPLES[ModelPublished]
    for day in range(days):
        window = Window(day * 86_400_000, (day + 1) * 86_400_000)
        job = f"job-{day:05}"
        yield stands(day, day * 1_000, upto=day * 900)
        yield replace(EXAMPLES[DeadLetter], offset=day)
        yield replace(EXAMPLES[JobRequested], job_id=job)
        yield replace(EXAMPLES[JobStarted], job_id=job)
        for step in range(12):
            yield JobProgress(job_id=job, attempt=1, step=step, of=12, metrics={"loss": 1.0 / (step + 1)})
        if day % 2:
            yield replace(EXAMPLES[ModelRefused], job_id=job)
        else:
            lineage = replace(base.manifest.lineage, job_id=job)
            sha256 = hashlib.sha256(job.encode()).hexdigest()
            manifest = replace(
                base.manifest,
                version=day + 1,
                lineage=lineage,
                artifact=replace(base.manifest.artifact, sha256=sha256),
            )
            yield replace(base, manifest=manifest)
            said = {"version": day + 1, "sha256": sha256}
            yield replace(EXAMPLES[ModelAdopted], adopted_ms=day, **said)
            yield replace(EXAMPLES[AdoptionRefused], refused_ms=day, service="other", **said)
        yield replace(EXAMPLES[Decision], window=window, job_id=job)
        yield replace(EXAMPLES[WindowClosed], window=window, dataset_version=day)


def test_a_job_that_failed_is_counted_once_whatever_is_said_of_it_later() -> None:
    view = View()
    told(view, EXAMPLES[JobRequested], EXAMPLES[JobStarted], EXAMPLES[JobFailed], EXAMPLES[JobProgress])
    assert view.as_json("jobs")["states"] == {"failed": 1}


# What was taken over from others.


def test_the_plots_library_is_the_published_one_with_its_licence() -> None:
    """uPlot 1.6.32, of the npm package `uplot`, whose integrity is sha512-
    KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==
    """
    published = {
        "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (FILES / "vendor/uplot").iterdir()
    }
    assert found == published
    assert "The MIT License" in (FILES / "vendor/uplot/LICENSE").read_text()


def test_there_is_a_file_for_each_view_and_none_asks_another_host() -> None:
    assert {path.stem for path in (FILES / "views").glob("*.js")} == set(SECTIONS)
    own = [path for path in FILES.rglob("*.*") if "vendor" not in path.parts]
    assert [
        path.name for path in own if "http" in path.read_text().replace("http://www.w3.org/2000/svg", "")
    ] == []
