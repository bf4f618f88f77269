"""The reference, made from docstrings: `python -m infra.command.reference` writes `infra/pages/reference/`.

A module's page holds what it makes public, each with its signature, its docstring and what stands below its
fields. Commands and settings are read from where they are declared, metrics from their list.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

FOLDER = Path(__file__).resolve().parent.parent / "pages" / "reference"
MODULES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "client": ("The client: services and producers", ("schemas.client", "schemas.producer")),
    "pipeline": (
        "Pipelines",
        ("streams.pipeline", "streams.window", "schemas.features", "schemas.topics", "streams.testing"),
    ),
    "rules": ("Rules and tags", ("streams.clean", "streams.mend", "streams.tag", "streams.unusual")),
    "triggers": ("Triggers", ("streams.trigger",)),
    "training": (
        "Trainings and what they learn from",
        ("streams.training", "trainers.context", "trainers.loader", "trainers.testing"),
    ),
}
"""Pages of modules: file, title, modules in their order."""

_IN_SERVICES = {"schemas": "tidemill"}
"""The wheel that services install has another name for the package."""
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
_LONGEST = 100
_WHERE_SETTINGS_STAND = (
    "A setting stands in `tidemill.toml` below its section, or in the environment as\n"
    "`TIDEMILL_SECTION__NAME`. `tidemill config` prints each with its value and where it came from."
)
_OF_TYPER = ("help", "install_completion", "show_completion")


def pages() -> dict[str, str]:
    """Every page's text, by its file's name."""
    found = {f"{name}.md": _of_modules(title, names) for name, (title, names) in MODULES.items()}
    found["commands.md"] = _commands()
    found["settings.md"] = _settings()
    found["metrics.md"] = _metrics()
    titles = {file: text.partition("\n")[0].removeprefix("# ") for file, text in found.items()}
    index = "\n".join(f"- [{title}]({file})" for file, title in titles.items())
    found["README.md"] = (
        "# Reference\n\nMade from the docstrings by `python -m infra.command.reference`; a test keeps it in "
        f"step.\n\n{index}\n"
    )
    return found


def write(folder: Path = FOLDER) -> list[Path]:
    """Write the pages, and delete those of before; gives their files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = pages()
    for old in folder.glob("*.md"):
        if old.name not in found:
            old.unlink()
    for file, text in found.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in found]


# ── modules ─────────────────────────────────────────────────────────────────────────────────────────


def _of_modules(title: str, names: Iterable[str]) -> str:
    parts = [f"# {title}"]
    for name in names:
        module = importlib.import_module(name)
        first, _, rest = name.partition(".")
        service = f", in services `{_IN_SERVICES[first]}.{rest}`" if name == "schemas.client" else ""
        parts.append(f"## `{name}`{service}\n\n{_docstring(module)}")
        parts += [_entry(each, value) for each, value in public(module)]
    return "\n\n".join(parts) + "\n"


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a module makes public: by `__all__`, else all that it defines itself."""
    named = getattr(module, "__all__", None)
    for name in named if named is not None else vars(module):
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if named is not None or (not name.startswith("_") and value.__module__ == module.__name__):
            yield name, value


def _entry(name: str, value: Any) -> str:
    parts = [f"### `{name}`", f"```python\n{_signature(name, value)}\n```", _docstring(value)]
    if inspect.isclass(value):
        if told := [f"- `{field}`: {text}" for field, text in _fields(value).items()]:
            parts.append("\n".join(told))
        for method, of in vars(value).items():
            told = of.fget if isinstance(of, property) else getattr(of, "__func__", of)
            if method.startswith("_") or not inspect.isfunction(told) or not told.__doc__:
                continue
            said = method if isinstance(of, property) else _signature(method, told)
            parts.append(f"#### `{name}.{method}`\n\n```python\n{said}\n```\n\n{_docstring(told)}")
    return "\n\n".join(part for part in parts if part)


def _signature(name: str, value: Any) -> str:
    kind = "async def " if inspect.iscoroutinefunction(value) else "def "
    word = "class " if inspect.isclass(value) else kind
    try:
        signature = inspect.signature(value)
    except ValueError:
        return f"{word}{name}"
    shown = [each for each in signature.parameters.values() if each.name != "self"]
    # What stands there as an object of this process has no words of its own.
    shown = [each.replace(default=_Said("…")) if " at 0x" in repr(each.default) else each for each in shown]
    whole = f"{word}{name}{signature.replace(parameters=shown)}".replace("'", '"')
    # Annotations are text already: their quotation marks say nothing.
    whole = re.sub(r'(: |-> )"([^"]*)"', r"\1\2", whole)
    if len(whole) <= _LONGEST:
        return whole
    inner = [re.sub(r'(: )"([^"]*)"', r"\1\2", str(each).replace("'", '"')) for each in shown]
    marked = _with_marks(shown, inner)
    closing = whole[whole.rindex(")") :] if "->" in whole else ")"
    return f"{word}{name}(\n" + "".join(f"    {each},\n" for each in marked) + closing


class _Said:
    """A default that is shown as this text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _with_marks(shown: list[inspect.Parameter], inner: list[str]) -> Iterator[str]:
    starred = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in shown)
    for each, text in zip(shown, inner, strict=True):
        if each.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield text


