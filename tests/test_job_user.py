"""Jobs as another user: their code reads no key and writes nothing but its own; the road is the same."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from infra.doctor import jobs_apart
from infra.job_user import JobUser, job_user
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.settings import load
from infra.settings_model import Paths, Settings
from infra.settings_model import Trainer as Options
from infra.submit import stop_request
from infra.walls import has_walls, walls_of
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.job import JobFailed, JobStarted
from schemas.model import ModelPublished
from tests.trainer_fixtures import (
    Topics,
    TrainerProcess,
    a_job,
    jobs_of,
    write_dataset,
    write_model_code,
)
from trainers.artifact import ArtifactCorrupt, ArtifactStore
from trainers.keys import KeyFolder

NAME = "nobody"
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run jobs as another user")

SNOOPS = """
import os, pathlib, signal

def reads(ctx):
    home = pathlib.Path(ctx.params["home"])
    print("I am", os.getuid(), os.geteuid(), sorted(os.getgroups()))
    parents = []
    pid = os.getppid()
    while pid > 1:
        parents.append(pid)
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    tries = {
        "keys": lambda: list((home / "keys").iterdir()),
        "conclude": lambda: (home / "jobs" / "else").mkdir(),
        "artifact": lambda: (home / "artifacts" / "x").write_bytes(b"x"),
    }
    for n, pid in enumerate(parents[:2]):  # the warm process, and the trainer
        tries[f"memory {n}"] = lambda pid=pid: open(f"/proc/{pid}/mem", "rb")
        tries[f"kill {n}"] = lambda pid=pid: os.kill(pid, signal.SIGTERM)
    for name, attempt in tries.items():
        try:
            attempt()
            print(name, "WORKED")
        except PermissionError:
            print(name, "refused")
    raise ValueError("that was all")
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder that everybody may walk through, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="tidemill-job-user-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A cluster of our own: jobs that other tests announce are not ours to run."""
    with EmbeddedBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


def where_python_is_everybodys(scratch: Path) -> list[str]:
    """A command that runs another where the job user can read Python, though it lies in a closed home."""
    user = job_user(NAME)
    assert user is not None
    library = Path(os.__file__).resolve()
    if (bar := user.barred_from(library.parent)) is None:
        return []
    inner = bar / library.relative_to(bar).parts[0]
    stand_in = scratch / inner.name
    stand_in.mkdir(parents=True)
    mounts = f"mount --make-rprivate / && mount --bind {inner} {stand_in} && mount --rbind {scratch} {bar}"
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


