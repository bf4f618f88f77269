"""The environment wins over the file, the file over the defaults, and each value tells where it came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.settings import Settings, describe, load
from infra.settings_model import Worker
from schemas.errors import InvalidConfiguration


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(settings: Settings) -> dict[str, tuple[str, str]]:
    return {line.name: (line.value, line.source) for line in describe(settings)}


def test_with_nothing_set_everything_lies_in_one_folder_under_the_working_directory(empty_folder):
    settings = load()
    assert settings.paths.home == empty_folder / "tidemill-data"
    assert settings.paths.dataset == empty_folder / "tidemill-data" / "dataset"
    assert settings.kafka.bootstrap_servers is None
    assert sources(settings)["worker.coalesce_ms"] == ("100", "default")
    assert sources(settings)["paths.logs"] == (str(empty_folder / "tidemill-data" / "logs"), "paths.home")


def test_environment_wins_over_file_wins_over_default(empty_folder, monkeypatch):
    file = empty_folder / "tidemill.toml"
    file.write_text(
        '# mine\n[worker]\nbatch_rows = 10\ncoalesce_ms = 7\n\n[kafka]\nbootstrap_servers = "k:9092"\n'
    )
    monkeypatch.setenv("TIDEMILL_WORKER__BATCH_ROWS", "20")
    settings = load()
    assert (settings.worker.batch_rows, settings.worker.coalesce_ms) == (20, 7)
    shown = sources(settings)
    assert shown["worker.batch_rows"] == ("20", "env TIDEMILL_WORKER__BATCH_ROWS")
    assert shown["worker.coalesce_ms"] == ("7", f"{file}:4")
    assert shown["kafka.bootstrap_servers"] == ("k:9092", f"{file}:7")
    assert shown["trainer.device"] == ("auto", "default")


def test_a_named_file_is_read_instead_and_its_relative_paths_start_at_its_folder(empty_folder, monkeypatch):
    elsewhere = empty_folder / "etc"
    elsewhere.mkdir()
    (elsewhere / "mine.toml").write_text('paths.home = "data"\n[broker]\njava = "jre"\n')
    (empty_folder / "tidemill.toml").write_text("[worker]\nbatch_rows = 10\n")
    by_option = load(elsewhere / "mine.toml")
    assert by_option.paths.artifacts == elsewhere / "data" / "artifacts"
    assert by_option.broker.java == elsewhere / "jre"
    assert by_option.worker.batch_rows == Worker().batch_rows
    assert sources(by_option)["paths.home"][1] == f"{elsewhere / 'mine.toml'}:1"
    monkeypatch.setenv("TIDEMILL_CONFIG", "etc/mine.toml")
    monkeypatch.setenv("TIDEMILL_PATHS__LOGS", "logs-here")
    by_variable = load()
    assert by_variable.paths.home == elsewhere / "data"
    assert by_variable.paths.logs == empty_folder / "logs-here"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[worker]\nbatch_row = 3\n",
            r"unknown setting worker.batch_row \(.*:2\); did you mean worker.batch_rows\?",
        ),
        ("[workers]\n", r"unknown setting workers \(.*:1\); did you mean worker\?"),
        ('bootstrap_servers = "k:1"\n', r"unknown setting bootstrap_servers .*kafka.bootstrap_servers\?"),
        ("[broker]\nport = 70000\n", r"broker.port: .*65535 \(.*tidemill.toml:2\)"),
        ('[trainer]\ndevice = "gpu"\n', r"trainer.device: .*'auto', 'cpu' or 'cuda'.*:2"),
        ("worker = 3\n", r"worker: .*tidemill.toml:1"),
        ("[worker\n", r"cannot be read as TOML: .*line 1"),
        ('[kafka]\nsecurity_protocol = "SASL_SSL"\nbootstrap_servers = "k:1"\n', "needs kafka.sasl_username"),
        ('[kafka]\nsecurity_protocol = "SSL"\n', "name your cluster by kafka.bootstrap_servers"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place_and_the_way_out(empty_folder, text, message):
    (empty_folder / "tidemill.toml").write_text(text)
    with pytest.raises(InvalidConfiguration, match=message):
        load()


def test_every_mistake_is_named_at_once(empty_folder):
    (empty_folder / "tidemill.toml").write_text("[worker]\nbatch_row = 3\n[broker]\nport = -1\n")
    with pytest.raises(InvalidConfiguration, match=r"worker.batch_row .*broker.port"):
        load()


def test_a_misspelt_variable_is_an_error_too(monkeypatch):
    monkeypatch.setenv("TIDEMILL_KAFKA__BOOTSTRAP_SERVER", "k:9092")
    with pytest.raises(InvalidConfiguration, match="did you mean TIDEMILL_KAFKA__BOOTSTRAP_SERVERS"):
        load()


def test_a_missing_named_file_is_an_error(empty_folder):
    with pytest.raises(InvalidConfiguration, match=r"no settings file nowhere\.toml"):
        load(Path("nowhere.toml"))


def test_secrets_are_never_shown(empty_folder, monkeypatch):
    monkeypatch.setenv("TIDEMILL_KAFKA__SASL_PASSWORD", "hunter2")
    (empty_folder / "tidemill.toml").write_text(
        '[kafka]\nbootstrap_servers = "k:1"\nsecurity_protocol = "SASL_SSL"\nsasl_username = "u"\n'
    )
    settings = load()
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == "hunter2"
    assert sources(settings)["kafka.sasl_password"] == ("********", "env TIDEMILL_KAFKA__SASL_PASSWORD")
    assert not re.search("hunter2", repr(settings) + str(describe(settings)))


def test_kafkas_own_settings_pass_through_file_and_environment(empty_folder, monkeypatch):
    (empty_folder / "tidemill.toml").write_text('[broker.settings]\n"log.retention.ms" = "1"\n')
    assert load().broker.settings == {"log.retention.ms": "1"}
    monkeypatch.setenv("TIDEMILL_BROKER__SETTINGS", '{"log.retention.ms": "2"}')
    assert load().broker.settings == {"log.retention.ms": "2"}
