"""Pages and READMEs hold: commands parse, links and files exist, no block is passed over.

That the pages' commands run is held by tests/test_running.py; here nothing is started.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import infra.command.main  # noqa: F401  (importing registers the commands)
from infra import scaffold
from infra.command.app import app
from infra.settings import load as load_settings
from infra.settings_model import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "infra" / "pages"
START = PAGES / "README.md"
ROOT_COMMAND: Any = typer.main.get_command(app)
DOCUMENTS = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name and (ROOT / name).is_file()
)
TITLES_OF_PROCESSES = {"tidemill warm"}
"""What `top` shows, and no command."""
METHODS = (
    "infra/measures.py",
    "infra/paired.py",
    "infra/selection.py",
    "schemas/lookback.py",
    "streams/summary/sketch.py",
    "trainers/sanity.py",
    "trainers/schedule.py",
    "trainers/sweep.py",
)
NOT_RUN = {
    "README.md": {
        "python3 infra/bootstrap.py demo": "tests/test_demo.py runs the demo; the check runs the tests",
        "tidemill doctor": "tests/test_running.py calls each, worker and trainer for its whole length",
    },
    "infra/lab/policies/README.md": {"tidemill policies": "walks a year; tests/test_policies.py a short one"},
}
"""Blocks that are shown and not run as they stand, by file and by how they begin, with the reason."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    file: Path
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    """In their order; what is fenced by nothing is none."""
    kind, start, inside = "", 0, list[str]()
    for number, line in enumerate(file.read_text().splitlines(), 1):
        fence = re.match(r" *```(.*)$", line)
        if fence is None:
            inside.append(line)
        elif start:
            yield Block(file, start, kind, "\n".join(inside))
            start = 0
        else:
            kind, start, inside = fence[1], number, []
    assert not start, f"{file}:{start}: the block has no end"


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of each of a block's `tidemill` lines; a line that ends in a backslash goes on in the next."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words[:2] == ["python3", "infra/bootstrap.py"] and words[2] not in ("check", "lock"):
            words[:2] = ["tidemill"]
        if words and words[0] == "tidemill":
            yield words


def found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and what stands behind its name.

    Raises:
        KeyError: there is none.
    """
    command: Any = ROOT_COMMAND
    rest = words[1:]
    if rest[:1] == ["--config"]:
        rest = rest[2:]
    while rest and hasattr(command, "commands") and not rest[0].startswith("-") and rest[0] != "…":
        if command.invoke_without_command and rest[0] not in command.commands:
            break  # `tidemill models kiosk`: its own argument
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def leaves(command: Any, path: str = "tidemill") -> Iterator[str]:
    below = getattr(command, "commands", {})
    if not below:
        yield path
    for name, each in below.items():
        yield from leaves(each, f"{path} {name}")


def spans(file: Path) -> Iterator[tuple[int, str]]:
    """Text between backticks, outside of blocks, with its line; one that is broken over two lines, too."""
    text = re.sub(r"^ *```.*?^ *```", lambda m: "\n" * m[0].count("\n"), file.read_text(), flags=re.M | re.S)
    for match in re.finditer(r"`([^`]+)`", text):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_line_of_a_block_is_one_that_the_command_line_takes(file: Path) -> None:
    for block in blocks(file):
        for words in command_lines(block.text):
            command, rest = found(words)
            # Parses as the command itself does, and calls nothing: what it does not know raises.
            command.make_context(words[-1], rest)


def test_the_readme_of_a_new_project_names_commands_that_there_are() -> None:
    lines = [line.strip() for line in scaffold._README.splitlines() if line.startswith("    ")]
    parsed = [found(words) for line in lines for words in command_lines(line.replace("$name", "kiosk"))]
    for command, rest in parsed:
        command.make_context("tidemill", rest)
    assert len(parsed) >= 6


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_that_is_named_in_passing_exists_with_its_options(file: Path) -> None:
    wrong = []
    for line, span in spans(file):
        if (
            not span.startswith("tidemill ")
            or span in TITLES_OF_PROCESSES
            or span == "tidemill COMMAND --help"
        ):
            continue
        first, *others = re.split(r" \| ", span)  # `tidemill dataset history | compact`
        words = shlex.split(first)
        for alternative in [words, *([*words[:-1], each] for each in others)]:
            try:
                command, rest = found(alternative)
            except KeyError:
                wrong.append(f"{file.name}:{line}: `{span}`: no such command")
                continue
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
            options = {word.partition("=")[0] for word in rest if word.startswith("--")}
            wrong += [f"{file.name}:{line}: `{span}`: {name}" for name in options - known - {"--help"}]
    assert wrong == []


def test_every_command_is_told_of_where_people_read() -> None:
    """The reference has them all by itself; somebody must say what each is for."""
    told = " ".join(
        " ".join([*(span for _, span in spans(file)), *(block.text for block in blocks(file))])
        for file in DOCUMENTS
        if file.parent.name != "reference" and file.name != "CHANGELOG.md"
    )
    told = re.sub(r"(tidemill \w+) (\w+)((?: \| \w+)+)", _spread, told)
    assert [path for path in leaves(ROOT_COMMAND) if not re.search(rf"{re.escape(path)}\b", told)] == []


def _spread(match: re.Match[str]) -> str:
    return " ".join(f"{match[1]} {each}" for each in re.findall(r"\w+", match[2] + match[3]))


# ── links ───────────────────────────────────────────────────────────────────────────────────────────


def links(file: Path) -> Iterator[tuple[Path, str]]:
    """(file or folder, anchor) of each link and picture that leads to a place in the repository."""
    text = re.sub(r"^ *```.*?^ *```", "", file.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        yield ((file.parent / path).resolve() if path else file), anchor


def anchors(file: Path) -> set[str]:
    """Of its headings, as they are made on the repository's pages."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", file.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(file: Path) -> None:
    dead = [str(to) for to, _ in links(file) if not to.exists()]
    dead += [f"{to}#{a}" for to, a in links(file) if a and to.suffix == ".md" and a not in anchors(to)]
    assert dead == []


