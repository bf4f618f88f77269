"""The house: lock, declared dependencies, set-up, check command, and what README and CI call."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from infra import bootstrap, checks

ROOT = Path(__file__).resolve().parent.parent
OURS = {"schemas", "streams", "trainers", "infra", "loadtest", "tests", "tidemill", "tidemill-system"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
EXTRAS = [
    Requirement(line)
    for lines in PYPROJECT["project"].get("optional-dependencies", {}).values()
    for line in lines
]
DEVELOPMENT = [Requirement(line) for line in PYPROJECT["dependency-groups"]["dev"]]
ENTRY = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)( ; (?P<marker>[^\\\n]+))? \\\n"
    r"(?P<hashes>(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+)"
)


def pinned_here() -> dict[str, Version]:
    """What the lock pins for the Python and platform that run this test."""
    pins: dict[str, Version] = {}
    for entry in ENTRY.finditer((ROOT / "requirements.lock").read_text()):
        marker = entry["marker"]
        if marker is None or Requirement(f"{entry['name']} ; {marker}").marker.evaluate():
            pins[entry["name"]] = Version(entry["version"])
    return pins


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def imported_roots(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


# The lock.


def test_the_lock_holds_pins_and_hashes_and_nothing_else() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert ENTRY.sub("", text) == ""
    assert len(list(ENTRY.finditer(text))) > len(RUNTIME) + len(DEVELOPMENT)


@pytest.mark.parametrize("requirement", [*RUNTIME, *DEVELOPMENT], ids=lambda requirement: requirement.name)
def test_the_lock_satisfies_what_is_declared(requirement: Requirement) -> None:
    pinned = pinned_here().get(canonicalize_name(requirement.name))
    assert pinned is not None, "python3 infra/bootstrap.py lock"
    assert pinned in requirement.specifier, "python3 infra/bootstrap.py lock"


def test_nothing_that_the_lock_pins_needs_what_it_does_not_pin() -> None:
    pins = pinned_here()
    missing: list[str] = []
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in [*RUNTIME, *DEVELOPMENT]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            pinned = pins.get(canonicalize_name(needed.name))
            if pinned is None or not needed.specifier.contains(pinned, prereleases=True):
                missing.append(f"{name} needs {line}, the lock has {pinned}")
            else:
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert missing == []


def test_this_environment_is_what_the_lock_pins() -> None:
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions()}
    differing = {
        name: (str(pinned), installed.get(name))
        for name, pinned in pinned_here().items()
        if name not in installed or Version(installed[name]) != pinned
    }
    assert differing == {}


# What the sources name.


@pytest.mark.parametrize(
    ("folders", "declared"),
    [
        (("schemas", "streams", "trainers", "infra"), [*RUNTIME, *EXTRAS]),
        (("tests", "loadtest"), [*RUNTIME, *DEVELOPMENT]),
    ],
    ids=["runtime", "development"],
)
def test_every_imported_distribution_is_declared(
    folders: tuple[str, ...], declared: list[Requirement]
) -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared} | OURS
    known = metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in tracked_files()
        if path.suffix == ".py"
        and path.relative_to(ROOT).parts[0] in folders
        # The load test's peers run in environments of their own, never in ours.
        and not path.is_relative_to(ROOT / "loadtest" / "ingest" / "peers")
        for module in imported_roots(path)
        if module not in sys.stdlib_module_names | OURS
        and names.isdisjoint(map(canonicalize_name, known.get(module, [])))
    }
    assert undeclared == set()


def test_no_tracked_file_names_a_registry() -> None:
    """Where packages, jars and node modules come from is the user's own setting, never ours."""
    hosts = [
        r"\.".join(parts)  # in pieces, so that this file names none either
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("maven", "org"),
            ("maven", "apache", "org"),
            ("sonatype", "com"),
            ("npmjs", "org"),
            ("anaconda", "org"),
            ("pytorch", "org"),
            ("docker", "io"),
        )
    ]
    registry = re.compile(rf"\b({'|'.join(hosts)})\b|(index-url|find-links)[ =]+\w+://(?!127\.)")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if registry.search(line)
    ]
    assert found == []


def test_readme_ci_and_pre_commit_name_one_and_the_same_check() -> None:
    fenced = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [line.partition("#")[0].strip() for line in fenced[0].splitlines()]
    demo, check = (command for command in commands if command)
    assert demo == "python3 infra/bootstrap.py demo"
    assert check == "python3 infra/bootstrap.py check"
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == f"exec {check}"
    assert f"entry: {check} --fast\n" in (ROOT / ".pre-commit-config.yaml").read_text()


# The set-up.


