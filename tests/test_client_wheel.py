"""The wheel that services install, in an environment that holds what it declares and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import infra
import schemas
from infra.kafka import EmbeddedBroker, connect_to
from infra.kafka.topics import ensure
from infra.settings_model import Kafka
from schemas import topics
from schemas.model import AdoptionRefused, ModelAdopted
from tests.client_fixtures import QUESTION, Cluster, answers, published, serving, weights

HOSTILE = 'raise ImportError("this is the service\'s own schemas.py, and nobody asked for it")\n'

SERVICE = """
import asyncio, json, sys
import tidemill
from tidemill import topics
from tidemill.client import ModelFollower
from tidemill.envelope import Envelope, open_record

try:
    import schemas
except ImportError as error:
    assert "own schemas.py" in str(error)
else:
    raise AssertionError("the service's own module is hidden")

envelope = Envelope(id="1", type="t", source="/s", subject="x", time_ms=1, data=b"{}")
assert open_record(*envelope.record()) == envelope
assert topics.topic("tidemill.models.current").settings["cleanup.policy"] == "compact"

async def main(bootstrap_servers, store, name, question):
    async with ModelFollower(
        name,
        client={"bootstrap_servers": bootstrap_servers},
        stores=[store],
        service="clean",
        cache_dir="cache",
    ) as follower:
        model = await asyncio.wait_for(follower.settled(), 60)
        return {
            "file": tidemill.__file__,
            "version": model and model.version,
            "answers": model and list(model.predict(question)),
            "refusal": follower.last_refusal and follower.last_refusal.reason,
            "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
        }

print(json.dumps(asyncio.run(main(*sys.argv[1:4], json.loads(sys.argv[4])))))
"""


PRODUCER_PAGE = Path(infra.__file__).parent / "pages" / "how_to" / "send_from_a_producer.md"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from `schemas/` alone, with nothing fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    source = Path(schemas.__file__).parent
    shutil.copytree(
        source, folder / "schemas", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    )
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--offline", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--python", sys.executable, "--out-dir", str(folder / "dist"), str(folder / "schemas")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (found,) = (folder / "dist").glob("tidemill-*.whl")
    return found


def declared(wheel: Path, *extras: str) -> dict[str, Distribution]:
    """All distributions that the wheel's own metadata ask for, directly or through others."""
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        lines = content.read(metadata).decode().splitlines()
    found: dict[str, Distribution] = {}

    def add(requirements: Iterable[str], extras: Iterable[str]) -> None:
        for requirement in map(Requirement, requirements):
            marker = requirement.marker
            wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if wanted and requirement.name not in found:
                found[requirement.name] = distribution(requirement.name)
                assert requirement.specifier.contains(found[requirement.name].version), requirement
                add(found[requirement.name].requires or [], requirement.extras)

    add((line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")), extras)
    return found


def environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """A folder to import from: the wheel, and links to the distributions that it declares."""
    folder.mkdir()
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"),
            *("--python", sys.executable, "--target", str(folder), str(wheel)),
        ],
        check=True,
    )
    for each in declared(wheel, *extras).values():
        for top in {file.parts[0] for file in each.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(each.locate_file(top))))
    return folder


async def run_service(folder: Path, site: Path, *arguments: str, program: str = SERVICE) -> dict[str, object]:
    """Run the service beside its own `schemas.py`; `-S` keeps this project's environment out of sight."""
    await asyncio.to_thread(folder.mkdir)
    await asyncio.to_thread((folder / "schemas.py").write_text, HOSTILE)
    await asyncio.to_thread((folder / "service.py").write_text, program)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "service.py", *arguments),
        cwd=folder,
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1])


@pytest.fixture
async def cluster(kafka: EmbeddedBroker) -> AsyncIterator[Cluster]:
    await ensure(topics.TOPICS, connect_to(Kafka(), kafka.bootstrap_servers))
    async with Cluster(kafka.bootstrap_servers) as cluster:
        yield cluster


async def test_a_service_with_its_own_schemas_module_follows_a_model(
    cluster: Cluster, wheel: Path, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name, content = topic("model"), weights(1)
    site = environment(tmp_path / "site", wheel, "torch")
    async with serving(tmp_path / "store") as store:
        store.put(content)
        await cluster.say(published(name, 1, content, store=store.url))
        said = await run_service(
            tmp_path / "service", site, cluster.bootstrap_servers, store.url, name, json.dumps(QUESTION)
        )
    assert said["file"] == str(site / "tidemill" / "__init__.py")
    assert said["version"] == 1
    assert said["answers"] == pytest.approx(answers(content))
    loaded = said["loaded"]
    assert isinstance(loaded, list)
    assert not {"schemas", "streams", "trainers", "infra"} & set(loaded)
    (event,) = await cluster.hear(ModelAdopted, name=name)
    assert event.service == "clean"


async def test_without_torch_the_client_reads_events_and_says_what_to_install(
    cluster: Cluster, wheel: Path, tmp_path: Path, topic: Callable[[str], str]
) -> None:
    name, content = topic("model"), weights(1)
    site = environment(tmp_path / "site", wheel)
    async with serving(tmp_path / "store") as store:
        store.put(content)
        await cluster.say(published(name, 1, content, store=store.url))
        said = await run_service(
            tmp_path / "service", site, cluster.bootstrap_servers, store.url, name, json.dumps(QUESTION)
        )
    assert said["version"] is None
    assert "pip install 'tidemill[torch]'" in str(said["refusal"])
    (event,) = await cluster.hear(AdoptionRefused, name=name)
    assert event.reason == said["refusal"]
    loaded = said["loaded"]
    assert isinstance(loaded, list)
    assert not {"torch", "numpy", "polars", "safetensors"} & set(loaded)


def test_the_wheel_holds_this_folder_and_nothing_else(wheel: Path) -> None:
    source = Path(schemas.__file__).parent
    with zipfile.ZipFile(wheel) as content:
        held = {name for name in content.namelist() if ".dist-info/" not in name}
    here = {
        f"tidemill/{path.relative_to(source).as_posix()}"
        for pattern in ("*.py", "client/*.py", "producer/*.py", "json/*.json", "py.typed")
        for path in source.glob(pattern)
    }
    assert held == here
    assert wheel.name == f"tidemill-{schemas.__version__}-py3-none-any.whl"


def test_the_example_service_is_in_the_wheel_and_explains_itself(wheel: Path, tmp_path: Path) -> None:
    site = environment(tmp_path / "site", wheel, "frames")
    said = subprocess.run(
        [sys.executable, "-S", "-m", "tidemill.example_service", "--help"],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
    )
    assert said.returncode == 0, said.stderr
    assert "--bootstrap-servers" in said.stdout


async def test_a_producer_sends_frames_and_files_with_the_wheel_alone(
    cluster: Cluster, wheel: Path, tmp_path: Path
) -> None:
    """The page's own program."""
    page = PRODUCER_PAGE.read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    site = environment(tmp_path / "site", wheel, "send")
    program = program.replace("from schemas.", "from tidemill.").replace(
        "kafka-1:9092", cluster.bootstrap_servers
    )
    assert await run_service(tmp_path / "producer", site, program=program) == [1, 1, 0]
