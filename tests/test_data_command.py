"""`tidemill data`: what it says of windows is what the log and the rows say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from infra.command import data as command
from infra.command.app import app
from infra.dataset import Dataset
from infra.exclusion import excluded_at
from infra.point_in_time import examples
from schemas.envelope import unwrap
from schemas.errors import InvalidConfiguration
from schemas.topics import WINDOWS
from schemas.window import WindowAmended, WindowClosed
from streams.announce.fold import Progress
from streams.announce.log import read_commit
from streams.closing import closing
from streams.summary.profiling import beginning
from streams.survey.coverage import coverage
from streams.survey.export import NotExported
from streams.survey.listing import NoSuchWindow, windows
from tests.test_announce import PIPELINE, PIPELINES, announcer, committed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    committed(PIPELINE, folder / "dataset" / "p", seed=7)
    (folder / "p.py").write_text("from tests.test_announce import PIPELINE\n")
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def invoke(*arguments: str) -> Any:
        monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(home))
        monkeypatch.setenv("TIDEMILL_WORKER__PIPELINE", str(home / "p.py"))
        return CliRunner().invoke(app, ["data", *arguments])

    return invoke


def answered(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[0])


def test_the_command_is_registered() -> None:
    assert command.data in [group.typer_instance for group in app.registered_groups]


@pytest.mark.parametrize("kind", PIPELINES)
def test_windows_are_those_that_were_announced_with_their_amendments(kind: str, tmp_path: Path) -> None:
    pipeline, uri = PIPELINES[kind], tmp_path / "p"
    committed(pipeline, uri, seed=7)
    fold = announcer(
        pipeline, uri, Progress(closing(pipeline.window), version=0, history=beginning(pipeline))
    )
    said = [
        unwrap(each.envelope)
        for version in range(1, Dataset(uri).newest_version() + 1)
        for each in fold.apply(read_commit(pipeline, str(uri), version))
        if each.topic == WINDOWS.name
    ]
    listed = {each.window: each for each in windows(pipeline, str(uri))}
    closed = {each.window: each for each in said if isinstance(each, WindowClosed)}
    amended = [each for each in said if isinstance(each, WindowAmended)]
    assert closed
    assert amended
    for window, statement in closed.items():
        assert listed[window].version <= statement.dataset_version
        newest = [each for each in (statement, *amended) if each.window == window][-1]
        assert listed[window].summary == newest.summary
    for each in amended:
        assert listed[each.window].amended[each.dataset_version] == each.late_rows


def test_labels_are_counted_as_the_examples_have_them_and_told_from_those_too_late(home: Path) -> None:
    uri = home / "dataset" / "p"
    version = Dataset(uri).newest_version()
    known = windows(PIPELINE, str(uri))
    watermark = Dataset(uri).commit(version).metadata["watermark_ms"]
    found = coverage(
        str(uri), PIPELINE.spec(), [k.window for k in known], version=version, watermark_ms=watermark
    )
    late = 0
    for listed, labels in zip(known, found, strict=True):
        rows = examples(
            Dataset(uri),
            PIPELINE.spec(),
            version=version,
            start_ms=listed.window.start_ms,
            end_ms=listed.window.end_ms,
        )
        assert labels.events == rows.height == listed.summary.rows
        assert labels.labelled == rows.get_column("outcome").count()
        assert labels.labelled + labels.too_late + labels.awaited <= labels.events
        late += labels.too_late
        if labels.delay_p99_ms is not None:
            assert labels.delay_p99_ms <= 2_000  # awaited for two seconds
    assert late, "some labels come after three seconds"


def test_contradicting_labels_are_counted(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    from infra.dataset import META
    from schemas.features import FeatureSpec, Label
    from schemas.window import Window

    meta: dict[str, Any] = {"_partition": 0, "_row": 0, "_tags": [[]] * 4}
    asked = {"_source": "asked", "id": list("abcd"), "_offset": [0, 1, 2, 3], "_time": [0, 1, 2, 3]}
    said = {"_source": "said", "id": list("aabc"), "_offset": [0, 1, 2, 3], "_time": [5, 6, 7, 500]}
    frames = [pl.DataFrame({**asked, **meta}), pl.DataFrame({**said, **meta, "y": [1.0, 0.0, 1.0, 1.0]})]
    rows = pl.concat(frames, how="diagonal").cast(dict(META))  # type: ignore[arg-type]
    write_deltalake(str(tmp_path / "d"), rows)
    spec = FeatureSpec(
        source="asked",
        key="id",
        columns=(),
        label=Label(source="said", column="y", key="id", within_ms=100),
    )
    (found,) = coverage(str(tmp_path / "d"), spec, [Window(0, 10)], version=0, watermark_ms=50)
    assert (found.events, found.labelled, found.too_late, found.awaited, found.conflicting) == (4, 2, 1, 1, 1)
    (later,) = coverage(str(tmp_path / "d"), spec, [Window(0, 10)], version=0, watermark_ms=200)
    assert later.awaited == 0


def test_list_show_and_diff_say_what_the_rows_say(home: Path, run: Any) -> None:
    told = answered(run("list", "--json", "--last", "3"))
    known = windows(PIPELINE, str(home / "dataset" / "p"))
    assert [each["window"] for each in told["windows"]] == [str(k.window) for k in known[-3:]]
    assert told["known"] == len(known)
    name = told["windows"][-1]["window"]
    shown = answered(run("show", name, "--json"))
    rows = Dataset(home / "dataset" / "p").rows(
        "events", version=told["version"], start_ms=shown["start_ms"], end_ms=shown["end_ms"]
    )
    values = rows.get_column("value").cast(pl.Float32)
    assert shown["columns"]["value"]["rows"] == rows.height == shown["summary"]["rows"]
    assert shown["columns"]["value"]["max"] == values.max()
    assert shown["columns"]["place"]["values"] == dict(rows.get_column("place").value_counts().iter_rows())
    assert set(shown["columns"]) >= {"heat", "heat_age", "mean_value"}
    other = told["windows"][-2]["window"]
    between = answered(run("diff", other, name, "--json"))
    assert between["rows"] == [told["windows"][-2]["summary"]["rows"], rows.height]
    assert between["tags"]["high"][1] == shown["summary"]["tags"]["high"]
    for arguments in (["list"], ["show", name], ["diff", other, name], ["excluded"]):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip()


def test_a_shift_is_found_by_diff_and_the_same_window_does_not_differ_from_itself(home: Path) -> None:
    from streams.summary.profile import profile_of
    from streams.survey.difference import Side, difference
    from streams.survey.portrait import portraits

    known = windows(PIPELINE, str(home / "dataset" / "p"))[0]
    profile = portraits(PIPELINE, str(home / "dataset" / "p"), [known.window], version=known.version)[0]
    own = Side(known.window, known.version, known.summary, profile)
    assert not any(each.moved for each in difference(own, own).columns)
    numbers = pl.DataFrame({"a": range(1_000), "b": [str(i % 3) for i in range(1_000)]})
    shifted = numbers.with_columns(pl.col("a") + 300)
    first, second = (profile_of(frame, ["a", "b"]) for frame in (numbers, shifted))
    found = difference(
        Side(known.window, 0, known.summary, first), Side(known.window, 0, known.summary, second)
    )
    assert {each.column: each.moved for each in found.columns} == {"a": True, "b": False}


def test_the_same_window_at_two_versions_shows_what_late_rows_brought(home: Path, run: Any) -> None:
    known = next(k for k in windows(PIPELINE, str(home / "dataset" / "p")) if k.amended)
    told = answered(
        run("diff", f"{known.window}@{known.version}", f"{known.window}@{known.newest_version}", "--json")
    )
    first, second = told["rows"]
    assert second - first == sum(known.amended.values())
    assert told["tags"]["late"][1] == sum(known.amended.values())


def test_exclude_and_include_decide_and_say_so(home: Path, run: Any) -> None:
    uri = str(home / "dataset" / "p")
    name = str(windows(PIPELINE, uri)[2].window)
    done = answered(run("exclude", name, "--reason", "the feed was down", "--by", "ann", "--json"))
    assert done["excluded"]
    assert [str(each.span) for each in excluded_at(uri)] == [name]
    listed = answered(run("list", "--json", "--last", "100"))["windows"]
    marked = [each["window"] for each in listed if each["excluded"]]
    assert marked == [name]
    assert answered(run("excluded", "--json"))["excluded"][0]["reason"] == "the feed was down"
    assert "the feed was down" in run("show", name).stdout
    refused = run("exclude", name, "--reason", "again")
    assert isinstance(refused.exception, InvalidConfiguration)
    answered(run("include", name, "--reason", "pushed again", "--json"))
    assert excluded_at(uri) == ()
    spanned = answered(run("exclude", "1970-01-02..1970-01-03T12:00", "--reason", "r", "--json"))
    assert spanned["window"] == "86400000-216000000"
    answered(run("include", "1970-01-02..1970-01-03T12:00", "--reason", "r", "--json"))


def test_a_name_that_is_no_window_is_told_what_one_looks_like(run: Any) -> None:
    for text in ("yesterday", "2013-13-01"):
        result = run("show", text)
        assert isinstance(result.exception, NoSuchWindow)
        assert "write it as its events do" in str(result.exception)
    result = run("show", "2013-01-01")
    assert "the newest closed is" in str(result.exception)


def test_export_writes_rows_or_examples_once_and_whole(home: Path, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "out" / "rows.parquet"
    uri = home / "dataset" / "p"
    window = windows(PIPELINE, str(uri))[1].window
    told = answered(run("export", str(file), "--span", str(window), "--json"))
    rows = Dataset(uri).rows(
        "events", version=told["version"], start_ms=window.start_ms, end_ms=window.end_ms
    )
    found = pl.read_parquet(file)
    assert found.select("id", "value").equals(rows.select("id", "value"))
    kept = json.loads(pl.read_parquet_metadata(file)["tidemill"])
    assert (kept["rows"], kept["sha256"]) == (rows.height, told["sha256"])
    assert isinstance(run("export", str(file)).exception, NotExported)
    labelled = answered(run("export", str(file), "--replace", "--examples", "--span", f"{window}", "--json"))
    assert labelled["examples"]
    assert {"outcome", "heat", "_tags"} <= set(pl.read_parquet(file).columns)
    assert sorted(p.name for p in file.parent.iterdir()) == ["rows.parquet"]
    assert "no source of p" in str(run("export", str(tmp_path / "x"), "--source", "nowhere").exception)


def test_export_gives_exactly_what_a_model_saw(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    from schemas.model import ModelPublished
    from schemas.selection import Reservoir
    from tests.test_reproduce import trained
    from tests.trainer_fixtures import write_dataset, write_model_code

    monkeypatch.syspath_prepend(str(write_model_code(tmp_path / "code")))
    write_dataset(tmp_path / "dataset")
    manifest = trained(tmp_path, None, selection=Reservoir(rows=500))
    sys.modules.pop("good", None)
    events = tmp_path / "events.ndjson"
    events.write_bytes(msgspec.json.encode({"data": ModelPublished(name="again", manifest=manifest)}))
    told = answered(
        run("export", str(tmp_path / "m.parquet"), "--model", "again/1", "--events", str(events), "--json")
    )
    assert (told["rows"], told["sha256"]) == (500, manifest.lineage.input_sha256)
    judged = answered(
        run(
            "export",
            str(tmp_path / "j.parquet"),
            *("--model", "again", "--judged", "--events", str(events), "--json"),
        )
    )
    assert judged["sha256"] == manifest.lineage.evaluation_sha256