def test_every_page_is_reached_from_the_start_page_and_that_from_the_readme() -> None:
    reached, waiting = set[Path](), [START]
    while waiting:
        file = waiting.pop()
        if file in reached or not file.is_relative_to(PAGES):
            continue
        reached.add(file)
        waiting += [to for to, _ in links(file) if to.suffix == ".md"]
    assert set(PAGES.rglob("*.md")) - reached == set()
    assert any(to.is_relative_to(PAGES) for to, _ in links(ROOT / "README.md"))


# ── names ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_setting_and_every_file_that_is_named_is_there(file: Path) -> None:
    sections = {
        name: set(field.annotation.model_fields)
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    rooms = ("infra/", "schemas/", "streams/", "trainers/", "loadtest/", "tests/")
    wrong = []
    for line, span in spans(file):
        place = f"{file.name}:{line}: `{span}`"
        named = re.fullmatch(r"(\w+)\.(\w+)(?: = .*)?", span)
        if named and named[1] in sections and named[2] not in sections[named[1]] | {"py"}:
            wrong.append(f"{place}: no such setting")
        variable = re.fullmatch(r"TIDEMILL_([A-Z_]+?)__([A-Z_]+)", span)
        if variable and variable[1] != "SECTION":
            section, name = variable[1].lower(), variable[2].lower()
            if name not in sections.get(section, set()):
                wrong.append(f"{place}: no such setting")
        of_now = span.startswith(rooms) and re.fullmatch(r"[\w./]+", span) and file.name != "CHANGELOG.md"
        if of_now and not (ROOT / span).exists() and not (ROOT / f"{span}.py").exists():
            wrong.append(f"{place}: no such file")
    assert wrong == []


def test_the_explanation_names_the_source_of_every_method() -> None:
    """Wherever a docstring or a comment of these names a year of publication, the page does."""
    told = (PAGES / "explanation.md").read_text()
    files = [*(ROOT / "streams" / "trigger").glob("*.py"), *(ROOT / name for name in METHODS)]
    years = {
        (file.name, year)
        for file in files
        for year in re.findall(r"(?:\(|, )(1[6-9]\d\d|20[0-2]\d)\)", file.read_text())
    }
    assert len(years) > 20
    assert [(name, year) for name, year in sorted(years) if year not in told] == []


# ── blocks ──────────────────────────────────────────────────────────────────────────────────────────


def test_every_block_runs_or_has_its_reason() -> None:
    """`sh`, `python` and `toml` of the pages run in tests/test_running.py; signatures are made."""
    shown = {
        (str(block.file.relative_to(ROOT)), block.text.strip())
        for file in DOCUMENTS
        for block in blocks(file)
        if block.kind in (("text",) if file.is_relative_to(PAGES) else ("sh", "text"))
    }
    excused = {(file, begins) for file, reasons in NOT_RUN.items() for begins in reasons}
    unexplained = [
        s for s in shown if not any(s[0] == file and s[1].startswith(begins) for file, begins in excused)
    ]
    assert unexplained == []
    gone = [e for e in excused if not any(file == e[0] and text.startswith(e[1]) for file, text in shown)]
    assert gone == [], "reasons for what is not there any more"
    kinds = {block.kind for file in DOCUMENTS for block in blocks(file)}
    assert kinds <= {"sh", "python", "toml", "text", ""}, "a block that no test knows how to run"
    drawn = [block for file in DOCUMENTS for block in blocks(file) if block.kind == ""]
    assert all("─►" in block.text for block in drawn), "without a word of what it is: drawings alone"


@pytest.mark.parametrize("file", ["README.md", "schemas/README.md"])
def test_the_readmes_snippets_call_what_there_is_as_it_wants_to_be_called(file: str, tmp_path: Path) -> None:
    """They need a cluster of their own names; the same calls run on the how-to pages."""
    for block in blocks(ROOT / file):
        if block.kind == "toml":
            (tmp_path / "tidemill.toml").write_text(block.text)
            assert load_settings(tmp_path / "tidemill.toml").kafka.bootstrap_servers
        if block.kind != "python":
            continue
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(block.text, block.place, "exec", flags)
        imported = {
            alias.name: getattr(
                importlib.import_module(node.module.replace("tidemill", "schemas")), alias.name
            )
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        called = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported
        ]
        for call in called:
            named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            inspect.signature(imported[ast.unparse(call.func)]).bind(*call.args, **named)
        assert "ModelFollower" in {ast.unparse(call.func) for call in called}
