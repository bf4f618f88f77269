"""Container file, compose file and manifests are what their tools take, and agree with what they start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from infra.kafka import KAFKA_VERSION
from infra.settings import Settings
from infra.settings import load as load_settings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "infra" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE_SCHEMA = ROOT / "tests" / "compose-spec.json"
"""The compose specification's own schema, as its repository had it in June 2026 (Apache-2.0)."""


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


def test_hadolint_has_nothing_to_say_about_the_container_file() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, DEPLOY / "Containerfile"], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_the_image_is_built_from_the_lock_and_never_runs_as_root() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert "infra/bootstrap.py" in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001"]
    assert ".venv" in (DEPLOY / "Containerfile.dockerignore").read_text().split()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_file_that_the_lock_pins_is_there_for_the_images_python(machine: str, tmp_path: Path) -> None:
    """The very step of the build, by the very tool, down to the choice of each file; nothing is installed."""
    (python,) = set(re.findall(r"^FROM python:([\d.]+)-slim", (DEPLOY / "Containerfile").read_text(), re.M))
    chosen = ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_28"]
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("uv"), "pip", "install", "--dry-run", "--target", tmp_path),
            *(*chosen, "--require-hashes", "--requirement", ROOT / "requirements.lock"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {" + torch==", " + polars==", " + deltalake=="} <= {
        line[: line.find("==") + 2] for line in done.stderr.splitlines()
    }


def test_the_compose_file_is_valid_and_starts_the_broker_that_is_tested() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    jsonschema.Draft7Validator(json.loads(COMPOSE_SCHEMA.read_text())).validate(compose)
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    for service in compose["services"].values():
        assert set(service.get("depends_on", {})) <= compose["services"].keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        # Nothing is open to other machines.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_every_part_has_a_service_in_the_compose_file_and_a_manifest() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    started = {
        name: service["command"][0] for name, service in compose["services"].items() if name != "kafka"
    }
    parts = {"topics", "worker", "trainer", "door", "page"}
    assert started == {part: part for part in parts}
    assert all("healthcheck" in compose["services"][part] for part in parts - {"topics"})
    pods = {each["metadata"]["name"]: each for each in pod_makers()}
    assert pods.keys() == parts
    for part in parts - {"topics"}:
        (container,) = pods[part]["spec"]["template"]["spec"]["containers"]
        assert container["args"][0] == part
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    # What somebody must know to be let in comes by a secret, never by the settings that all may read.
    tokens = [
        v["secret"]["secretName"]
        for v in pods["door"]["spec"]["template"]["spec"]["volumes"]
        if "secret" in v
    ]
    assert "door" in tokens
    (page,) = pods["page"]["spec"]["template"]["spec"]["containers"]
    (token,) = page["env"]
    assert token == {
        "name": "TIDEMILL_PAGE__TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "page", "key": "token"}},
    }


def pod_makers() -> list[dict[str, Any]]:
    objects = [each for file in MANIFESTS for each in documents(file)]
    return [each for each in objects if each["kind"] in ("Job", "StatefulSet", "Deployment")]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_is_what_the_kubernetes_api_takes(file: Path) -> None:
    for manifest in documents(file):
        if manifest["kind"] != "Kustomization":
            kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    others = {file.name for file in MANIFESTS} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == others


def test_what_manifests_refer_to_is_there() -> None:
    objects = [each for file in MANIFESTS for each in documents(file) if each["kind"] != "Kustomization"]
    named = {(each["kind"], each["metadata"]["name"]) for each in objects}
    (settings,) = (each["data"] for each in objects if each["kind"] == "ConfigMap")
    for each in pod_makers():
        pod = each["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in named
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            for source in container["envFrom"]:
                assert ("ConfigMap", source["configMapRef"]["name"]) in named
            ports = {port["name"] for port in container.get("ports", ())}
            probes = [container[name] for name in container if name.endswith("Probe")]
            assert {probe["httpGet"]["port"] for probe in probes} <= ports
            # A probe that is given up before the process has had its own patience says nothing.
            patience_s = Settings().metrics.patience_ms / 1000
            assert all(probe["timeoutSeconds"] > patience_s for probe in probes)
            security = container["securityContext"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"]
            assert not security["allowPrivilegeEscalation"]
            written = [re.fullmatch(r"\$\((\w+)\)", word) for word in container["args"]]
            assert {found[1] for found in written if found} <= settings.keys()
        assert pod["securityContext"]["runAsNonRoot"]
        if each["kind"] != "Job":
            service = each["spec"].get("serviceName", each["metadata"]["name"])
            assert ("Service", service) in named
            assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]


def environments() -> dict[str, dict[str, str]]:
    (compose,) = documents(DEPLOY / "compose.yaml")
    (config,) = documents(DEPLOY / "kubernetes" / "settings.yaml")
    (worker, *_) = documents(DEPLOY / "kubernetes" / "worker.yaml")
    named = {each["name"]: "worker-0" for each in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    said = {
        name: value.partition(":-")[2].rstrip("}") if value.startswith("${") else value
        for name, value in compose["x-tidemill"]["environment"].items()
    }
    return {"compose": said, "kubernetes": config["data"] | named}


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_every_setting_in_the_environment_is_one_and_is_read(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environments()[where].items():
        assert name.startswith("TIDEMILL_")
        monkeypatch.setenv(name, value)
    settings = load_settings()  # refuses a name or a value that is none
    assert settings.worker.metrics_port == settings.trainer.metrics_port == 9100
    assert settings.metrics.host == settings.store.host == "0.0.0.0"
    assert str(settings.store.public_url).endswith(":8700/")
    assert settings.door.metrics_port == settings.page.metrics_port == 9100
    assert settings.door.host == settings.page.host == "0.0.0.0"
    assert settings.door.tokens_file is not None


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_each_port_of_a_part_is_the_one_that_its_settings_open(where: str) -> None:
    said = environments()[where]
    opened = {part: int(said[f"TIDEMILL_{part.upper()}__PORT"]) for part in ("door", "page")}
    opened["trainer"] = int(said["TIDEMILL_STORE__PORT"])
    if where == "compose":
        (compose,) = documents(DEPLOY / "compose.yaml")
        ports = {
            name: s["ports"][0].split(":")[-1] for name, s in compose["services"].items() if "ports" in s
        }
        assert {part: int(port) for part, port in ports.items()} == opened
        return
    (network,) = documents(DEPLOY / "kubernetes" / "network.yaml")
    let_in = {each["port"] for each in network["spec"]["ingress"][0]["ports"]}
    assert let_in == {9100, *opened.values()}
    for each in pod_makers():
        part = each["metadata"]["name"]
        (container,) = each["spec"]["template"]["spec"]["containers"]
        own = {port["containerPort"] for port in container.get("ports", ())} - {9100}
        assert own == ({opened[part]} if part in opened else set())
