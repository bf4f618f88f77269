"""A job's process on another machine: assignment and reports in files. And as a Kubernetes Job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest

from infra.settings_model import Ray
from schemas.errors import InvalidConfiguration
from schemas.job import Resources
from tests.trainer_fixtures import a_job, write_dataset, write_model_code
from trainers.artifact import ArtifactStore
from trainers.assignment import Assignment, Began, Done, Progress, Report
from trainers.channel import packed, unpacked
from trainers.kubernetes import HOME, manifests
from trainers.ray import RayCluster


def test_what_is_appended_is_read_as_far_as_it_is_whole() -> None:
    said = [Began(pid=0, started_ms=1), Progress(step=1, of=2, metrics={"loss": 0.5})]
    content = b"".join(packed(each) for each in said)
    for cut in range(len(content)):
        found = list(unpacked(content[:cut], Report))  # type: ignore[arg-type]
        assert [report for report, _ in found] == said[: len(found)]
        taken = found[-1][1] if found else 0
        rest = [report for report, _ in unpacked(content[taken:], Report)]  # type: ignore[arg-type]
        assert [report for report, _ in found] + rest == said


def test_the_process_that_a_manifest_starts_trains_and_says_so(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset")
    code = write_model_code(tmp_path / "code")
    job = a_job(tmp_path / "dataset", "good:train", "far", resources=Resources(device="cpu", cpus=1))
    config, manifest = manifests(job, champion=None)
    order = msgspec.json.decode(config["data"]["assignment.json"], type=Assignment)
    here = msgspec.structs.replace(order, artifacts=str(tmp_path / "artifacts"), checkpoint="")
    (tmp_path / "assignment.json").write_bytes(msgspec.json.encode(here))

    _, *arguments, _, reports = manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    local = tmp_path / "home" / Path(reports).relative_to(HOME)
    done = subprocess.run(
        [sys.executable, *arguments, str(tmp_path / "assignment.json"), str(local)],
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trained on cpu" in done.stdout
    began, *progress, last = (report for report, _ in unpacked(local.read_bytes(), Report))  # type: ignore[arg-type]
    assert isinstance(began, Began)
    assert began.pid == 0
    assert {type(each) for each in progress} == {Progress}
    assert isinstance(last, Done)
    assert len(ArtifactStore(tmp_path / "artifacts").get(last.outcome.sha256)) == last.outcome.size_bytes


@pytest.mark.parametrize("job_id", ["flights-20130108T0500", "plain", "a/b c"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_a_job_as_kubernetes_takes_it(tmp_path: Path, job_id: str, gpus: int) -> None:
    resources = Resources(device="cuda" if gpus else "cpu", gpus=gpus, cpus=3, time_limit_s=90.5)
    job = a_job(tmp_path, "good:train", "far", job_id=job_id, resources=resources)
    rendered = manifests(job, champion=None)
    for each in rendered:
        kubernetes_validate.validate(each, "1.34", strict=True)
    config, manifest = rendered
    spec = manifest["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 91)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == ("2" if gpus else None)
    assert container["resources"]["limits"]["cpu"] == "3"
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["order"]["configMap"]["name"] == config["metadata"]["name"] == manifest["metadata"]["name"]
    order = msgspec.json.decode(config["data"]["assignment.json"], type=Assignment)
    assert (order.job, order.device) == (job, "cuda:0" if gpus else "cpu")


def test_an_assignment_that_no_configmap_holds_is_named(tmp_path: Path) -> None:
    job = a_job(tmp_path, "good:train", "wordy", params={"words": "x" * 2**20})
    with pytest.raises(InvalidConfiguration, match="ConfigMap"):
        manifests(job, champion=None)


async def test_what_was_submitted_is_left_until_it_is_concluded(tmp_path: Path) -> None:
    cluster = RayCluster(Ray(), tmp_path)
    assert cluster.left(tmp_path, 1) is None
    order = Assignment(job=a_job(tmp_path, "good:train", "m"), attempt=1, artifacts="", champion=None)
    (tmp_path / "attempt-1.json").write_bytes(msgspec.json.encode(order))
    assert cluster.left(tmp_path, 1) == order
    (tmp_path / "attempt-1.json").write_bytes(msgspec.json.encode(order)[:-5])
    assert cluster.left(tmp_path, 1) is None
    cluster.conclude(tmp_path, 1)
    assert cluster.left(tmp_path, 1) is None
    await cluster.stop()