def _docstring(value: Any) -> str:
    """Its docstring as Markdown: Google's sections become lists."""
    text = inspect.cleandoc(value.__doc__ or "")
    if dataclasses.is_dataclass(value) and text.startswith(f"{getattr(value, '__name__', '')}("):
        return ""  # what dataclass writes where nobody did
    blocks: list[str] = []
    section: list[str] | None = None
    for line in [*text.splitlines(), "."]:
        if section is not None and line and not line.startswith(" "):
            blocks += ["", *_items(section), ""]
            section = None
        if _SECTION.match(line):
            section = []
            blocks.append(line)
        elif section is not None:
            section.append(line)
        else:
            blocks.append(line)
    blocks.pop()  # the mark of the end
    return re.sub(r"\n{3,}", "\n\n", "\n".join(blocks)).strip()


def _items(body: list[str]) -> list[str]:
    """`name: what it is`, one after another, as a list; a section without names stays text."""
    found: list[str] = []
    for line in textwrap.dedent("\n".join(body)).splitlines():
        if not line.strip():
            continue
        named = re.match(r"^(\*{0,2}\w[\w., |*]*?): (.*)$", line)
        if named is not None:
            found.append(f"- `{named[1]}`: {named[2]}")
        elif found:
            found[-1] += f" {line.strip()}"
        else:
            found.append(line.strip())
    return found


def _fields(value: type) -> dict[str, str]:
    """What stands below a class's fields, by field."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    for before, after in pairwise(body):
        match before, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if not name.startswith("_"):
                found[name] = " ".join(inspect.cleandoc(text).split())
            case _:
                pass
    return found


# ── what is declared elsewhere ──────────────────────────────────────────────────────────────────────


def _commands() -> str:
    import infra.command.main  # noqa: F401  (each module of it declares its commands)
    from infra.command.app import app

    parts = ["# Commands", "Every command with its options; `tidemill COMMAND --help` says the same."]
    root = typer.main.get_command(app)
    parts += _command(root, ["tidemill"])
    return "\n\n".join(parts) + "\n"


def _command(command: Any, path: list[str]) -> Iterator[str]:
    """A command, and those below it. Typer has a click of its own: its parts are known by what they have."""
    shown = [each for each in command.params if not each.hidden and each.name not in _OF_TYPER]
    rows = [f"| `{_named(each)}` | {_help(each)} |" for each in shown]
    yield f"## `{' '.join(path)}`\n\n{inspect.cleandoc(command.help or '')}"
    if rows:
        yield "\n".join(["| argument or option | meaning |", "| --- | --- |", *rows])
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _command(below, [*path, name])


def _named(each: Any) -> str:
    return ", ".join([*each.opts, *each.secondary_opts])


def _help(each: Any) -> str:
    text = (each.help or "").replace("|", "\\|").strip()
    annotation = each.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        text += f" One of {', '.join(get_args(annotation))}."
    default = each.default
    if each.required or default in (None, "") or callable(default) or isinstance(default, bool):
        return text
    return f"{text} Default: {default}."


def _settings() -> str:
    from infra.settings_model import Settings

    parts = [
        "# Settings",
        _WHERE_SETTINGS_STAND,
    ]
    own = _fields(Settings)
    single: list[str] = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if inspect.isclass(section) and issubclass(section, BaseModel):
            told = _fields(section)
            rows = [
                f"| `{each}` | {_default(of)} | {told.get(each, '')} |"
                for each, of in section.model_fields.items()
            ]
            table = "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])
            parts.append(f"## `[{name}]`\n\n{_docstring(section)}\n\n{table}")
        else:
            single.append(f"- `{name}`: {own.get(name, '')}")
    if single:
        parts.insert(2, "\n".join(single))
    return "\n\n".join(parts) + "\n"


def _default(field: FieldInfo) -> str:
    """Its default in words; what is made of other settings is a folder of the home folder."""
    if field.default_factory is not None and not isinstance(field.default_factory, type):
        return "in the home folder"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, Path):
        return f"`{value.name}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _metrics() -> str:
    from infra.observe.metrics import METRICS

    rows = [
        f"| `{each.name}` | {each.kind} | {each.unit} | {', '.join(each.labels)} | {', '.join(each.parts)} | "
        f"{each.meaning} |"
        for each in METRICS
    ]
    head = ["| metric | kind | unit | labels | of | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    return "# Metrics\n\nWhat processes serve at `/metrics`.\n\n" + "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    for written in write():
        print(written.name)