@ONLY_ROOT
async def test_a_job_of_another_user_reads_no_key_touches_nobody_and_its_model_is_published(
    home: Path, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    write_dataset(home / "dataset")
    code = write_model_code(home / "code")
    (code / "snoops.py").write_text(SNOOPS)
    trainer = TrainerProcess(
        home / "home",
        broker.bootstrap_servers,
        code,
        within=where_python_is_everybodys(home / "library"),
        TIDEMILL_TRAINER__JOB_USER=NAME,
    )
    await ensure(
        (topics.JOBS, topics.MODELS, topics.MODELS_CURRENT),
        Connection(bootstrap_servers=broker.bootstrap_servers),
    )
    trainer.start()
    try:
        async with Topics(broker.bootstrap_servers) as seen:
            nosy = a_job(home / "dataset", "snoops:reads", "nosy", params={"home": str(trainer.home)})
            good = a_job(home / "dataset", "good:train", "good")
            await seen.ask(nosy, good)
            failed = await seen.one(nosy, JobFailed)
            known = pwd.getpwnam(NAME)
            assert f"I am {known.pw_uid} {known.pw_uid}" in failed.log_tail
            assert "that was all" in failed.reason
            assert "WORKED" not in failed.log_tail
            assert failed.log_tail.count("refused") == 7

            published = await seen.one(good, ModelPublished, JobFailed)
            assert isinstance(published, ModelPublished), published
            artifact = trainer.home / "artifacts" / f"{published.manifest.artifact.sha256}.safetensors"
            assert artifact.stat().st_uid == 0
            own = trainer.home / "jobs" / good.job_id / "own"
            await seen.until(lambda: not own.exists())

            mark, go = home / "marks" / "mark", home / "marks" / "go"
            mark.parent.mkdir()
            mark.parent.chmod(0o777)
            waits = a_job(home / "dataset", "bad:waits", "waits", params={"mark": str(mark), "go": str(go)})
            await seen.ask(waits)
            await seen.one(waits, JobStarted)
            await seen.until(mark.exists)
            (process,) = jobs_of(trainer.pid)
            assert process.uids().real == known.pw_uid
            assert holds_a_key(process.pid, trainer.home / "keys") == []
            await seen.say(topics.JOBS.name, stop_request(waits.job_id, reason="seen enough"))
            assert (await seen.one(waits, JobFailed)).reason == "seen enough"
            assert not process.is_running()
    finally:
        assert trainer.stop() == 0, trainer.log_file.read_text()


def holds_a_key(pid: int, keys: Path) -> list[str]:
    """Where a process holds a private key of that folder, or a way to it: memory, environment, open files."""
    secrets: list[bytes] = []
    for path in keys.glob("*.pem"):
        private = load_pem_private_key(path.read_bytes(), password=None)
        raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        secrets += [raw, path.read_bytes().splitlines()[1]]
    assert secrets
    found: list[str] = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *rest = line.split()
            if not rights.startswith("rw") or rest[-1].startswith("[v"):
                continue
            start, end = (int(each, 16) for each in span.split("-"))
            with contextlib.suppress(OSError):
                memory.seek(start)
                content = memory.read(end - start)
                found += [f"memory {span}" for each in secrets if each in content]
    if str(keys).encode() in Path(f"/proc/{pid}/environ").read_bytes():
        found.append("environment")
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(each.readlink()).startswith(str(keys)):
                found.append(f"open file {each.name}")
    return found


def test_what_looks_for_keys_finds_one(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    key = keys.make()
    with (tmp_path / "keys" / f"{key.id}.pem").open("rb") as opened:
        content = opened.read()
        found = holds_a_key(os.getpid(), tmp_path / "keys")
        assert any(each.startswith("memory") for each in found)
        assert f"open file {opened.fileno()}" in found
    assert content.startswith(b"-----BEGIN")


def test_a_user_is_barred_by_the_first_folder_that_is_closed_to_him(tmp_path: Path) -> None:
    user = JobUser(name="u", uid=4_000_001, gid=4_000_002, groups=(4_000_002, os.getegid()), home="/")
    stranger = JobUser(name="s", uid=4_000_003, gid=4_000_004, groups=(4_000_004,), home="/")
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        top.chmod(0o751)
        inner = top / "a" / "b"
        inner.mkdir(parents=True)
        for folder in (top / "a", inner):
            folder.chmod(0o750)
        assert user.barred_from(inner) is None
        assert stranger.barred_from(inner) == (top / "a").resolve()
        assert stranger.barred_from(top) == top.resolve()  # he may walk through, not look
        assert stranger.barred_from(top / "not there") is None
        (top / "a").chmod(0o705)
        assert user.barred_from(inner) == (top / "a").resolve()  # his group counts, not the others


def test_a_user_that_cannot_be_is_named_with_the_way_out() -> None:
    assert job_user(None) is None
    with pytest.raises(InvalidConfiguration, match="no such user here"):
        job_user("nobody-of-that-name")
    with pytest.raises(InvalidConfiguration, match="root, who may read everything"):
        job_user("root")
    if os.geteuid() != 0:
        with pytest.raises(InvalidConfiguration, match="only root"):
            job_user(NAME)


def test_doctor_says_who_can_read_the_signing_keys(home: Path) -> None:
    paths = Paths(home=home / "doctor")
    said = jobs_apart(Settings(paths=paths))
    assert said.ok
    assert str(paths.signing_keys) in said.detail
    assert ("behind walls" in said.detail) == has_walls()
    off = jobs_apart(Settings(paths=paths, trainer=Options(job_walls="off"))).detail
    assert off.startswith("beware")
    assert f"can read {paths.signing_keys}: trainer.job_walls is off" in off
    assert not jobs_apart(Settings(paths=paths, trainer=Options(job_user="nobody-of-that-name"))).ok


def test_walls_that_are_required_and_cannot_be_had_are_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.walls.landlock_abi", lambda: 1)
    paths = Paths(home=home / "no-walls")
    assert "no Landlock that serves" in jobs_apart(Settings(paths=paths)).detail
    required = Settings(paths=paths, trainer=Options(job_walls="required"))
    assert not jobs_apart(required).ok
    with pytest.raises(InvalidConfiguration, match="boot one that has, or set it to auto"):
        walls_of(required)


def test_walls_close_keys_secrets_and_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        f'[paths]\nhome = "{tmp_path}"\n[ray]\ntoken_file = "token"\n[trainer]\njob_walls = "auto"\n'
    )
    walls = walls_of(load(tmp_path / "t.toml"))
    closed = [str(tmp_path / each) for each in ("keys", "jobs", "t.toml", "token")]
    assert (walls is not None) == has_walls()
    assert walls is None or list(walls.closed) == closed


@ONLY_ROOT
def test_doctor_says_what_a_job_user_can_read_and_should_not_and_cannot_and_must(home: Path) -> None:
    paths = Paths(home=home / "doctor-root")
    settings = Settings(paths=paths, trainer=Options(job_user=NAME))
    paths.signing_keys.mkdir(parents=True)
    open_keys = jobs_apart(settings)
    assert (open_keys.ok, open_keys.remedy) == (False, f"chmod 700 {paths.signing_keys}")
    paths.signing_keys.chmod(0o700)
    paths.dataset.mkdir()
    paths.dataset.chmod(0o700)
    barred = jobs_apart(settings)
    assert not barred.ok
    assert str(paths.dataset) in barred.remedy


def test_what_another_user_gives_is_taken_over_only_if_it_is_what_he_says(tmp_path: Path) -> None:
    store, outbox = ArtifactStore(tmp_path / "store"), tmp_path / "outbox"
    digest = ArtifactStore(outbox).put(b"weights")
    store.take_over(outbox, digest, size_bytes=7)
    assert store.get(digest) == b"weights"

    given = ArtifactStore(outbox).path(digest)
    for size_bytes, content in ((8, b"weights"), (7, b"wEights")):
        given.write_bytes(content)
        with pytest.raises(ArtifactCorrupt):
            store.take_over(outbox, digest, size_bytes=size_bytes)
    given.unlink()
    given.symlink_to(store.path(digest))  # what lies there is right, and yet it is none of his
    with pytest.raises(ArtifactCorrupt):
        store.take_over(outbox, digest, size_bytes=7)
    given.unlink()
    os.mkfifo(given)
    with pytest.raises(ArtifactCorrupt, match="no file"):
        store.take_over(outbox, digest, size_bytes=0)
    with pytest.raises(ArtifactCorrupt, match="no SHA-256"):
        store.take_over(outbox, f"../store/{digest}", size_bytes=7)
