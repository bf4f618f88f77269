"""A model is led back to its rows to the byte and comes out again from its event; a change is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import polars as pl
import pytest
import torch
from deltalake import write_deltalake
from typer.testing import CliRunner

from infra.command import lineage as command
from infra.command.app import app
from infra.history import by_weights, pick, published_in
from infra.openlineage import run_event, start_event
from infra.why import NothingKnown
from schemas.errors import InvalidConfiguration
from schemas.model import Artifact, Manifest, ModelPublished
from schemas.selection import Hard, Selection, Whole
from tests.s3_fixtures import s3_server
from tests.trainer_fixtures import ROWS, SPAN_MS, STEP_MS, a_job, write_dataset, write_model_code
from trainers.artifact import ArtifactStore
from trainers.assignment import Assignment
from trainers.reproduce import CannotReproduce, reproduce
from trainers.work import perform


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reproduce")
    sys.path.insert(0, str(write_model_code(folder / "code")))
    write_dataset(folder / "dataset")
    threads = torch.get_num_threads()
    yield folder
    sys.path.remove(str(folder / "code"))
    sys.modules.pop("good", None)
    torch.set_num_threads(threads)


def trained(folder: Path, champion: Manifest | None, *, selection: Selection, warm: bool = False) -> Manifest:
    """What a trainer would publish, without the trainer."""
    job = a_job(
        folder / "dataset", "good:train", "again", params={"steps": 8}, selection=selection, warm_start=warm
    )
    done = perform(
        Assignment(job=job, attempt=1, artifacts=str(folder / "store"), champion=champion), lambda *_: None
    )
    assert done is not None
    return Manifest(
        name="again",
        version=1 if champion is None else champion.version + 1,
        artifact=Artifact(uri="http://127.0.0.1/x", size_bytes=done.size_bytes, sha256=done.sha256),
        architecture=done.architecture,
        config=done.config,
        inputs=done.inputs,
        outputs=[],
        example=done.example,
        champion=done.champion,
        challenger=done.challenger,
        lineage=done.lineage,
        published_ms=1_764_000_000_000,
    )


@pytest.fixture(scope="module")
def models(folder: Path) -> list[Manifest]:
    """A first model, and one that began from it on rows that were hard for it."""
    first = trained(folder, None, selection=Whole())
    return [first, trained(folder, first, selection=Hard(rows=1_000), warm=True)]


@pytest.fixture(scope="module")
def events(folder: Path, models: list[Manifest]) -> Path:
    """Through JSON, as the topic would hold it."""
    file = folder / "events.ndjson"
    said = [ModelPublished(name="again", manifest=manifest) for manifest in models]
    lines = [b'{"id": "x", "data": %s}' % msgspec.json.encode(event) for event in said]
    file.write_bytes(b"\n".join([*lines, b"", b'{"data": {"job_id": "j"}}']))
    return file


def again(folder: Path, manifest: Manifest, models: list[Manifest], **options):
    champion = by_weights(models, "again", manifest.lineage.champion_sha256)
    return reproduce(manifest, champion=champion, store=ArtifactStore(folder / "store"), **options)


def test_a_model_comes_out_again_from_its_event_to_the_bit(folder: Path, events: Path) -> None:
    models = published_in(events)
    for manifest in models:
        found = again(folder, manifest, models)
        assert found.same, found
        assert found.differs_at is None
        assert {c.name: c.same for c in found.checks} == dict.fromkeys(
            ("libraries", "hardware", "input", "evaluation", "code", "weights"), True
        )
    assert models[1].lineage.parent_sha256 == models[0].artifact.sha256
    assert models[1].lineage.rows == 1_000


def test_a_row_that_was_changed_is_seen_in_the_input_and_in_the_weights(
    folder: Path, models: list[Manifest], tmp_path: Path
) -> None:
    """As if somebody had written the dataset anew: one label of thousands is another."""
    rows = pl.read_delta(str(folder / "dataset"), version=1)
    one = (pl.col("_source") == "answered") & (pl.col("id") == "e7")
    changed = rows.with_columns(pl.when(one).then(1 - pl.col("late")).otherwise("late").alias("late"))
    for part in (changed.head(1), changed.slice(1)):
        write_deltalake(str(tmp_path / "dataset"), part, mode="append")
    moved = msgspec.json.decode(
        msgspec.json.encode(models[0]).replace(
            str(folder / "dataset").encode(), str(tmp_path / "dataset").encode()
        ),
        type=Manifest,
    )
    found = again(folder, moved, models)
    assert not found.same
    assert found.differs_at == "input"
    told = {check.name: check for check in found.checks}
    assert told["evaluation"].same
    assert told["weights"].same is False
    assert "tensors differ" in told["weights"].detail
    assert [c.name for c in again(folder, moved, models, retrain=False).checks][-1] == "evaluation"


def test_other_code_and_other_libraries_are_named(folder: Path, models: list[Manifest]) -> None:
    origin = models[0].lineage
    other = msgspec.structs.replace(
        origin, code_sha256="0" * 64, libraries={**origin.libraries, "torch": "1.0"}
    )
    found = again(folder, msgspec.structs.replace(models[0], lineage=other), models)
    told = {check.name: check for check in found.checks}
    assert told["libraries"].same is False
    assert "torch 1.0 then" in told["libraries"].detail
    assert told["code"].same is False
    assert found.differs_at == "libraries"
    assert found.same  # bytes and weights are what counts, and they came out alike


def test_a_model_of_a_gpu_is_compared_by_its_rows_alone(folder: Path, models: list[Manifest]) -> None:
    origin = msgspec.structs.replace(models[0].lineage, device="cuda:0 NVIDIA H100")
    found = again(folder, msgspec.structs.replace(models[0], lineage=origin), models)
    assert found.checks[-1].same is None
    assert "only a training on a CPU" in found.checks[-1].detail


def test_what_is_gone_is_said(folder: Path, models: list[Manifest]) -> None:
    old = msgspec.structs.replace(models[0].lineage, experiment=None)
    with pytest.raises(CannotReproduce, match="older trainer"):
        again(folder, msgspec.structs.replace(models[0], lineage=old), models)
    with pytest.raises(CannotReproduce, match="no event here tells"):
        reproduce(models[1], champion=None, store=ArtifactStore(folder / "store"))
    with pytest.raises(CannotReproduce, match="is not in"):
        reproduce(models[1], champion=models[0], store=ArtifactStore(folder / "nowhere"))


def test_the_offsets_are_of_all_that_was_read_and_of_nothing_else(models: list[Manifest]) -> None:
    """Trained on three quarters; a label is read up to the judged rows, an hour after its event."""
    cut = ROWS * 3 // 4
    assert cut * STEP_MS == SPAN_MS * 3 // 4
    ranges = {(r.topic, r.partition): (r.start, r.end) for r in models[0].lineage.offsets}
    assert ranges["asked", 0] == ranges["asked", 1] == (0, cut // 2)
    assert ranges["answered", 0] == ranges["answered", 1] == (0, (cut - 60) // 2)
    assert ranges["air", 0] == ranges["air", 1] == (0, cut // 60)


def test_the_commands_say_it_to_people_and_to_programs(
    folder: Path, models: list[Manifest], events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_PATHS__ARTIFACTS", str(folder / "store"))
    runner = CliRunner()

    def run(*arguments: str) -> tuple[int, str]:
        result = runner.invoke(app, [*arguments, "--events", str(events)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout

    code, shown = run("lineage", "again", "--json")
    assert code == 0
    assert msgspec.json.decode(shown, type=Manifest) == models[1]
    code, shown = run("reproduce", "again", "--version", "1", "--json")
    told = json.loads(shown)
    assert (code, told["same"], told["differs_at"], told["version"]) == (0, True, None, 1)
    assert command.DIFFERS == 3


def test_a_model_is_made_again_where_its_weights_lie_on_s3_alone(
    folder: Path, models: list[Manifest], events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second began from the first and chose its rows by it: both weights are fetched and checked."""
    store = ArtifactStore(folder / "store")
    monkeypatch.setenv("TIDEMILL_PATHS__ARTIFACTS", str(tmp_path / "new"))
    arguments = ["reproduce", "again", "--version", "2", "--json", "--events", str(events)]
    with s3_server(tmp_path / "s3") as server:
        for name, value in {**server.settings, "retries": 0, "timeout_s": 5}.items():
            monkeypatch.setenv(f"TIDEMILL_STORE__{name.upper()}", str(value))
        for each in models:
            digest = each.artifact.sha256
            server.put(f"flights/{digest}.safetensors", store.get(digest))
        done = CliRunner().invoke(app, arguments)
        told = json.loads(done.stdout)
        assert (done.exit_code, told["same"], told["differs_at"], told["version"]) == (0, True, None, 2)
        assert {each.sha256 for each in ArtifactStore(tmp_path / "new").kept()} == {
            each.artifact.sha256 for each in models
        }
        # The folder has them now and is asked first: a bucket that lies changes nothing.
        for path in server.files:
            path.write_bytes(b"other weights")
        assert CliRunner().invoke(app, [*arguments, "--rows-only"]).exit_code == 0
        monkeypatch.setenv("TIDEMILL_PATHS__ARTIFACTS", str(tmp_path / "newer"))
        refused = CliRunner().invoke(app, arguments)
        assert isinstance(refused.exception, CannotReproduce)
        assert models[0].artifact.sha256 in str(refused.exception)


