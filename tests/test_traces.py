"""Places in a trace are functions of names; without the extra nothing is imported, and traces say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.observe.traces import begin
from infra.settings_model import Traces
from schemas.errors import InvalidConfiguration
from schemas.trace import Place, beginning, place_of

WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ImportError(f"no module {name}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@given(name=st.text(), what=st.text(), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_place_travels_and_is_the_same_whoever_says_it(name: str, what: str, share: float) -> None:
    first = beginning(name, share=share)
    assert first == beginning(name, share=share)
    beside = first.beside(what)
    assert (beside.trace_id, beside.sampled) == (first.trace_id, first.sampled)
    assert place_of(beside.traceparent) == beside
    assert first.sampled == (beginning(name).trace_id / 2**128 < share)


@pytest.mark.parametrize("said", [None, "", "00-0-0-01", f"00-{'0' * 32}-{'1' * 16}-01", "ff-" + "a" * 51])
def test_what_is_no_traceparent_is_ignored(said: str | None) -> None:
    assert place_of(said) is None


def test_a_share_of_traces_is_about_that_share() -> None:
    recorded = sum(beginning(f"kiosk@{version}", share=0.25).sampled for version in range(2_000))
    assert 400 < recorded < 600


def run_without(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_extra_everything_imports_and_the_settings_that_need_it_say_how_to_get_it() -> None:
    said = run_without(
        "import streams.app, streams.worker, schemas.client\n"
        "from infra.observe.traces import begin\n"
        "from infra.settings_model import Traces\n"
        "assert begin(Traces(), part='worker') is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "try:\n    begin(Traces(exporter='otlp'), part='worker')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    assert said.startswith("InvalidConfiguration traces.exporter is otlp")
    assert "tidemill-system[traces]" in said


def test_an_unsampled_place_is_not_recorded_and_a_recorded_one_has_its_own_ids(tmp_path: Path) -> None:
    file = tmp_path / "spans" / "worker.jsonl"
    traces = begin(Traces(exporter="file", file=file), part="worker")
    assert traces is not None
    place = Place(7, 9)
    traces.record("commit", Place(1, 2, sampled=False), start_ms=1, end_ms=2)
    traces.record("commit", place, parent=Place(7, 3), start_ms=1_000, end_ms=2_000, failed="broken", rows=3)
    traces.end()
    (line,) = file.read_text().splitlines()
    assert f'"trace_id": "0x{7:032x}"' in line
    assert f'"span_id": "0x{9:016x}"' in line
    assert f'"parent_id": "0x{3:016x}"' in line
    assert '"tidemill.rows": 3' in line
    assert '"start_time": "1970-01-01T00:00:01' in line
    assert "broken" in line


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "spans").write_text("")
    with pytest.raises(InvalidConfiguration, match=r"traces\.file"):
        begin(Traces(exporter="file", file=tmp_path / "spans" / "worker.jsonl"), part="worker")


def test_a_file_without_the_exporter_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="go together"):
        Traces(file=Path("spans.jsonl"))
