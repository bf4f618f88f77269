"""What `tidemill init` writes runs at once: its tests pass, its pipeline has no mistake, its model learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.scaffold import write
from schemas.errors import InvalidConfiguration

TIDEMILL = Path(sys.executable).with_name("tidemill")


def test_a_new_project_checks_and_its_own_tests_pass(tmp_path: Path) -> None:
    done = subprocess.run(
        [TIDEMILL, "init", "kiosk", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "kiosk/pipeline.py" in json.loads(done.stdout)["files"]
    project = tmp_path / "kiosk"
    checked = subprocess.run(
        [TIDEMILL, "check", "pipeline.py"], cwd=project, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "6 passed" in tested.stdout


@pytest.mark.parametrize("name", ["Kiosk", "7up", "a-b", "a" * 41, "a b"])
def test_a_name_that_no_module_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="lower-case letters"):
        write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "kiosk").mkdir()
    (tmp_path / "kiosk" / "pipeline.py").write_text("mine")
    with pytest.raises(InvalidConfiguration, match="is there already"):
        write(tmp_path / "kiosk")
    assert [p.name for p in (tmp_path / "kiosk").iterdir()] == ["pipeline.py"]
    (tmp_path / "stall").write_text("")
    with pytest.raises(InvalidConfiguration, match="is a file"):
        write(tmp_path / "stall")