def test_the_tree_names_all_that_the_model_comes_from(models: list[Manifest]) -> None:
    from io import StringIO

    from rich.console import Console

    shown = StringIO()
    Console(file=shown, width=500).print(command._tree(models[1]), highlight=False)
    text = shown.getvalue()
    origin = models[1].lineage
    assert origin.input_sha256
    for said in (
        origin.input_sha256,
        origin.evaluation_sha256,
        origin.code_sha256,
        origin.parent_sha256,
        origin.job_id,
        "asked partition 0: 0 to 1,500",
        '"policy":"hard"',
        "test: 1970-01-01 00:00 to 1970-01-03 02:00 UTC",
        origin.libraries["torch"],
        origin.hardware["cores"],
        "seed 3",
    ):
        assert said in text, said


def test_a_file_of_events_that_is_none_and_a_model_that_is_not_there_are_said(
    tmp_path: Path, events: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text('{"a": 1}\nnot json\n')
    with pytest.raises(InvalidConfiguration, match="broken:2"):
        published_in(broken)
    with pytest.raises(InvalidConfiguration, match="cannot read"):
        published_in(tmp_path / "nowhere")
    with pytest.raises(NothingKnown, match="published are: again"):
        pick(published_in(events), "other", None)
    with pytest.raises(NothingKnown, match="has no version 9; it has 1, 2"):
        pick(published_in(events), "again", 9)


def as_openlineage_has_it(event: dict[str, Any]) -> None:
    """It holds to the specification's own schemas, each facet to the one that it names."""
    documents = json.loads((Path(__file__).parent / "openlineage-spec.json").read_text())

    def hold(content: Any, uri: str) -> None:
        schema = {"$ref": uri, "$defs": documents}  # each bears its own address, by which it is found here
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(content)

    hold(event, event["schemaURL"])
    facets = [event["run"]["facets"], event["job"]["facets"]]
    facets += [each["facets"] for each in (*event["inputs"], *event["outputs"])]
    standard = [
        facet for each in facets for facet in each.values() if "openlineage.io" in facet["_schemaURL"]
    ]
    for facet in standard:
        hold(facet, facet["_schemaURL"])
    assert {facet["_schemaURL"].partition("#")[0] for facet in standard} < documents.keys()
    with pytest.raises(jsonschema.ValidationError):
        hold({**event, "run": {"facets": {}}}, event["schemaURL"])


def test_an_openlineage_event_is_the_same_for_the_same_model_and_names_what_went_in(
    models: list[Manifest],
) -> None:
    event = run_event(models[0])
    assert event == run_event(models[0])
    for each in (event, start_event(models[0], 1)):
        as_openlineage_has_it(each)
    assert event["run"]["runId"] != run_event(models[1])["run"]["runId"]
    assert [i["name"] for i in event["inputs"]][1:] == ["air", "answered", "asked"]
    facets = [
        event["run"]["facets"],
        event["job"]["facets"],
        *(d["facets"] for d in event["inputs"] + event["outputs"]),
    ]
    assert all({"_producer", "_schemaURL"} <= f.keys() for each in facets for f in each.values())
    assert json.loads(json.dumps(event)) == event