@pytest.fixture
def bare_environment(tmp_path: Path) -> Path:
    """A working environment, as the set-up makes it, with nothing in it."""
    venv = tmp_path / "venv"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", venv], check=True)
    return venv


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock and a pyproject.toml of the test's own, which the set-up takes for the project's."""
    for name, constant in (("requirements.lock", "LOCK"), ("pyproject.toml", "PROJECT")):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        monkeypatch.setattr(bootstrap, constant, tmp_path / name)
    return tmp_path


def test_the_set_up_imports_the_standard_library_alone() -> None:
    assert set(imported_roots(ROOT / "infra/bootstrap.py")) <= sys.stdlib_module_names


def test_an_environment_is_ready_once_its_stamp_is_the_digest(bare_environment: Path, project: Path) -> None:
    stamp = bare_environment / bootstrap.STAMP
    assert not bootstrap.is_ready(bare_environment)
    stamp.write_text("")
    assert not bootstrap.is_ready(bare_environment)
    stamp.write_text(bootstrap.digest())
    assert bootstrap.is_ready(bare_environment)
    bootstrap.set_up(bare_environment)  # nothing to do: it would need a download otherwise
    assert list((bare_environment / "lib").glob("python*/site-packages/*")) == []


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_changed_lock_or_project_calls_for_a_new_set_up(
    changed: str, bare_environment: Path, project: Path
) -> None:
    (bare_environment / bootstrap.STAMP).write_text(bootstrap.digest())
    with (project / changed).open("a") as file:
        file.write("# changed\n")
    assert not bootstrap.is_ready(bare_environment)


def test_an_environment_whose_python_is_gone_is_not_ready(bare_environment: Path, project: Path) -> None:
    (bare_environment / bootstrap.STAMP).write_text(bootstrap.digest())
    python = bootstrap.interpreter(bare_environment)
    python.unlink()
    assert not bootstrap.is_ready(bare_environment)
    python.symlink_to("/nowhere/python3")
    assert not bootstrap.is_ready(bare_environment)


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear reader")
    with pytest.raises(bootstrap.SetUpFailed, match="TIDEMILL_VENV"):
        bootstrap.provide_uv(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_someone_elses_environment_is_refused(bare_environment: Path) -> None:
    with pytest.raises(bootstrap.SetUpFailed, match="did not put there"):
        bootstrap.provide_uv(bare_environment)


def test_uv_is_taken_from_the_lock_with_its_hashes() -> None:
    version, requirement = bootstrap.pinned_uv((ROOT / "requirements.lock").read_text())
    assert version == metadata.version("uv")
    assert ENTRY.fullmatch(requirement)
    with pytest.raises(bootstrap.SetUpFailed, match="git checkout"):
        bootstrap.pinned_uv("ruff==0.1\n")


def test_what_pip_was_told_is_told_to_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = http://127.0.0.1:9/a\ntrusted-host = 127.0.0.1\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INSECURE_HOST"):
        monkeypatch.delenv(name, raising=False)
    told = bootstrap.told_to_pip()
    assert told["UV_DEFAULT_INDEX"] == "http://127.0.0.1:9/a"
    assert told["UV_INSECURE_HOST"] == "127.0.0.1"
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/b")
    assert bootstrap.told_to_pip()["UV_DEFAULT_INDEX"] == "http://127.0.0.1:9/b"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/c")
    assert "UV_DEFAULT_INDEX" not in bootstrap.told_to_pip()


def test_a_set_up_without_network_says_so_and_leaves_an_environment_that_counts_as_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / "venv"
    monkeypatch.setenv("TIDEMILL_VENV", str(venv))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")  # a port where nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    done = subprocess.run(
        [sys.executable, ROOT / "infra/bootstrap.py", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "HTTPS_PROXY" in done.stderr
    assert "Traceback" not in done.stderr
    assert bootstrap.stamp_of(venv) == ""


def test_an_old_python_is_told_which_one_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(bootstrap.SetUpFailed, match=r"Python 3\.11 or newer is needed"):
        bootstrap.refuse_unfit_python()


# The check command.


def test_a_failed_check_does_not_hide_the_next(capfd: pytest.CaptureFixture[str]) -> None:
    def python(name: str, source: str) -> checks.Check:
        return checks.Check(name=name, command=("python", "-c", source), remedy=f"mend {name}")

    fails, holds = python("first", "raise SystemExit(3)"), python("second", "print('second ran')")
    assert checks.run_all([holds])
    capfd.readouterr()
    assert not checks.run_all([fails, holds])
    said = capfd.readouterr().out
    assert "second ran" in said
    assert re.search(r"^FAIL first .* mend first\nok   second .* s$", said, re.MULTILINE)


def test_every_tool_of_the_checks_is_installed() -> None:
    tools = [check.command[0] for check in (*checks.STATIC, *checks.FIXES)]
    assert [tool for tool in tools if not (checks.TOOLS / tool).exists()] == []
